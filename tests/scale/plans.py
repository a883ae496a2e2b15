"""How many rows, and pages of memory, each operation makes the database read, by the plans of its statements.

``python -m tests.scale.plans 10000 300000`` tells it as JSON. Other than times, they are the same on a busy machine.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.scale.stage import staged

LARGE = {"jobs_job", "jobs_attempt", "dlq_deadletter"}


@dataclass(slots=True)
class Reading:
    """What the statements of one operation read: rows of the large tables, which of them from end to end, pages."""

    rows: int = 0
    pages: int = 0
    whole: set[str] = field(default_factory=set)
    _explaining: bool = False

    def __call__(self, execute: Any, sql: Any, params: Any, many: bool, context: Any) -> Any:
        """Explain each statement before it runs."""
        if not self._explaining and str(sql).lstrip("( ").upper().startswith(("SELECT", "WITH", "UPDATE", "DELETE")):
            self._explaining = True
            try:
                self._explain(str(sql), params)
            finally:
                self._explaining = False
        return execute(sql, params, many, context)

    def _explain(self, sql: str, params: Any) -> None:
        from django.db import connection, transaction

        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {sql}", params)
            (plan,) = cursor.fetchone()
            transaction.set_rollback(True)
        whole = (plan if isinstance(plan, list) else json.loads(plan))[0]["Plan"]
        self.pages += whole["Shared Hit Blocks"] + whole["Shared Read Blocks"]
        for node in _nodes(whole):
            if node.get("Relation Name") in LARGE or "Bitmap" in node["Node Type"]:
                read = node["Actual Rows"] + node.get("Rows Removed by Filter", 0)
                self.rows += int(read * node["Actual Loops"])
                if node["Node Type"] == "Seq Scan":
                    self.whole.add(node["Relation Name"])


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for below in plan.get("Plans", ()):
        yield from _nodes(below)


def readings(rows: int) -> dict[str, tuple[int, int, list[str]]]:
    """What each operation reads of a history of so many rows."""
    from django.db import connection

    from tests.scale import history, operations

    history.fill(rows)
    found = {}
    for each in operations.operations():
        if each.name in operations.CHANGING:
            each.act()
        reading = Reading()
        with connection.execute_wrapper(reading):
            each.act()
        found[each.name] = (reading.rows, reading.pages, sorted(reading.whole))
    return found


if __name__ == "__main__":
    with staged():
        sys.stdout.write(json.dumps([readings(int(rows)) for rows in sys.argv[1:]]))
