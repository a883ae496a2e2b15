from django.db import migrations, models

from jobs.migrations._beside_writers import AddIndex


class Migration(migrations.Migration):
    atomic = False

    dependencies = [
        ("dlq", "0001_initial"),
        ("jobs", "0004_indexes"),
    ]

    operations = [
        AddIndex(
            model_name="deadletter",
            index=models.Index(fields=["tenant", "-created_at", "-id"], name="dlq_newest_of_tenant"),
        ),
    ]
