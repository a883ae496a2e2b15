"""The process that enqueues, in the environment of whom it enqueues for: one order per line, one answer per line."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any


def main(name: str) -> None:
    """Serve the calls of a module until there are no more orders."""
    answers, sys.stdout = os.fdopen(os.dup(1), "w"), sys.stderr  # what a library prints is no answer
    os.dup2(2, 1)
    import django

    django.setup()
    calls = importlib.import_module(name)
    say(answers, ready=True)
    for line in sys.stdin:
        order = json.loads(line)
        try:
            say(answers, **ORDERS[order.pop("do")](calls, **order))
        except Exception as error:
            say(answers, error=f"{type(error).__name__}: {error}")


def say(answers: Any, **words: Any) -> None:
    """Give one answer."""
    answers.write(json.dumps(words) + "\n")
    answers.flush()


def one_by_one(calls: Any, numbers: Sequence[int], how: str) -> dict[str, Any]:
    """Make a call for each number; return what each took, in microseconds."""
    call: Callable[[int], object] = getattr(calls, how)
    took = []
    for number in numbers:
        began = time.perf_counter_ns()
        call(number)
        took.append((time.perf_counter_ns() - began) / 1000)
    return {"took_us": took}


def enqueue(calls: Any, first: int, count: int, inside: bool) -> dict[str, Any]:
    """Enqueue as a web request would, outside or inside a transaction; then wait for what is still to be sent."""
    took = one_by_one(calls, range(first, first + count), "enqueue_inside" if inside else "enqueue")
    began = time.perf_counter()
    flush(calls)
    return {**took, "sending": time.perf_counter() - began}


def flush(calls: Any) -> None:
    """Wait until all is sent, where somebody else than the caller sends it."""
    getattr(calls, "flush", lambda: None)()


def many(calls: Any, first: int, count: int, size: int) -> dict[str, Any]:
    """Enqueue many with the queue's own call for that, ``size`` at a time, or one by one where there is none."""
    numbers, began = range(first, first + count), time.perf_counter()
    own, sending = getattr(calls, "enqueue_many", None), 0.0
    for start in range(0, count, size):
        some = numbers[start : start + size]
        if own is None:
            one_by_one(calls, some, "enqueue")
        else:
            sending += own(some) or 0.0
    return {"took": time.perf_counter() - began - sending, "sending": sending, "own": own is not None}


def rest(calls: Any) -> dict[str, Any]:
    """Let PostgreSQL count now what this client has done, not when it has been idle for long."""
    flush(calls)
    from django.db import connection

    if connection.connection is not None and connection.vendor == "postgresql":
        with contextlib.suppress(Exception), connection.cursor() as cursor:  # PostgreSQL 14 cannot
            cursor.execute("SELECT pg_stat_force_next_flush()")
    return {}


def ping(calls: Any, until_sent: bool) -> dict[str, Any]:
    """Enqueue one job that tells when its body began; return the milliseconds until the call returned.

    With ``until_sent`` the call returns once the job is with the broker.
    """
    call = getattr(calls, "ping_until_sent", calls.ping) if until_sent else calls.ping
    began = time.monotonic_ns()
    call(began)
    return {"took_ms": (time.monotonic_ns() - began) / 1e6}


def flood(calls: Any, first: int, count: int) -> dict[str, Any]:
    """Enqueue many of one tenant, where there are tenants; of everybody else, simply many."""
    own = getattr(calls, "flood", None)
    if own is None:
        many(calls, first, count, count)
    else:
        own(range(first, first + count))
        flush(calls)
    return {}


def lone(calls: Any) -> dict[str, Any]:
    """Enqueue one job of somebody else by the means that a queue has for that; it tells when its body began."""
    calls.lone(time.monotonic_ns())
    return {}


def limited(calls: Any, count: int, limits: int) -> dict[str, Any]:
    """Hand rows with limits to the broker; return how many seconds it took."""
    return dict(calls.limited(count, limits))


def release(calls: Any, count: int) -> dict[str, Any]:
    """Hand rows that are due to the broker; return how many seconds it took."""
    return dict(calls.release(count))


ORDERS: dict[str, Callable[..., dict[str, Any]]] = {
    "enqueue": enqueue,
    "many": many,
    "ping": ping,
    "rest": rest,
    "release": release,
    "flood": flood,
    "lone": lone,
    "limited": limited,
}

if __name__ == "__main__":
    main(sys.argv[1])
