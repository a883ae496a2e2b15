"""Checks of what the tasks declare."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from django.conf import settings
from django.core.checks import CheckMessage

from jobs import conf, declared
from jobs.checks.findings import PRIORITIES, error, name_of, rejects, scheme, unknown_priority, warning

# After so many seconds these brokers hand out a message again that is not acknowledged; Celery's defaults.
REDELIVERS: Final = {"redis": 3600, "rediss": 3600, "sentinel": 3600, "valkey": 3600, "sqs": 1800}


def of_tasks(app: Any) -> Iterator[CheckMessage]:
    """What the tasks declare."""
    try:
        tasks = declared.tasks(app)
    except Exception as wrong:
        yield error(
            "E004",
            f"The modules of the tasks cannot be imported: {type(wrong).__name__}: {wrong}",
            "Correct the declaration, or the module; the worker would not start either.",
            "tasks",
        )
        return
    yield from _duplicates(app)
    for name, task in tasks.items():
        if getattr(task, "tracked", True):
            yield from _of_tracked(app, name, task)
        elif not task.time_limit:
            yield warning(
                "W003",
                "This untracked task has no time limit: a body that hangs keeps its place in the worker for ever.",
                "Set time_limit on the task, or CELERY_TASK_TIME_LIMIT for all.",
                name,
            )


def _of_tracked(app: Any, name: str, task: Any) -> Iterator[CheckMessage]:
    yield from _queue(app, name, task)
    yield from _priority(app, name, task)
    yield from _limits(app, name, task)
    yield from _endless(name, task)
    if not task.acks_late:
        yield error(
            "E008",
            "acks_late is off: the message is forgotten before the job has run.",
            "Remove acks_late=False; at most one attempt holds a job, however often its message comes.",
            name,
        )
    if task.reject_on_worker_lost and not app.conf.task_reject_on_worker_lost:
        yield rejects("reject_on_worker_lost is on", name)


def _queue(app: Any, name: str, task: Any) -> Iterator[CheckMessage]:
    known = declared.queues(app)
    queue = name_of(getattr(task, "job_queue", None) or getattr(task, "queue", None) or "")
    if queue and known and queue not in known:
        yield error(
            "E005",
            f"The queue {queue!r} is unknown: each call would be refused.",
            f"Declare it in CELERY_TASK_QUEUES, or use one of: {', '.join(sorted(known))}.",
            name,
        )


def _priority(app: Any, name: str, task: Any) -> Iterator[CheckMessage]:
    own = [getattr(task, "job_priority", None), getattr(task, "priority", None)]
    for value in own:
        if value is not None and value != app.conf.task_default_priority and (sentence := unknown_priority(value)):
            yield error("E007", sentence, PRIORITIES, name)


def _limits(app: Any, name: str, task: Any) -> Iterator[CheckMessage]:
    hard = task.time_limit or conf.read(getattr(settings, "JOBS", {})).TIME_LIMIT
    soft = task.soft_time_limit
    inherited = soft == app.conf.task_soft_time_limit and task.time_limit != app.conf.task_time_limit
    if soft and soft > hard and not inherited:
        yield warning(
            "W009",
            f"The soft time limit ({soft:g} s) is above the hard one ({hard:g} s), which comes first; Mainstay sends "
            f"{hard * 0.9:g} s instead.",
            "Set soft_time_limit below time_limit.",
            name,
        )
    redelivered = _redelivers_after(app.conf)
    if redelivered and hard >= redelivered:
        yield error(
            "E009",
            f"The time limit ({hard:g} s) reaches the broker's visibility timeout ({redelivered:g} s): the message of "
            "a running job would be handed out again.",
            "Set CELERY_BROKER_TRANSPORT_OPTIONS = {'visibility_timeout': …} above the longest time limit.",
            name,
        )


def _redelivers_after(given: Any) -> float | None:
    """The visibility timeout of the broker, in seconds; None where it has none."""
    kind = scheme(given)
    if kind not in REDELIVERS:
        return None
    return float((given.broker_transport_options or {}).get("visibility_timeout", REDELIVERS[kind]))


def _endless(name: str, task: Any) -> Iterator[CheckMessage]:
    policy = getattr(task, "retry_policy", None)
    if task.max_retries is None and not getattr(policy, "max_attempts", None):
        yield warning(
            "W005",
            "max_retries is None, retries without end: Mainstay ends them after 1,000 attempts, with a dead letter.",
            "Set max_retries to how often it is worth trying.",
            name,
        )


def _duplicates(app: Any) -> Iterator[CheckMessage]:
    """Classes of ours whose name another task took first."""
    from jobs.task import Task

    for cls in _descendants(Task):
        first = app.tasks.get(getattr(cls, "name", None) or "")
        if first is None or vars(cls).get("abstract") or "_decorated" in vars(cls) or _path(type(first)) == _path(cls):
            continue
        yield error(
            "E010",
            f"Two tasks have this name: {_path(type(first))} and {_path(cls)}; only the first one runs.",
            "Give one of them another name.",
            cls.name,
        )


def _descendants(cls: type[Any]) -> Iterator[type[Any]]:
    for child in cls.__subclasses__():
        yield child
        yield from _descendants(child)


def _path(cls: type[Any]) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
