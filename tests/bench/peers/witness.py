"""What every body does, ours and the peers': one Redis command on a kept connection, to a server for that alone."""

from __future__ import annotations

import os
import time
from functools import cache

from redis import Redis

PICKUPS = "pickups"


@cache
def client(pid: int) -> Redis:
    """The client of this process; a forked child gets one of its own."""
    return Redis.from_url(os.environ["BENCH_WITNESS"])


def ran(number: int) -> None:
    """The body of a job that does nothing: an independent server counts it, under its own number."""
    client(os.getpid()).execute_command("INCR", number)  # type: ignore[no-untyped-call]


def began(sent: int) -> None:
    """The body of a job that tells how long it was on its way, by the clock that all processes share."""
    client(os.getpid()).rpush(PICKUPS, time.monotonic_ns() - sent)
