"""Outcomes that children of the pool left, recorded by a thread of the main process: it waits for the database.

The event loop goes on meanwhile, and is told of each that is recorded.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

from django.db import Error

from jobs import conclusion, gate, lifecycle, outage, successors
from jobs.conclusion import Report
from jobs.errors import MoveRefused
from jobs.failures import Failure, Kind
from jobs.lifecycle import Completion
from jobs.models import Job
from jobs.states import State

logger = logging.getLogger("jobs.attempt")

MOST = 200  # completions in one statement
NO_ERROR = {"error_type": "", "error_message": "", "traceback": ""}

_database = outage.Outage(logger, "Outcomes wait for it.")


class Handed(NamedTuple):
    """An outcome that a child left, and what to do in the event loop when it is recorded."""

    completion: Completion
    then: Callable[[], Any]


class Completer:
    """Records one batch after the other."""

    def __init__(self) -> None:
        self._begin_anew()
        os.register_at_fork(after_in_child=self._begin_anew)

    def _begin_anew(self) -> None:
        """A child has no thread, and nothing to record."""
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._waiting: deque[Handed] = deque()
        self._recorded: deque[Handed] = deque()
        self._at_work = 0
        self._thread: threading.Thread | None = None
        self.soon: Callable[[Callable[[], Any]], Any] = lambda call: None

    def join(self, soon: Callable[[Callable[[], Any]], Any]) -> None:
        """Call this with what the event loop is to do soon."""
        self.soon = soon

    def record(self, handed: Handed) -> None:
        """Record an outcome, however long that takes."""
        with self._lock:
            self._waiting.append(handed)
            self._changed.notify_all()
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="mainstay-completer", daemon=True)
                self._thread.start()

    def go_on(self) -> None:
        """Go on with the messages whose jobs have been recorded: they are acknowledged now."""
        while self._recorded:
            settle(self._recorded.popleft())

    def finish(self, seconds: float | None = None) -> bool:
        """Wait until all that was left is recorded, for so many seconds at most; whether it is."""
        with self._lock:
            return self._changed.wait_for(lambda: not self._waiting and not self._at_work, seconds)

    def _run(self) -> None:
        while True:
            batch = self._next()
            locked = _record([handed.completion for handed in batch])
            self._recorded.extend(handed for handed in batch if handed.completion not in locked)
            with self._lock:
                self._waiting.extend(handed for handed in batch if handed.completion in locked)
                self._at_work -= len(batch)
                self._changed.notify_all()
            self.soon(self.go_on)

    def _next(self) -> list[Handed]:
        with self._lock:
            self._changed.wait_for(lambda: self._waiting)
            batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), MOST))]
            self._at_work += len(batch)
            return batch


_completer = Completer()
join, record, finish, go_on = _completer.join, _completer.record, _completer.finish, _completer.go_on


def settle(handed: Handed) -> None:
    """Go on with a message whose job has been recorded."""
    try:
        handed.then()
    except Exception:
        logger.exception("The message of job %s could not be settled.", handed.completion.job_id)


def _record(completions: Sequence[Completion]) -> set[Completion]:
    """Record them together, then one by one where that cannot be; return those whose rows somebody keeps locked.

    One that cannot be recorded at all costs the others nothing: its own job runs again.
    """
    left, locked = list(completions), set[Completion]()

    def together() -> None:
        with _connection():
            recorded = lifecycle.complete_many(left)
        left[:] = [one for one in left if one.job_id not in recorded]

    try:
        _unless_locked(together)
    except Exception:
        logger.warning("%d outcomes are recorded one by one: together they cannot be.", len(left), exc_info=True)
    for completion in left:
        try:
            if not _unless_locked(partial(_alone, completion)):
                locked.add(completion)
        except Exception:
            logger.exception("Job %s: its outcome could not be recorded; it runs again.", completion.job_id)
    return locked


def _unless_locked(act: Callable[[], None]) -> bool:
    """Do a database act, waiting for the database as long as it takes, but not for a row that somebody keeps locked."""

    def tried() -> bool:
        try:
            act()
        except Error as error:
            if not outage.locked(error):
                raise
            return False
        return True

    return outage.patiently(lifecycle.database(), tried, _database)


def _alone(completion: Completion) -> None:
    """Record one with what follows it, unless somebody else has decided about the job meanwhile."""
    with _connection(), lifecycle.without_waiting_long():
        job = lifecycle.seen(completion.job_id)
        if job is not None and job.attempt < completion.attempt:
            job = lifecycle.claim_again(completion.claimed()) or job
        if job is not None and (job.state, job.token) == (State.RUNNING, completion.token):
            _finish(job, completion.result)
        elif job is None or (job.state, job.token) != (State.COMPLETED, completion.token):
            logger.warning("Job %s: late: somebody else decided about it.", completion.job_id)


def _finish(job: Job, result: str | None) -> None:
    try:
        successors.finish(job, State.COMPLETED, "", result=result, **NO_ERROR)
    except MoveRefused as late:
        logger.warning("Job %s: late: %s", job.pk, late)
    except Exception as error:
        if outage.passing(error):
            raise
        known = Failure(Kind.PERMANENT, "its outcome could not be recorded")
        conclusion.conclude(job, known, Report.of(error))


@contextmanager
def _connection() -> Iterator[None]:
    """A child that is forked meanwhile must not inherit SQLite's locks; PostgreSQL's connections may be kept."""
    if lifecycle.database().vendor == "sqlite":
        with gate.talking():
            yield
    else:
        yield
