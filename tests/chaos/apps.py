"""What every process of a row does beside its work: sign its writes, and die at a statement if told to."""

from __future__ import annotations

from typing import Any

from django.apps import AppConfig
from django.db.backends.signals import connection_created

from tests.chaos import audit, seam


class ChaosConfig(AppConfig):
    """The tasks of the matrix, and the two eyes of its harness."""

    name = "tests.chaos"
    label = "chaos"

    def ready(self) -> None:
        """Watch over every connection that is opened."""
        connection_created.connect(_opened, weak=False, dispatch_uid="chaos")
        seam.know_children()


def _opened(sender: Any, connection: Any, **_: Any) -> None:
    if connection.vendor == "sqlite":
        connection.connection.create_function("chaos_writer", 0, audit.own_mark)
    else:
        with connection.connection.cursor() as cursor:
            cursor.execute(f"SET application_name = '{audit.own_mark()}'")
        if not connection.connection.autocommit:
            connection.connection.commit()
    seam.watch(connection)
