"""A private PostgreSQL and a private Redis for one measurement, and Django on top of them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from project.servers import PostgresServer, RedisServer

SETTINGS = {"shared_buffers": "1GB", "max_wal_size": "8GB", "maintenance_work_mem": "512MB"}


class Postgres(PostgresServer):
    """A server with the memory of a small one in production; everything else is PostgreSQL's default."""

    def command(self) -> list[str]:
        return [*super().command(), *(word for name, value in SETTINGS.items() for word in ("-c", f"{name}={value}"))]


@contextmanager
def staged(folder: Path | None = None) -> Iterator[Postgres]:
    """Servers of our own, running, with Django set up on them and the tables made."""
    with tempfile.TemporaryDirectory(prefix="mainstay-scale-") as made:
        directory = folder or Path(made)
        with Postgres(directory / "postgres") as postgres, RedisServer(directory / "redis") as redis:
            os.environ.update(
                DJANGO_SETTINGS_MODULE="tests.settings", SECRET_KEY="only-for-this-" + "x" * 50, DEBUG="0", HTTPS="0",
                ALLOWED_HOSTS="testserver", DATABASE_URL=postgres.url, BROKER_URL=redis.url,
            )  # fmt: skip
            import django
            from django.core.management import call_command

            django.setup()
            call_command("migrate", verbosity=0)
            yield postgres
