"""Which names occur: found by leaping through an index, never by reading the table."""

from __future__ import annotations

from collections.abc import Iterable

from django.conf import settings
from django.db import connections, router
from django.db.models import Model

from jobs.conf import current
from jobs.models import Job, Worker

MOST = 500


def occurring(model: type[Model], column: str, where: str = "1 = 1") -> list[str]:
    """The distinct values of an indexed text column, one leap of the index for each.

    ``where`` is SQL of ours, for an index that is partial.
    """
    connection = connections[router.db_for_read(model)]
    table, name = connection.ops.quote_name(model._meta.db_table), connection.ops.quote_name(column)
    sql = (
        f"WITH RECURSIVE leap(name) AS (SELECT MIN({name}) FROM {table} WHERE {where} UNION ALL "
        f"SELECT (SELECT MIN({name}) FROM {table} WHERE {where} AND {name} > leap.name) "
        "FROM leap WHERE leap.name IS NOT NULL) "
        f"SELECT name FROM leap WHERE name IS NOT NULL LIMIT {MOST}"
    )
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return [row[0] for row in cursor.fetchall()]


def queues() -> list[str]:
    """The queues that are declared, that workers read, or in which jobs wait."""
    waiting = occurring(Job, "queue", "finished_at IS NULL")
    return sorted({*current().QUEUES, *_declared(), *_read(), *waiting})


def _declared() -> Iterable[str]:
    return (getattr(queue, "name", str(queue)) for queue in getattr(settings, "CELERY_TASK_QUEUES", None) or ())


def _read() -> Iterable[str]:
    return (str(queue) for queues in Worker.objects.values_list("queues", flat=True) for queue in queues)
