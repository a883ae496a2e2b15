"""Sending from a thread of this process, so that the caller of ``delay()`` waits for its row alone.

What was handed over goes out in the order of the calls. Where no thread can be relied on, the caller sends.
"""

from __future__ import annotations

import atexit
import logging
import math
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from django.db import connections

from jobs import conf

if TYPE_CHECKING:
    from jobs.models import Job

logger = logging.getLogger("jobs.sender")

# Sends jobs that were marked as sent at a time of the monotonic clock.
Send = Callable[[list["Job"], float], object]

PACE = 0.01  # seconds of rest after each sending: what comes meanwhile goes together, and costs a fraction
LATE = 0.05  # seconds after which the thread should have taken what was handed over
FULL = 10_000  # jobs that may wait; beyond, a slow broker slows its producers
MANY = 256  # jobs from which on their size is looked at
LARGE = 32_000_000  # characters of payloads that may wait
AT_ONCE = 1000  # jobs that are sent together
OUR_TURN = 5.0  # seconds that a caller who has to send waits for another one to finish
AT_EXIT = 5.0  # seconds that the end of a process waits for the rest to go
FORK_WAITS = 1.0  # seconds that a fork waits for the thread to have sent
LOOK_EVERY = 0.002  # seconds between two looks of ``flush``


class Handed(NamedTuple):
    """A job that was handed over, and when: both times by the monotonic clock."""

    job: Job
    marked: float
    send: Send
    at: float


class Line:
    """The jobs of this process that wait to be sent, and the thread that sends them.

    Appending takes no lock, or a signal's handler that enqueues could wait for the code that it interrupted.
    """

    def __init__(self) -> None:
        self._waiting: deque[Handed] = deque()
        self._turn = threading.Lock()  # whoever has it sends
        self._nothing_to_do = threading.Lock()  # the thread waits for it; to release it is to wake the thread
        self._nothing_to_do.acquire()
        self._starting = threading.Lock()
        self._stands_still = False
        self._thread: threading.Thread | None = None

    @property
    def idle(self) -> bool:
        """Whether nothing waits, and nobody sends."""
        return not self._waiting and not self._turn.locked()

    @property
    def full(self) -> bool:
        """Whether as much waits as may."""
        waiting = len(self._waiting)
        return waiting > FULL or (waiting > MANY and sum(len(one.job.payload) for one in list(self._waiting)) > LARGE)

    @property
    def late(self) -> bool:
        """Whether the first has waited for longer than it should, and nobody sends."""
        try:
            return time.monotonic() - self._waiting[0].at > LATE and not self._turn.locked()
        except IndexError:
            return False

    def add(self, jobs: Iterable[Job], marked: float, send: Send) -> None:
        """Put jobs behind those that wait."""
        now = time.monotonic()
        self._waiting.extend([Handed(job, marked, send, now) for job in jobs])

    def wake(self) -> None:
        """Let the thread look."""
        with suppress(RuntimeError):  # it is about to
            self._nothing_to_do.release()

    @property
    def served(self) -> bool:
        """Whether there is a thread."""
        return self._thread is not None and self._thread.is_alive()

    def serve(self) -> bool:
        """Start the thread unless it runs; False where there can be none."""
        return self.served or self._start()

    def is_served_by(self, thread: threading.Thread) -> bool:
        """Whether this is its thread."""
        return self._thread is thread

    def _start(self) -> bool:
        if not self._starting.acquire(blocking=False):
            return True  # somebody else is at it
        try:
            thread = threading.Thread(target=self._serve, name="mainstay-sender", daemon=True)
            thread.start()
            self._thread = thread
            _end_with_multiprocessing()
            return True
        except RuntimeError:  # there can be no more threads, or the interpreter is about to end
            return False
        finally:
            self._starting.release()

    def _serve(self) -> None:
        while True:
            self._nothing_to_do.acquire()
            with self._turn:
                try:
                    self._send_waiting()
                except Exception:
                    logger.exception("Jobs could not be sent, nor made pending again; the conductor finds them.")
                finally:
                    _close_connections()
            time.sleep(PACE)

    def send_here(self) -> None:
        """Send all that waits, unless somebody else is at it for long."""
        if self._turn.acquire(timeout=OUR_TURN):
            try:
                self._send_waiting(len(self._waiting))
            finally:
                self._turn.release()
        self.wake()  # for what came meanwhile, or could not be sent

    def _send_waiting(self, most: float = math.inf) -> None:
        while most > 0 and (handed := self._taken(min(most, AT_ONCE))):
            most -= len(handed)
            # By the oldest mark: what is marked again needs no evidence, what is not must not seem older than it is.
            handed[0].send([one.job for one in handed], min(one.marked for one in handed))

    def _taken(self, most: float) -> list[Handed]:
        taken: list[Handed] = []
        with suppress(IndexError):
            while len(taken) < most:
                taken.append(self._waiting.popleft())
        return taken

    # --- Forks ---

    def stand_still(self) -> None:
        """A fork is about to happen: a child must not inherit the locks that the thread holds (of SQLite)."""
        if self._turn.acquire(timeout=FORK_WAITS):
            self._stands_still = True

    def go_on(self) -> None:
        """It has happened."""
        if self._stands_still:
            self._stands_still = False
            self._turn.release()


def hand_over(jobs: list[Job], marked: float, send: Send, *, here: bool = False) -> None:
    """Let reserved jobs be sent, behind those that were handed over before.

    ``here`` says that the caller is to send: the thread would not see their rows, say.
    """
    line = _own_line()
    if not here and _by_thread() and line.serve():
        line.add(jobs, marked, send)
        if line.full or line.late:
            line.send_here()
        else:
            line.wake()
    elif line.idle:
        send(jobs, marked)
    else:
        line.add(jobs, marked, send)
        line.send_here()


def flush(timeout: float = AT_EXIT) -> bool:
    """Wait until what this process has handed over is with the broker, or pending again; return whether it is.

    ``timeout`` is in seconds. Where the process stands still between two requests, call it at the end of each.
    """
    until, line = time.monotonic() + timeout, _own_line()
    while not line.idle and time.monotonic() < until:
        if line.served:
            line.wake()
            time.sleep(LOOK_EVERY)
        else:
            line.send_here()
    return line.idle


def in_caller() -> None:
    """Send in the caller from now on, in this process and its children: a body that ended has its messages out."""
    global _in_caller
    _in_caller = True


def is_thread() -> bool:
    """Whether this is the thread that sends."""
    line = _lines.get(os.getpid())
    return line is not None and line.is_served_by(threading.current_thread())


def _by_thread() -> bool:
    return not _in_caller and not _ended and conf.current().SEND_IN_THREAD and _threads_run()


def _threads_run() -> bool:
    """Whether threads go on where the host is uWSGI, which stops them unless it is told otherwise."""
    options: Any = getattr(sys.modules.get("uwsgi"), "opt", None)
    return options is None or "enable-threads" in options or "threads" in options


def _close_connections() -> None:
    """The thread needs the database only where something failed."""
    for connection in connections.all(initialized_only=True):
        with suppress(Exception):
            connection.close()


def _end_with_multiprocessing() -> None:
    """The children of multiprocessing end without a word to ``atexit``."""
    process: Any = sys.modules.get("multiprocessing.process")
    if process is not None and process.parent_process() is not None:
        from multiprocessing.util import Finalize

        Finalize(None, _end, exitpriority=10)


@atexit.register
def _end() -> None:
    """Let the thread send the rest; whatever is enqueued even later is sent by its caller."""
    global _ended
    _ended = True
    if not flush(AT_EXIT):
        logger.warning("This process ends before all of its jobs were sent; the conductor sends the others.")


def _own_line() -> Line:
    """The line of this process: a forked child has no thread yet, and its parent sends what it had handed over.

    Made when it is first needed: by then gevent has put its own locks and threads in place.
    """
    line = _lines.get(os.getpid())  # uWSGI tells nobody that it forks
    return line if line is not None else _lines.setdefault(os.getpid(), Line())


def _before_fork() -> None:
    line = _lines.get(os.getpid())
    if line is not None and not line.is_served_by(threading.current_thread()):
        line.stand_still()


def _after_fork() -> None:
    line = _lines.get(os.getpid())
    if line is not None:
        line.go_on()


def _after_fork_in_child() -> None:
    _lines.clear()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)

_lines: dict[int, Line] = {}
_in_caller = False
_ended = False
