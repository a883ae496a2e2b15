from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("jobs", "0002_checkpoints_schedules_epochs"),
    ]

    operations = [
        migrations.CreateModel(
            name="Census",
            fields=[
                ("name", models.CharField(max_length=50, primary_key=True, serialize=False)),
                ("until", models.DateTimeField(blank=True, null=True)),
                ("numbers", models.JSONField(default=dict)),
            ],
            options={
                "default_permissions": (),
            },
        ),
        migrations.CreateModel(
            name="Tally",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                (
                    "span",
                    models.CharField(
                        choices=[("ever", "ever"), ("day", "day"), ("hour", "hour"), ("minute", "minute")], max_length=6
                    ),
                ),
                ("begins", models.DateTimeField()),
                ("task", models.CharField(max_length=255)),
                ("queue", models.CharField(max_length=100)),
                (
                    "state",
                    models.CharField(
                        choices=[
                            ("pending", "pending"),
                            ("reserved", "reserved"),
                            ("running", "running"),
                            ("retrying", "retrying"),
                            ("completed", "completed"),
                            ("failed", "failed"),
                            ("cancelled", "cancelled"),
                        ],
                        max_length=10,
                    ),
                ),
                ("ended", models.BigIntegerField(default=0)),
                ("pruned", models.BigIntegerField(default=0)),
            ],
            options={
                "default_permissions": (),
            },
        ),
        migrations.AddConstraint(
            model_name="tally",
            constraint=models.UniqueConstraint(
                fields=("span", "begins", "task", "queue", "state"), name="one_tally_per_span"
            ),
        ),
    ]
