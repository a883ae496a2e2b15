"""System checks: what is declared or set in a way that loses, doubles or strands jobs, each with its remedy.

They read settings and declarations only: never the broker, and the database only with ``--database``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from django.apps import apps
from django.conf import settings
from django.core.checks import CheckMessage, Error, Info, Tags, register
from django.core.checks import Warning as Caution
from django.core.exceptions import ImproperlyConfigured
from django.db import DEFAULT_DB_ALIAS, DatabaseError, connections, router

from jobs import conf, declared, publisher
from jobs.errors import JobsError
from jobs.states import priority_from

INSTALL: Final = "from jobs.celery import install; install(app)"

# After so many seconds these brokers hand out a message again that is not acknowledged; Celery's defaults.
REDELIVERS: Final = {"redis": 3600, "rediss": 3600, "sentinel": 3600, "valkey": 3600, "sqs": 1800}
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


@register("jobs")
def check(app_configs: Any = None, **kwargs: Any) -> list[CheckMessage]:
    """What is wrong in any environment."""
    found = [*of_settings(), *of_apps(), *of_databases()]
    if any(message.id == "jobs.E001" for message in found):
        return found
    try:
        app = publisher.in_use().app
    except JobsError:
        return [*found, _not_installed()]
    return [*found, *of_celery(app), *of_tasks(app)]


@register("jobs", deploy=True)
def check_deployment(app_configs: Any = None, **kwargs: Any) -> list[CheckMessage]:
    """What is wrong in production only."""
    try:
        app = publisher.in_use().app
    except JobsError:
        return [*of_deployment()]
    return [*of_deployment(), *_runs_eagerly(app)]


@register(Tags.database)
def check_schedules(app_configs: Any = None, databases: Any = None, **kwargs: Any) -> list[CheckMessage]:
    """Enabled schedules that cannot fire; they are rows, so this runs with ``--database`` only."""
    if not databases or not apps.is_installed("django_celery_beat"):
        return []
    from jobs.schedule import preview

    try:
        found = preview.problems()
    except DatabaseError:  # the tables are not there yet
        return []
    remedy = "Correct or disable it in the admin (Periodic tasks)."
    return [_warning("W013", f"This schedule is enabled and cannot fire: {why}", remedy, name) for name, why in found]


# --- Settings, apps, databases --------------------------------------------------------------------


def of_settings() -> Iterator[CheckMessage]:
    """The ``JOBS`` setting."""
    try:
        given = conf.read(getattr(settings, "JOBS", {}))
    except ImproperlyConfigured as error:
        yield _error("E001", str(error), "Correct JOBS in the settings; every entry has a default.", "JOBS")
        return
    if given.LEASE <= 2 * given.HEARTBEAT:
        yield _error(
            "E003",
            f"The lease ({given.LEASE:g} s) is not longer than two heartbeats ({given.HEARTBEAT:g} s each): "
            "one late heartbeat would take a running job from its worker.",
            "Set JOBS['LEASE'] to more than twice JOBS['HEARTBEAT'].",
            "JOBS",
        )


def of_apps() -> Iterator[CheckMessage]:
    """What must be installed beside this app."""
    if not apps.is_installed("dlq"):
        yield _warning(
            "W004",
            "The app 'dlq' is not installed: a failed job would have no dead letter, and could not be replayed.",
            "Add 'dlq' to INSTALLED_APPS and run manage.py migrate.",
            "INSTALLED_APPS",
        )


def of_databases() -> Iterator[CheckMessage]:
    """Where the rows live."""
    home = router.db_for_write(apps.get_model("jobs", "Job"))
    if apps.is_installed("dlq") and (letters := router.db_for_write(apps.get_model("dlq", "DeadLetter"))) != home:
        yield _error(
            "E012",
            f"Jobs live in the database {home!r}, dead letters in {letters!r}: a failure and its letter could not "
            "commit together.",
            "Let DATABASE_ROUTERS send the apps 'jobs' and 'dlq' to the same database.",
            "DATABASE_ROUTERS",
        )
    if home != DEFAULT_DB_ALIAS:
        yield _warning(
            "W008",
            f"Jobs live in the database {home!r}: what is enqueued inside a transaction of {DEFAULT_DB_ALIAS!r} does "
            "not commit or roll back with it.",
            f"Keep jobs in the database of your data, or enqueue inside transaction.atomic(using={home!r}); then "
            "silence this check.",
            "DATABASE_ROUTERS",
        )


def of_deployment() -> Iterator[CheckMessage]:
    """What a development machine may do."""
    if settings.DEBUG:
        yield _warning(
            "W006",
            "DEBUG is on: workers and the conductor keep the text of every query in memory.",
            "Set DEBUG to False.",
            "DEBUG",
        )
    home = router.db_for_write(apps.get_model("jobs", "Job"))
    if "sqlite" in connections.databases[home]["ENGINE"]:
        yield Info(
            "Jobs live in SQLite: one machine, one writer at a time.",
            hint="It is sound for small sites on one machine; with more, use PostgreSQL.",
            obj="DATABASES",
            id="jobs.I001",
        )


# --- The Celery app -------------------------------------------------------------------------------


def _not_installed() -> CheckMessage:
    return _error(
        "E002",
        "Mainstay is not installed on a Celery app, or the module of that app is not imported: calls would not "
        "become jobs.",
        f"Add to the module of the Celery app: {INSTALL}. Import it in the __init__ of the project's package.",
        "Celery",
    )


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
        yield _error(
            "E008",
            "task_acks_late is off: a message is forgotten before its job has run.",
            "Remove CELERY_TASK_ACKS_LATE; Mainstay turns it on.",
            "CELERY_TASK_ACKS_LATE",
        )
    if given.task_reject_on_worker_lost:
        yield _rejects("task_reject_on_worker_lost is on", "CELERY_TASK_REJECT_ON_WORKER_LOST")
    for name in ("task_acks_on_failure_or_timeout", "task_acks_on_failure", "task_acks_on_timeout"):
        if given.get(name) is False:
            yield _warning(
                "W007",
                f"{name} is off: the broker hands the message of a failed attempt out again, at once and for ever.",
                "Remove it; whether a failed job is tried again is decided by its retry policy.",
                f"CELERY_{name.upper()}",
            )


def _rejects(what: str, where: str) -> CheckMessage:
    return _warning(
        "W001",
        f"{what}: a job that kills its worker comes back at once, without a limit or a pause.",
        "Remove it; Mainstay gives such a job back by itself, with a cap and a backoff.",
        where,
    )


def _content(given: Any) -> Iterator[CheckMessage]:
    odd = sorted(set(map(str, given.accept_content or ())) - JSON)
    if odd or given.task_serializer not in JSON:
        yield _error(
            "E011",
            f"Messages are not JSON only (task_serializer is {given.task_serializer!r}, accept_content "
            f"{list(given.accept_content or ())}): a payload could not be kept, shown or edited.",
            "Remove CELERY_TASK_SERIALIZER and CELERY_ACCEPT_CONTENT, or set them to 'json' and ['json'].",
            "CELERY_ACCEPT_CONTENT",
        )


def _results(given: Any) -> Iterator[CheckMessage]:
    backend = str(given.result_backend or "")
    if backend and backend not in ("django-db", "disabled", "disabled://"):
        yield _warning(
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
            yield _error(
                "E006",
                f"The route of {pattern!r} leads to an unknown queue {queue!r}: the call would be refused.",
                f"Declare the queue, or use one of: {', '.join(sorted(known))}.",
                "CELERY_TASK_ROUTES",
            )


def _forgetful_queues(app: Any) -> Iterator[CheckMessage]:
    """Queues that RabbitMQ is told to empty or to delete by itself."""
    if not _scheme(app.conf).startswith(("amqp", "pyamqp")):
        return
    for queue in app.conf.task_queues or ():
        given = getattr(queue, "queue_arguments", None) or {}
        reasons = [name for name in FORGETFUL if given.get(name) is not None]
        reasons += ["auto_delete"] if getattr(queue, "auto_delete", False) else []
        reasons += [] if getattr(queue, "durable", True) else ["durable=False"]
        if reasons:
            yield _warning(
                "W010",
                f"RabbitMQ may forget messages of the queue {_name(queue)!r} by itself ({', '.join(reasons)}): each "
                "such job waits until its loss is noticed.",
                "Declare it durable and without limits; what waits is kept in the database anyway.",
                "CELERY_TASK_QUEUES",
            )


def _waits_for_confirmation(given: Any) -> Iterator[CheckMessage]:
    """Confirmations for everything that a worker says to RabbitMQ."""
    if _scheme(given).startswith(("amqp", "pyamqp")) and (given.broker_transport_options or {}).get("confirm_publish"):
        yield _warning(
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
                    yield str(getattr(pair[0], "pattern", pair[0])), _name(queue)


def _scheduler(given: Any) -> Iterator[CheckMessage]:
    scheduler = given.beat_scheduler
    name = scheduler if isinstance(scheduler, str) else f"{scheduler.__module__}:{scheduler.__qualname__}"
    wanted = apps.is_installed("django_celery_beat") or bool(given.beat_schedule)
    if wanted and name.replace(":", ".") in OTHER_SCHEDULERS:
        yield _warning(
            "W012",
            f"Schedules are fired by {name}, without a ledger: two beats fire twice, and a fire that is missed or "
            "interrupted may be lost or doubled.",
            "Add 'django_celery_beat' to INSTALLED_APPS, run manage.py migrate, and set "
            "CELERY_BEAT_SCHEDULER = 'jobs.schedule.scheduler:Scheduler'; entries of beat_schedule are taken over.",
            "CELERY_BEAT_SCHEDULER",
        )


def _default_priority(given: Any) -> Iterator[CheckMessage]:
    value = given.task_default_priority
    if value is not None and (sentence := _unknown_priority(value)):
        yield _error("E007", f"task_default_priority: {sentence}", _PRIORITIES, "CELERY_TASK_DEFAULT_PRIORITY")


def _runs_eagerly(app: Any) -> Iterator[CheckMessage]:
    if app.conf.task_always_eager:
        yield _error(
            "E013",
            "task_always_eager is on: tasks run inside the request that calls them, and no job is recorded.",
            "Remove CELERY_TASK_ALWAYS_EAGER.",
            "CELERY_TASK_ALWAYS_EAGER",
        )


# --- Tasks ----------------------------------------------------------------------------------------


def of_tasks(app: Any) -> Iterator[CheckMessage]:
    """What the tasks declare."""
    try:
        tasks = declared.tasks(app)
    except Exception as error:
        yield _error(
            "E004",
            f"The modules of the tasks cannot be imported: {type(error).__name__}: {error}",
            "Correct the declaration, or the module; the worker would not start either.",
            "tasks",
        )
        return
    yield from _duplicates(app)
    for name, task in tasks.items():
        if getattr(task, "tracked", True):
            yield from _of_tracked(app, name, task)
        elif not task.time_limit:
            yield _warning(
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
        yield _error(
            "E008",
            "acks_late is off: the message is forgotten before the job has run.",
            "Remove acks_late=False; at most one attempt holds a job, however often its message comes.",
            name,
        )
    if task.reject_on_worker_lost and not app.conf.task_reject_on_worker_lost:
        yield _rejects("reject_on_worker_lost is on", name)


def _queue(app: Any, name: str, task: Any) -> Iterator[CheckMessage]:
    known = declared.queues(app)
    queue = _name(getattr(task, "job_queue", None) or getattr(task, "queue", None) or "")
    if queue and known and queue not in known:
        yield _error(
            "E005",
            f"The queue {queue!r} is unknown: each call would be refused.",
            f"Declare it in CELERY_TASK_QUEUES, or use one of: {', '.join(sorted(known))}.",
            name,
        )


def _priority(app: Any, name: str, task: Any) -> Iterator[CheckMessage]:
    own = [getattr(task, "job_priority", None), getattr(task, "priority", None)]
    for value in own:
        if value is not None and value != app.conf.task_default_priority and (sentence := _unknown_priority(value)):
            yield _error("E007", sentence, _PRIORITIES, name)


_PRIORITIES = "Celery's priorities from 0 to 9 mean different things on each broker; Mainstay's are the same on all."


def _unknown_priority(value: Any) -> str:
    try:
        priority_from(value)
    except ValueError as error:
        return str(error)
    return ""


def _limits(app: Any, name: str, task: Any) -> Iterator[CheckMessage]:
    hard = task.time_limit or conf.read(getattr(settings, "JOBS", {})).TIME_LIMIT
    soft = task.soft_time_limit
    inherited = soft == app.conf.task_soft_time_limit and task.time_limit != app.conf.task_time_limit
    if soft and soft > hard and not inherited:
        yield _warning(
            "W009",
            f"The soft time limit ({soft:g} s) is above the hard one ({hard:g} s), which comes first; Mainstay sends "
            f"{hard * 0.9:g} s instead.",
            "Set soft_time_limit below time_limit.",
            name,
        )
    redelivered = _redelivers_after(app.conf)
    if redelivered and hard >= redelivered:
        yield _error(
            "E009",
            f"The time limit ({hard:g} s) reaches the broker's visibility timeout ({redelivered:g} s): the message of "
            "a running job would be handed out again.",
            "Set CELERY_BROKER_TRANSPORT_OPTIONS = {'visibility_timeout': …} above the longest time limit.",
            name,
        )


def _redelivers_after(given: Any) -> float | None:
    """The visibility timeout of the broker, in seconds; None where it has none."""
    scheme = _scheme(given)
    if scheme not in REDELIVERS:
        return None
    return float((given.broker_transport_options or {}).get("visibility_timeout", REDELIVERS[scheme]))


def _scheme(given: Any) -> str:
    url = given.broker_write_url or given.broker_url or ""
    return str(url[0] if isinstance(url, list | tuple) and url else url).partition("://")[0].partition("+")[0]


def _endless(name: str, task: Any) -> Iterator[CheckMessage]:
    policy = getattr(task, "retry_policy", None)
    if task.max_retries is None and not getattr(policy, "max_attempts", None):
        yield _warning(
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
        yield _error(
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


def _name(queue: Any) -> str:
    return str(getattr(queue, "name", queue))


def _error(number: str, sentence: str, remedy: str, what: str) -> Error:
    return Error(sentence, hint=remedy, obj=what, id=f"jobs.{number}")


def _warning(number: str, sentence: str, remedy: str, what: str) -> Caution:
    return Caution(sentence, hint=remedy, obj=what, id=f"jobs.{number}")
