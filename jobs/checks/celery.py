"""Checks of the Celery app: its own settings, where they would undo a promise."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from django.apps import apps
from django.core.checks import CheckMessage

from jobs import declared
from jobs.checks.findings import PRIORITIES, error, name_of, rejects, scheme, unknown_priority, warning

# Arguments of a queue with which RabbitMQ drops messages, or the queue, without being asked again.
FORGETFUL: Final = ("x-expires", "x-max-length", "x-max-length-bytes", "x-message-ttl")
# Schedulers of Celery and of django-celery-beat; whoever writes one of their own knows what it does.
OTHER_SCHEDULERS: Final = frozenset(
    {
        "celery.beat.PersistentScheduler",
        "celery.beat.Scheduler",
        "django",
        "django_celery_beat.schedulers.DatabaseScheduler",
    }
)
JSON: Final = frozenset({"json", "application/json"})


def of_celery(app: Any) -> Iterator[CheckMessage]:
    """Celery's own settings, where they would undo a promise."""
    yield from _acknowledging(app.conf)
    yield from _content(app.conf)
    yield from _results(app.conf)
    yield from _routes(app)
    yield from _forgetful_queues(app)
    yield from _waits_for_confirmation(app.conf)
    yield from _default_priority(app.conf)
    yield from _scheduler(app.conf)


def _acknowledging(given: Any) -> Iterator[CheckMessage]:
    if not given.task_acks_late:
        yield error(
            "E008",
            "task_acks_late is off: a message is forgotten before its job has run.",
            "Remove CELERY_TASK_ACKS_LATE; Mainstay turns it on.",
            "CELERY_TASK_ACKS_LATE",
        )
    if given.task_reject_on_worker_lost:
        yield rejects("task_reject_on_worker_lost is on", "CELERY_TASK_REJECT_ON_WORKER_LOST")
    for name in ("task_acks_on_failure_or_timeout", "task_acks_on_failure", "task_acks_on_timeout"):
        if given.get(name) is False:
            yield warning(
                "W007",
                f"{name} is off: the broker hands the message of a failed attempt out again, at once and for ever.",
                "Remove it; whether a failed job is tried again is decided by its retry policy.",
                f"CELERY_{name.upper()}",
            )


def _content(given: Any) -> Iterator[CheckMessage]:
    odd = sorted(set(map(str, given.accept_content or ())) - JSON)
    if odd or given.task_serializer not in JSON:
        yield error(
            "E011",
            f"Messages are not JSON only (task_serializer is {given.task_serializer!r}, accept_content "
            f"{list(given.accept_content or ())}): a payload could not be kept, shown or edited.",
            "Remove CELERY_TASK_SERIALIZER and CELERY_ACCEPT_CONTENT, or set them to 'json' and ['json'].",
            "CELERY_ACCEPT_CONTENT",
        )


def _results(given: Any) -> Iterator[CheckMessage]:
    backend = str(given.result_backend or "")
    if backend and backend not in ("django-db", "disabled", "disabled://"):
        yield warning(
            "W002",
            f"The result backend {backend.split('://')[0]} serves untracked tasks only: results of jobs are read off "
            "their rows. While it is down, Celery drops untracked tasks that it never ran.",
            "Remove CELERY_RESULT_BACKEND; django-celery-results then serves untracked tasks from the database.",
            "CELERY_RESULT_BACKEND",
        )


def _routes(app: Any) -> Iterator[CheckMessage]:
    known = declared.queues(app)
    for pattern, queue in _routed(app.conf.task_routes):
        if known and queue not in known:
            yield error(
                "E006",
                f"The route of {pattern!r} leads to an unknown queue {queue!r}: the call would be refused.",
                f"Declare the queue, or use one of: {', '.join(sorted(known))}.",
                "CELERY_TASK_ROUTES",
            )


def _forgetful_queues(app: Any) -> Iterator[CheckMessage]:
    """Queues that RabbitMQ is told to empty or to delete by itself."""
    if not scheme(app.conf).startswith(("amqp", "pyamqp")):
        return
    for queue in app.conf.task_queues or ():
        given = getattr(queue, "queue_arguments", None) or {}
        reasons = [name for name in FORGETFUL if given.get(name) is not None]
        reasons += ["auto_delete"] if getattr(queue, "auto_delete", False) else []
        reasons += [] if getattr(queue, "durable", True) else ["durable=False"]
        if reasons:
            yield warning(
                "W010",
                f"RabbitMQ may forget messages of the queue {name_of(queue)!r} by itself ({', '.join(reasons)}): each "
                "such job waits until its loss is noticed.",
                "Declare it durable and without limits; what waits is kept in the database anyway.",
                "CELERY_TASK_QUEUES",
            )


def _waits_for_confirmation(given: Any) -> Iterator[CheckMessage]:
    """Confirmations for everything that a worker says to RabbitMQ."""
    if scheme(given).startswith(("amqp", "pyamqp")) and (given.broker_transport_options or {}).get("confirm_publish"):
        yield warning(
            "W011",
            "confirm_publish is on for all that is sent: during an alarm of RabbitMQ a worker waits for the "
            "confirmation of its own events, and runs nothing.",
            "Remove it; messages of jobs are confirmed in any case.",
            "CELERY_BROKER_TRANSPORT_OPTIONS",
        )


def _routed(routes: Any) -> Iterator[tuple[str, str]]:
    """The patterns of ``task_routes`` with the queues that they name; functions are left alone."""
    for route in routes if isinstance(routes, list | tuple) else [routes]:
        pairs: Iterable[Any] = route.items() if isinstance(route, Mapping) else [route]
        for pair in pairs:
            if isinstance(pair, list | tuple) and len(pair) == 2:
                queue = pair[1].get("queue") if isinstance(pair[1], Mapping) else pair[1]
                if queue:
                    yield str(getattr(pair[0], "pattern", pair[0])), name_of(queue)


def _scheduler(given: Any) -> Iterator[CheckMessage]:
    scheduler = given.beat_scheduler
    name = scheduler if isinstance(scheduler, str) else f"{scheduler.__module__}:{scheduler.__qualname__}"
    wanted = apps.is_installed("django_celery_beat") or bool(given.beat_schedule)
    if wanted and name.replace(":", ".") in OTHER_SCHEDULERS:
        yield warning(
            "W012",
            f"Schedules are fired by {name}, without a ledger: two beats fire twice, and a fire that is missed or "
            "interrupted may be lost or doubled.",
            "Add 'django_celery_beat' to INSTALLED_APPS, run manage.py migrate, and set "
            "CELERY_BEAT_SCHEDULER = 'jobs.schedule.scheduler:Scheduler'; entries of beat_schedule are taken over.",
            "CELERY_BEAT_SCHEDULER",
        )


def _default_priority(given: Any) -> Iterator[CheckMessage]:
    value = given.task_default_priority
    if value is not None and (sentence := unknown_priority(value)):
        yield error("E007", f"task_default_priority: {sentence}", PRIORITIES, "CELERY_TASK_DEFAULT_PRIORITY")


def of_deployment(app: Any) -> Iterator[CheckMessage]:
    if app.conf.task_always_eager:
        yield error(
            "E013",
            "task_always_eager is on: tasks run inside the request that calls them, and no job is recorded.",
            "Remove CELERY_TASK_ALWAYS_EAGER.",
            "CELERY_TASK_ALWAYS_EAGER",
        )
