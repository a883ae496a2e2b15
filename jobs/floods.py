"""Plain jobs that lie deep in the broker while others of their queue are in line: they are put in line too.

So a plain flood costs nothing while it is alone, and delays nobody by more than his turn. The messages that are left
of it are refused, or serve for the next release of their jobs.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from jobs import lifecycle, limits
from jobs.lifecycle import Column
from jobs.models import Job
from jobs.states import Priority, State

DEEP = 50  # plain jobs in the broker that nobody has begun
MOST = 1000  # that are taken back at once, the oldest first
LOOK_EVERY = 0.5  # seconds
RESTING = 20.0  # times as long as the last look took
IN_LINE = "waits for its turn"


@dataclass(slots=True)
class Look:
    """What was found of a queue the last time."""

    found: bool = False
    next_at: float = 0.0


_looks: dict[str, Look] = {}


def lies_before(queue: str) -> bool:
    """Whether plain jobs lie in the broker before those that are in line; where they are many, some are taken back."""
    look = _looks.setdefault(queue, Look())
    began = time.monotonic()
    if began >= look.next_at:
        look.found = _looked(queue)
        took = time.monotonic() - began
        look.next_at = time.monotonic() + max(LOOK_EVERY, RESTING * took)
    return look.found


def _looked(queue: str) -> bool:
    rows = Job.objects.using(lifecycle.alias()).filter(
        finished_at__isnull=True, queue=queue, priority=Priority.NORMAL, state=State.RESERVED, lane=""
    )
    found = list(rows.order_by("due_at").values_list("pk", "task", "tenant", "bound")[:MOST])
    if len(found) >= DEEP:
        ids = [lifecycle.prepared("id", row[0]) for row in found]
        lifecycle.move_all(
            [State.RESERVED], State.PENDING, f"id IN ({', '.join(['%s'] * len(ids))})", ids, IN_LINE,
            due_at=Column("due_at"), sends=0,
        )  # fmt: skip
        for task, tenant, bound in sorted({row[1:] for row in found}):
            alike = {"queue": queue, "priority": Priority.NORMAL.value, "tenant": tenant, "task": task, "bound": bound}
            lane = limits.lane(queue, Priority.NORMAL, tenant, task, bound)
            lifecycle.put_in_lane(lane, alike, MOST)
    return bool(found)
