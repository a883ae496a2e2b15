from django.db import migrations, models

from jobs.migrations._beside_writers import AddIndex, RemoveIndex, ReplaceUnique, Storage


class Migration(migrations.Migration):
    """First the new indexes, then without the old ones: at no moment is a list or a chore without one."""

    atomic = False

    dependencies = [
        ("jobs", "0003_tallies"),
    ]

    operations = [
        AddIndex(
            model_name="job",
            index=models.Index(
                condition=models.Q(("finished_at__isnull", True), ("state__in", ["pending", "retrying"])),
                fields=["priority", "due_at"],
                name="jobs_due",
            ),
        ),
        AddIndex(
            model_name="job",
            index=models.Index(
                condition=models.Q(("finished_at__isnull", True), ("lease_until__isnull", False)),
                fields=["lease_until"],
                name="jobs_leased",
            ),
        ),
        AddIndex(
            model_name="job",
            index=models.Index(
                condition=models.Q(("finished_at__isnull", True), ("expires_at__isnull", False)),
                fields=["expires_at"],
                name="jobs_expiring",
            ),
        ),
        AddIndex(
            model_name="job",
            index=models.Index(
                condition=models.Q(("finished_at__isnull", True), ("cancel_requested_at__isnull", False)),
                fields=["cancel_requested_at"],
                name="jobs_to_be_cancelled",
            ),
        ),
        AddIndex(
            model_name="job",
            index=models.Index(
                condition=models.Q(("finished_at__isnull", True)),
                fields=["queue", "priority", "due_at"],
                name="jobs_unfinished",
            ),
        ),
        AddIndex(
            model_name="job",
            index=models.Index(fields=["created_at"], name="jobs_by_creation"),
        ),
        AddIndex(
            model_name="job",
            index=models.Index(fields=["task", "created_at"], name="jobs_of_task"),
        ),
        AddIndex(
            model_name="job",
            index=models.Index(fields=["queue", "created_at"], name="jobs_of_queue"),
        ),
        AddIndex(
            model_name="job",
            index=models.Index(
                condition=models.Q(("tenant", ""), _negated=True),
                fields=["tenant", "created_at"],
                name="jobs_of_tenant",
            ),
        ),
        AddIndex(
            model_name="job",
            index=models.Index(
                condition=models.Q(("finished_at__isnull", False)), fields=["state", "finished_at"], name="jobs_by_end"
            ),
        ),
        AddIndex(
            model_name="job",
            index=models.Index(
                condition=models.Q(("finished_at__isnull", False)),
                fields=["correlation_id"],
                name="jobs_by_correlation",
            ),
        ),
        RemoveIndex(
            model_name="job",
            name="jobs_unfinished_due",
        ),
        RemoveIndex(
            model_name="job",
            name="jobs_unfinished_lease",
        ),
        RemoveIndex(
            model_name="job",
            name="jobs_unfinished_queue",
        ),
        RemoveIndex(
            model_name="job",
            name="jobs_newest",
        ),
        RemoveIndex(
            model_name="job",
            name="jobs_newest_of_state",
        ),
        RemoveIndex(
            model_name="job",
            name="jobs_newest_of_task",
        ),
        ReplaceUnique(
            "job",
            models.UniqueConstraint(
                condition=models.Q(("finished_at__isnull", True)),
                fields=("task", "key"),
                name="one_unfinished_job_per_key",
            ),
            models.UniqueConstraint(
                condition=models.Q(("finished_at__isnull", True), ("key__isnull", False)),
                fields=("task", "key"),
                name="one_unfinished_job_per_key",
            ),
        ),
        Storage(
            "job",
            autovacuum_vacuum_scale_factor=0.02,
            autovacuum_vacuum_insert_scale_factor=0.02,
            autovacuum_analyze_scale_factor=0.02,
        ),
    ]
