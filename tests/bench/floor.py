"""Below what no queue on these servers can go: one round trip, one commit, one sync of the disk."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from tests.bench import figures
from tests.bench.world import World

TIMES = 200
NAMES = {
    "select_us": "a round trip to PostgreSQL",
    "commit_us": "an INSERT of one row with its commit",
    "sync_us": "a sync of 8 kB to the disk",
    "ping_us": "a round trip to Redis",
}


def measured(world: World) -> dict[str, float]:
    """Microseconds of each, the median of many, from one client that does nothing else."""
    with world.postgres.connection() as connection, (world.directory / "synced").open("wb", buffering=0) as file:
        connection.execute("CREATE TABLE floor (number integer)")

        def sync() -> None:
            file.write(bytes(8192))
            os.fdatasync(file.fileno())

        found = {
            "select_us": took(lambda: connection.execute("SELECT 1")),
            "commit_us": took(lambda: connection.execute("INSERT INTO floor VALUES (1)")),
            "sync_us": took(sync),
            "ping_us": took(world.witness.ping),
        }
        connection.execute("DROP TABLE floor")
    return found


def took(act: Callable[[], object]) -> float:
    """The median of what an act takes, in microseconds."""
    seen = []
    for _ in range(TIMES):
        began = time.perf_counter_ns()
        act()
        seen.append((time.perf_counter_ns() - began) / 1000)
    return round(figures.quantile(seen, 0.5), 1)


def described(floor: dict[str, float]) -> str:
    """In words.

    >>> described({"select_us": 81.0, "commit_us": 913.4})
    'The floor here: a round trip to PostgreSQL 81.0 µs, an INSERT of one row with its commit 913 µs.'
    >>> described({"sync_us": 250.0, "sync_us_end": 900.0})
    'The floor here: a sync of 8 kB to the disk 250 (at the end 900) µs.'
    """
    parts = [f"{words} {_value(floor, name)} µs" for name, words in NAMES.items() if name in floor]
    return f"The floor here: {', '.join(parts)}." if parts else ""


def _value(floor: dict[str, float], name: str) -> str:
    """A figure, and that of the end where it was another one."""
    start, end = floor[name], floor.get(f"{name}_end")
    later = "" if end is None or 0.67 < end / start < 1.5 else f" (at the end {figures.short(end)})"
    return f"{figures.short(start)}{later}"
