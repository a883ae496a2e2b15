"""Tasks whose bodies do as the test told them last: one of every kind of task, and every way to end."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from celery.exceptions import Ignore, Reject, WorkerShutdown
from django.contrib.auth.models import Group

from jobs import heartbeat
from jobs.errors import AmbiguousError, LeaseLost, PermanentError, RateLimited, Snooze, TransientError
from jobs.retry import RetryPolicy
from jobs.states import State
from jobs.task import FOREVER, IdempotentTask, Task, TransactionalTask, task

FEW = RetryPolicy(max_attempts=3, base=1, cap=60)


def _raise(error: BaseException) -> Any:
    raise error


def _ask(body: Any) -> None:
    body.retry(countdown=30)


def _replace(body: Any) -> None:
    body.replace(step.si("in its place"))


def _enqueue(body: Any) -> None:
    step.delay("a child")


ENDS: dict[str, Callable[[Any], Any]] = {
    "return": lambda body: None,
    "transient": lambda body: _raise(TransientError("try again")),
    "permanent": lambda body: _raise(PermanentError("no use")),
    "unclassified": lambda body: _raise(ValueError("odd")),
    "ambiguous": lambda body: _raise(AmbiguousError("did it?")),
    "rate limited": lambda body: _raise(RateLimited(retry_after=30)),
    "snooze": lambda body: _raise(Snooze(30)),
    "ask for a retry": _ask,
    "shut down": lambda body: _raise(WorkerShutdown(0)),
    "ignore": lambda body: _raise(Ignore("not today")),
    "reject": lambda body: _raise(Reject("unwanted", requeue=False)),
    "lose the lease": lambda body: _raise(LeaseLost("in time")),
    "out of memory": lambda body: _raise(MemoryError("full")),
    "exit": lambda body: _raise(SystemExit(3)),
    "no JSON": lambda body: None,
    "replace": _replace,
    "enqueue": _enqueue,
}

# Where an attempt that still holds its job may take it. Of a job that was asked to stop, see ``test_one_by_one``.
MAY_BECOME: dict[str, set[State]] = {
    "return": {State.COMPLETED},
    "transient": {State.RETRYING, State.FAILED},
    "permanent": {State.FAILED},
    "unclassified": {State.FAILED},
    "ambiguous": {State.RETRYING, State.FAILED},
    "rate limited": {State.RETRYING},
    "snooze": {State.PENDING},
    "ask for a retry": {State.RETRYING, State.FAILED},
    "shut down": {State.PENDING},
    "ignore": {State.CANCELLED},
    "reject": {State.FAILED},
    "lose the lease": {State.RETRYING, State.FAILED},
    "out of memory": {State.RETRYING, State.FAILED},
    "exit": {State.RETRYING, State.FAILED},
    "no JSON": {State.FAILED},
    "replace": {State.PENDING, State.COMPLETED},
    "enqueue": {State.COMPLETED},
}

END = "return"


def told(end: str) -> None:
    """From now on bodies end so."""
    global END
    END = end


def _act(body: Any, result: Any) -> Any:
    ENDS[END](body)
    return object() if END == "no JSON" else result


@task(bind=True, retry_policy=FEW)
def step(self: Any, name: str) -> Any:
    """A plain task: running it twice may do harm."""
    return _act(self, name)


@task(bind=True, retry_policy=FEW)
def then(self: Any, before: Any, name: str) -> Any:
    """The next of a chain, or a link: it gets what came before."""
    return _act(self, name)


@task(bind=True, retry_policy=FEW)
def gather(self: Any, values: list[Any]) -> Any:
    """The body of a chord."""
    return _act(self, values)


@task(bind=True, retry_policy=FEW)
def mourn(self: Any, job_id: str) -> Any:
    """What is linked to a failure."""
    return _act(self, job_id)


class Unfinished(IdempotentTask):
    """A key that holds while its job is unfinished."""

    key = "{name}"
    retry_policy = FEW

    def run(self, name: str) -> Any:
        return _act(self, name)


class Hourly(IdempotentTask):
    """A key that holds for an hour."""

    key = "{name}"
    key_scope = timedelta(hours=1)
    retry_policy = FEW

    def run(self, name: str) -> Any:
        return _act(self, name)


class Ever(IdempotentTask):
    """A key that holds for ever."""

    key = "{name}"
    key_scope = FOREVER
    retry_policy = FEW

    def run(self, name: str) -> Any:
        return _act(self, name)


class Book(TransactionalTask):
    """Writes a row that says which job wrote it, and ends as told."""

    retry_policy = FEW

    def run(self, name: str) -> Any:
        watched = heartbeat.watched(self._job) if self._job else None
        assert watched is not None
        Group.objects.create(name=f"{watched.job.pk} {watched.job.attempt}")
        return _act(self, name)


KEYED: dict[str, type[Task]] = {"while unfinished": Unfinished, "for an hour": Hourly, "for ever": Ever}
