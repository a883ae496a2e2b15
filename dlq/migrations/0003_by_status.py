from django.db import migrations, models

from jobs.migrations._beside_writers import AddIndex, RemoveIndex


class Migration(migrations.Migration):
    """First the new indexes, then without the old ones: at no moment is a list without one."""

    atomic = False

    dependencies = [
        ("dlq", "0002_newest_of_tenant"),
    ]

    operations = [
        AddIndex(
            model_name="deadletter",
            index=models.Index(fields=["task", "status", "-created_at", "-id"], name="dlq_of_task"),
        ),
        AddIndex(
            model_name="deadletter",
            index=models.Index(fields=["tenant", "status", "-created_at", "-id"], name="dlq_of_tenant"),
        ),
        AddIndex(
            model_name="deadletter",
            index=models.Index(fields=["fingerprint", "status", "-created_at", "-id"], name="dlq_alike"),
        ),
        RemoveIndex(
            model_name="deadletter",
            name="dlq_newest_of_task",
        ),
        RemoveIndex(
            model_name="deadletter",
            name="dlq_newest_of_tenant",
        ),
        RemoveIndex(
            model_name="deadletter",
            name="dlq_by_fingerprint",
        ),
    ]
