"""What a worker's main process and its children hand each other: a claim on the way in, an outcome back.

A child whose body returned hands the outcome over with its answer, where nothing but a statement is left to do. The
message is acknowledged when that has committed. Whoever dies before loses an outcome, not a job: it runs again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from time import monotonic
from typing import Any
from uuid import UUID

from celery.app.trace import task_has_custom
from celery.signals import task_success

from jobs import letterbox, lifecycle, publisher, signals
from jobs.lifecycle import Completion
from jobs.models import Job

SHORT = 0.1  # seconds that a job may take whose outcome is left to the main process
PATIENCE = 0.005  # seconds that a child waits for a claim that is on its way, before it asks for itself


@dataclass(frozen=True, slots=True)
class Claimed:
    """A job that was claimed before a child was free for it; without its row, it is not known whether it was.

    ``asked`` is by the heartbeat's clock, and not after the lease began. ``place`` is where a letter will lie with the
    row, of a claim that was still on its way when the job was handed out.
    """

    job_id: UUID
    token: UUID
    asked: float
    row: tuple[Any, ...] | None = None
    place: int | None = None

    def having(self, row: tuple[Any, ...]) -> Claimed:
        """The same, certain."""
        return replace(self, row=row)


class Answer(tuple[Any, ...]):  # noqa: SLOT001 (a tuple takes none)
    """What Celery's tracer answers with, and the outcome that is still to be recorded."""

    completion: Completion


class _Here(threading.local):
    """What this child, or this thread, was given for the task that it runs, and what it leaves."""

    takes = False
    until = 0.0
    claimed: Claimed | None = None
    left: Completion | None = None


_here = _Here()


@dataclass(frozen=True, slots=True)
class Inward:
    """What a child is told of its next job: its claim, if there is one; whether its outcome is taken."""

    claimed: Claimed | None
    takes: bool


def traced(told: Inward, trace: Callable[..., Any], *args: Any) -> Any:
    """Run a task in a child: with its claim, if it has one, and handing over what it leaves to record."""
    _here.takes, _here.claimed, _here.left = told.takes, told.claimed, None
    _here.until = monotonic() + SHORT
    try:
        answer = trace(*args)
    finally:
        _here.takes, _here.claimed = False, None
    return _with(_here.left, answer)


def _with(left: Completion | None, answer: Any) -> Any:
    if left is None:
        return answer
    handed = Answer(answer)
    handed.completion = left
    return handed


def claimed(job_id: UUID) -> Claimed | None:
    """The claim of a job that is to be run here now, if somebody has claimed it for us."""
    given, _here.claimed = _here.claimed, None
    if given is None or given.job_id != job_id:
        return None
    box = letterbox.made()
    if given.row is not None or given.place is None or box is None:
        return given
    row = box.wait(given.place, given.token, PATIENCE)
    return given if row is None else given.having(row)


def take(job: Job, result: str | None) -> bool:
    """Leave a completion to the main process; False where it has to be recorded here.

    So it has where somebody is told of it before Celery answers: by a hook of the task, or by a signal. So it has after
    a body that took long: the main process may have lost its broker meanwhile, and hear of nothing until it is back.
    """
    if (
        not _here.takes
        or monotonic() > _here.until
        or lifecycle.database().in_atomic_block
        or signals.lifecycle.has_listeners(Job)
    ):
        return False
    if job.token is None or task_success.receivers or _has_hooks(job.task):
        return False
    _here.takes, _here.left = False, Completion.of(job, result)
    return True


@lru_cache(maxsize=4096)
def _has_hooks(name: str) -> bool:
    task = publisher.in_use().app.tasks[name]
    return bool(task_has_custom(task, "on_success") or task_has_custom(task, "after_return"))
