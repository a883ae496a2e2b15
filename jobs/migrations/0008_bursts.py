from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("jobs", "0007_order_indexes"),
    ]

    operations = [
        migrations.CreateModel(
            name="Burst",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("task", models.CharField(max_length=255)),
                ("key", models.CharField(max_length=255)),
                ("after", models.BigIntegerField(default=0, help_text="the burst before it that its first caller saw")),
                ("job_id", models.UUIDField(db_index=True)),
                ("first_at", models.DateTimeField()),
                (
                    "quiet",
                    models.FloatField(
                        help_text="seconds without a call after which it goes; none for a throttle", null=True
                    ),
                ),
                ("span", models.FloatField(help_text="seconds that it waits at most, or that lie between two runs")),
                ("leading", models.BooleanField(default=False)),
                ("keep_first", models.BooleanField(default=False)),
                (
                    "went",
                    models.BooleanField(
                        default=False, help_text="whether its job was let go, and its start is to be kept"
                    ),
                ),
                ("look_at", models.DateTimeField(db_index=True, help_text="when the conductor looks at it next")),
            ],
            options={
                "default_permissions": (),
                "constraints": [
                    models.UniqueConstraint(fields=("task", "key", "after"), name="one_burst_comes_after_another")
                ],
            },
        ),
        migrations.CreateModel(
            name="Call",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("burst_id", models.BigIntegerField()),
                ("at", models.DateTimeField()),
                ("payload", models.TextField()),
                ("version", models.PositiveIntegerField(default=1)),
                ("bound", models.TextField(blank=True, default="")),
            ],
            options={
                "default_permissions": (),
                "indexes": [models.Index(fields=["burst_id", "at", "id"], name="calls_of_burst")],
            },
        ),
    ]
