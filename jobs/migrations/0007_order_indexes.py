from django.db import migrations, models

from jobs.migrations._beside_writers import AddIndex, RemoveIndex

_WAITING = (("finished_at__isnull", True), ("state__in", ["pending", "retrying"]))


class Migration(migrations.Migration):
    atomic = False

    dependencies = [
        ("jobs", "0006_order"),
    ]

    operations = [
        AddIndex(
            model_name="job",
            index=models.Index(
                condition=models.Q(*_WAITING, ("lane", "")), fields=["priority", "due_at"], name="jobs_due_directly"
            ),
        ),
        AddIndex(
            model_name="job",
            index=models.Index(
                condition=models.Q(*_WAITING, models.Q(("lane", ""), _negated=True)),
                fields=["lane", "due_at"],
                name="jobs_due_by_lane",
            ),
        ),
        RemoveIndex(model_name="job", name="jobs_due"),
    ]
