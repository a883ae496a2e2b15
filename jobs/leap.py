"""Which names occur: found by leaping through an index, never by reading the table."""

from __future__ import annotations

from django.db import connections, router
from django.db.models import Model

MOST = 500  # names that a person is offered
ALL = 100_000  # where a name is looked for


def occurring(model: type[Model], column: str, where: str = "1 = 1", most: int = MOST) -> list[str]:
    """The distinct values of an indexed text column, one leap of the index for each.

    ``where`` is SQL of ours, for an index that is partial.
    """
    connection = connections[router.db_for_read(model)]
    table, name = connection.ops.quote_name(model._meta.db_table), connection.ops.quote_name(column)
    sql = (
        f"WITH RECURSIVE leap(name) AS (SELECT MIN({name}) FROM {table} WHERE {where} UNION ALL "
        f"SELECT (SELECT MIN({name}) FROM {table} WHERE {where} AND {name} > leap.name) "
        "FROM leap WHERE leap.name IS NOT NULL) "
        f"SELECT name FROM leap WHERE name IS NOT NULL LIMIT {most}"
    )
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return [row[0] for row in cursor.fetchall()]
