"""A table of the jobs that run together."""

from typing import ClassVar

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies: ClassVar = [("jobs", "0010_panel")]

    operations: ClassVar = [
        migrations.CreateModel(
            name="ChunkMember",
            fields=[
                ("job_id", models.UUIDField(primary_key=True, serialize=False)),
                ("leader_id", models.UUIDField(db_index=True)),
            ],
            options={"default_permissions": ()},
        ),
    ]
