"""Our tasks with limits, and how fast jobs of theirs are released."""

from __future__ import annotations

import os
import time
from typing import Any

from jobs import lifecycle
from jobs.bulk import bulk
from jobs.conductor import Conductor
from jobs.models import Worker
from jobs.task import Concurrency, Rate, task
from tests.bench.peers import witness

CUSTOMERS, PLENTY = 50, 10**6


def customer(number: int) -> str:
    """One of fifty."""
    return f"customer {number % CUSTOMERS}"


@task
def free(number: int) -> None:
    """No limit."""
    witness.ran(number)


@task(limits=[Concurrency(customer, PLENTY)])
def once(number: int) -> None:
    """One limit."""
    witness.ran(number)


@task(limits=[Concurrency(customer, PLENTY), Concurrency("{task}", PLENTY), Rate("gateway", f"{PLENTY}/s")])
def thrice(number: int) -> None:
    """Three limits."""
    witness.ran(number)


TASKS: dict[int, Any] = {0: free, 1: once, 3: thrice}


def released(count: int, limits: int) -> dict[str, float]:
    """Release so many jobs of one tenant with so many limits each, to workers with hands for all."""
    now = lifecycle.database_now()
    Worker.objects.create(
        name="plenty", pid=os.getpid(), started_at=now, seen_at=now, queues=["default"], concurrency=count
    )
    bulk(TASKS[limits], range(count), tenant="one")
    chore = next(chore for name, _, chore in Conductor().chores() if name == "release")
    gone, began = 0, time.perf_counter()
    while more := chore():
        gone += more
    return {"took": time.perf_counter() - began, "released": gone}
