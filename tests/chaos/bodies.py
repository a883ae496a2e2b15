"""What the jobs of the matrix do, for the platform and for plain Celery alike: write the ledger, and misbehave."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from celery.signals import worker_init

from tests.chaos import ledger
from tests.chaos.ledger import NOBODY, Line

BEAT = 0.05  # seconds between two lines of a long body
CHECKPOINTED_ROWS = 10


class Transient(Exception):
    """Worth another try."""


class Broken(Exception):
    """No use to try again."""


@worker_init.connect
def forget(sender: Any, **_: Any) -> None:
    """Be a worker of the release before, which does not know the task that ``CHAOS_FORGET`` names."""
    name = os.environ.get("CHAOS_FORGET")
    for known in [task for task in sender.app.tasks if task.rpartition(".")[2] == name]:
        sender.app.tasks.pop(known)


class Ledger:
    """The ledger of one execution of a body."""

    def __init__(self, number: int, job: str, attempt: int, token: str = NOBODY) -> None:
        self.known = (number, job, attempt, os.getpid(), token)
        self.write("begin")

    def write(self, what: str) -> None:
        """Add a line."""
        ledger.append(os.environ["CHAOS_LEDGER"], str(Line(what, *self.known, ledger.now())))

    def last(self, seconds: float) -> None:
        """Work for as long, and let it be seen."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            time.sleep(min(BEAT, max(0.0, until - time.monotonic())))
            self.write("beat")

    def insist(self, seconds: float) -> None:
        """Work for as long, whatever anybody says: a body that does not stop when it is told to."""
        left = round(seconds / BEAT)
        while left > 0:
            try:
                while left > 0:
                    time.sleep(BEAT)
                    self.write("beat")
                    left -= 1
            except BaseException:
                continue

    def wait_for(self, gate: str) -> None:
        """Work until a file exists."""
        while not Path(gate).exists():
            self.last(BEAT)


def last_together(bodies: Sequence[Ledger], gate: str) -> None:
    """Work on several jobs in one call until a file exists, and let it be seen of each."""
    for written in bodies:
        written.write("beat")
    while not Path(gate).exists():
        time.sleep(BEAT)
        for written in bodies:
            written.write("beat")


def perform(written: Ledger, *, seconds: float, gate: str, how: str, attempt: int, until: int) -> None:
    """The body: work for ``seconds``, or until ``gate`` exists; misbehave in attempts before ``until``."""
    if how == "deaf" and attempt < until:
        written.insist(seconds)
    else:
        written.last(seconds)
    if gate:
        written.wait_for(gate)
    if attempt < until:
        MENU[how]()


def _raise(error: BaseException) -> Any:
    raise error


def _overflow(depth: int = 0) -> int:
    return _overflow(depth + 1) + 1


def _fill_memory() -> None:
    import resource

    before, hoard = resource.getrlimit(resource.RLIMIT_AS), []
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, before[1]))
    try:
        while True:
            hoard.append(bytearray(1 << 26))
    finally:
        hoard.clear()
        resource.setrlimit(resource.RLIMIT_AS, before)


def _overflow_the_stack() -> None:
    import faulthandler

    getattr(faulthandler, "_stack_overflow")()  # noqa: B009 (for tests, and not in its stub)


def _count_in_c() -> None:
    """Count in C for many minutes: other threads run, no signal is heard."""
    import hashlib

    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)


def _hold_the_interpreter() -> None:
    """Sleep in C without letting any other thread run."""
    import contextlib
    import ctypes

    while True:
        with contextlib.suppress(BaseException):  # the soft limit's, and whatever else tells it to stop
            ctypes.PyDLL(None).sleep(3600)


MENU: dict[str, Callable[[], Any]] = {
    "stack": _overflow_the_stack,
    "abort": os.abort,
    "vanish": lambda: os._exit(0),
    "in C": _count_in_c,
    "stuck": _hold_the_interpreter,
    "fine": lambda: None,
    "deaf": lambda: None,
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "transient": lambda: _raise(Transient("try again")),
    "broken": lambda: _raise(Broken("no use")),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "exit": lambda: _raise(SystemExit(3)),
    "memory": lambda: _raise(MemoryError("full")),
    "oom": _fill_memory,
    "overflow": _overflow,
    "hang": lambda: time.sleep(3600),
}
"""Misbehaviours by name, for ``how=``."""
