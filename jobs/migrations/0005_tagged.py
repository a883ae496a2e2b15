from django.db import migrations, models

from jobs.migrations._beside_writers import AddIndex


class Migration(migrations.Migration):
    atomic = False

    dependencies = [
        ("jobs", "0004_indexes"),
    ]

    operations = [
        AddIndex(
            model_name="job",
            index=models.Index(
                condition=models.Q(("tags", []), _negated=True), fields=["created_at"], name="jobs_tagged"
            ),
        ),
    ]
