"""Our calls, as ``peers/producer.py`` asks for them."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from django.db import transaction

import project.celery
from tests.bench.peers import orders
from tests.bench.tasks import noop, tell

project.celery.app.set_current()


def enqueue(number: int) -> None:
    """One durable job."""
    noop.delay(number)


enqueue_inside = partial(orders.ordered_with, enqueue=enqueue)


def _enqueue_many(numbers: Sequence[int]) -> float:
    """Many jobs in one bulk; return the seconds that sending took after their rows had committed."""
    from jobs.bulk import bulk

    committed: list[float] = []
    with transaction.atomic():
        # The first of the callbacks that run once the rows are there, before those which send.
        transaction.on_commit(lambda: committed.append(time.perf_counter()))
        bulk(noop, numbers)
    return time.perf_counter() - committed[0]


def _flush() -> None:
    """Wait until the thread that sends has sent all."""
    from jobs import sender

    if not sender.flush():
        raise TimeoutError("messages still wait to be sent")


# Another checkout may be older than these.
if importlib.util.find_spec("jobs.bulk"):
    enqueue_many = _enqueue_many
if importlib.util.find_spec("jobs.sender"):
    flush = _flush


def ping(sent: int) -> None:
    """A job that tells when it began."""
    tell.delay(sent)


def ping_until_sent(sent: int) -> None:
    """The same, sent by the caller as where ``SEND_IN_THREAD`` is off."""
    from jobs import sender

    before, sender._in_caller = sender._in_caller, True
    try:
        ping(sent)
    finally:
        sender._in_caller = before


def release(count: int) -> dict[str, float]:
    """Let the conductor's chore hand to the broker what is due, and say how long it took for how many."""
    from jobs.conductor import Conductor

    chore = next(chore for name, _, chore in Conductor().chores() if name == "release")
    with transaction.atomic():
        for number in range(count):
            noop.apply_async((number,), countdown=0.001)
    time.sleep(0.01)
    released, began = 0, time.perf_counter()
    while gone := chore():
        released += gone
    return {"took": time.perf_counter() - began, "released": released}


def flood(numbers: Sequence[int]) -> None:
    """Many jobs of one tenant."""
    from jobs.bulk import bulk

    bulk(noop, numbers, tenant="flood")


def lone(sent: int) -> None:
    """A job of a tenant who has no other."""
    enqueue_one: Any = tell.apply_async  # typed without our options
    enqueue_one((sent,), tenant=f"lone {sent}")


def limited(count: int, limits: int) -> dict[str, float]:
    """Let the conductor's chore hand to the broker what stands in line, and say how long it took for how many."""
    from tests.bench import limited

    return limited.released(count, limits)
