import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("jobs", "0005_tagged"),
    ]

    operations = [
        migrations.CreateModel(
            name="Allotment",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                (
                    "kind",
                    models.CharField(
                        choices=[
                            ("slots", "jobs at a time"),
                            ("tokens", "jobs in a span of time"),
                            ("weight", "weight of a tenant"),
                        ],
                        max_length=10,
                    ),
                ),
                ("name", models.CharField(help_text="a key, the template of keys, or a tenant", max_length=255)),
                ("amount", models.FloatField(help_text="how many; of a rate, in a second")),
                ("burst", models.FloatField(help_text="of a rate, how many may start at once")),
                ("said", models.CharField(help_text="as it was said", max_length=100)),
                ("reason", models.CharField(blank=True, default="", max_length=255)),
                ("by", models.CharField(blank=True, default="", max_length=150)),
                ("created_at", models.DateTimeField()),
            ],
            options={
                "default_permissions": ("view",),
            },
        ),
        migrations.CreateModel(
            name="Arrival",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("job_id", models.UUIDField()),
            ],
            options={
                "default_permissions": (),
            },
        ),
        migrations.CreateModel(
            name="Bucket",
            fields=[
                ("key", models.CharField(max_length=255, primary_key=True, serialize=False)),
                ("tokens", models.FloatField()),
                ("filled_at", models.DateTimeField()),
                (
                    "wake_at",
                    models.DateTimeField(
                        db_index=True, help_text="when the lanes are opened that wait for it", null=True
                    ),
                ),
                (
                    "full_at",
                    models.DateTimeField(
                        db_index=True, help_text="from when on it says nothing that is not so", null=True
                    ),
                ),
            ],
            options={
                "default_permissions": (),
            },
        ),
        migrations.CreateModel(
            name="Lane",
            fields=[
                ("id", models.CharField(max_length=32, primary_key=True, serialize=False)),
                ("task", models.CharField(max_length=255)),
                ("bound", models.TextField(blank=True, default="")),
                ("head_at", models.DateTimeField(help_text="when its first job became due")),
                ("open_at", models.DateTimeField(help_text="when it is looked at next")),
                (
                    "waits_on",
                    models.CharField(blank=True, default="", help_text="the key that has nothing left", max_length=255),
                ),
                ("priority", models.PositiveSmallIntegerField(default=0)),
                ("turn", models.FloatField(default=0.0, help_text="that of its share, when it was closed")),
            ],
            options={
                "default_permissions": (),
            },
        ),
        migrations.CreateModel(
            name="Share",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("queue", models.CharField(max_length=100)),
                ("priority", models.PositiveSmallIntegerField()),
                ("tenant", models.CharField(blank=True, default="", max_length=100)),
                ("turn", models.FloatField(default=0.0, help_text="how much was released so far, by its weight")),
                (
                    "is_open",
                    models.BooleanField(default=False, help_text="whether one of its lanes may have a job to release"),
                ),
                ("open_at", models.DateTimeField(help_text="since when, or when next", null=True)),
            ],
            options={
                "default_permissions": (),
            },
        ),
        migrations.CreateModel(
            name="Slot",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("job_id", models.UUIDField()),
                ("key", models.CharField(blank=True, default="", max_length=255)),
            ],
            options={
                "default_permissions": (),
            },
        ),
        migrations.AddField(
            model_name="job",
            name="bound",
            field=models.TextField(blank=True, db_default="", default="", help_text="the keys of its limits, as JSON"),
        ),
        migrations.AddField(
            model_name="job",
            name="lane",
            field=models.CharField(
                blank=True,
                db_default="",
                default="",
                help_text="its line, where something constrains it",
                max_length=32,
            ),
        ),
        migrations.AddConstraint(
            model_name="allotment",
            constraint=models.UniqueConstraint(fields=("kind", "name"), name="allotted_once"),
        ),
        migrations.AddConstraint(
            model_name="allotment",
            constraint=models.CheckConstraint(condition=models.Q(("amount__gt", 0)), name="allotments_allow_something"),
        ),
        migrations.AddIndex(
            model_name="share",
            index=models.Index(
                condition=models.Q(("is_open", True)),
                fields=["queue", "priority", "turn", "open_at"],
                name="shares_by_turn",
            ),
        ),
        migrations.AddIndex(
            model_name="share",
            index=models.Index(
                condition=models.Q(("is_open", True)), fields=["queue", "priority", "open_at"], name="shares_by_age"
            ),
        ),
        migrations.AddIndex(
            model_name="share",
            index=models.Index(condition=models.Q(("is_open", False)), fields=["open_at"], name="shares_to_open"),
        ),
        migrations.AddConstraint(
            model_name="share",
            constraint=models.UniqueConstraint(fields=("queue", "priority", "tenant"), name="one_share_per_tenant"),
        ),
        migrations.AddField(
            model_name="lane",
            name="share",
            field=models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name="lanes", to="jobs.share"),
        ),
        migrations.AddIndex(
            model_name="slot",
            index=models.Index(fields=["key"], name="slots_of_key"),
        ),
        migrations.AddConstraint(
            model_name="slot",
            constraint=models.UniqueConstraint(fields=("job_id", "key"), name="one_slot_per_job_and_key"),
        ),
        migrations.AddIndex(
            model_name="lane",
            index=models.Index(fields=["share", "open_at"], name="lanes_by_age"),
        ),
        migrations.AddIndex(
            model_name="lane",
            index=models.Index(
                condition=models.Q(("waits_on", ""), _negated=True),
                fields=["waits_on", "priority", "turn", "head_at"],
                name="lanes_closed",
            ),
        ),
    ]
