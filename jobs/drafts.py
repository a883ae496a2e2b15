"""From a call to a row that is not yet inserted: options checked, payload typed, key made."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from typing import Any

from django.db.models.base import ModelState

from jobs import conf, context, idempotency, lifecycle, limits, options, payload, plain, windows
from jobs.breaker import Breaker
from jobs.errors import KeyCannotBeMade, OptionError, PayloadError
from jobs.idempotency import NO_KEY, WHILE_UNFINISHED, KeyScope
from jobs.ids import new_id
from jobs.lifecycle import NOW, Clock
from jobs.models import Job
from jobs.payload import Payload
from jobs.retry import RetryPolicy
from jobs.states import State
from jobs.windows import Window

DEFAULT_POLICY = RetryPolicy()


@dataclass(frozen=True, slots=True)
class Declaration:
    """What a task says of itself, whatever class it has."""

    name: str
    body: Any = None
    typed: bool = False
    queue: str | None = None
    priority: Any = None
    key: Any = NO_KEY
    key_scope: KeyScope = WHILE_UNFINISHED
    version: int = 1
    upcasters: Any = None
    idempotent: bool = False
    transactional: bool = False
    retry_policy: RetryPolicy = DEFAULT_POLICY
    limits: tuple[limits.Limit | limits.Gather, ...] = ()
    window: Window | None = None
    breakers: tuple[Breaker, ...] = ()
    retry_priority: Any = None
    chunked: bool = False
    max_attempts: int | None = None
    time_limit: float | None = None
    soft_time_limit: float | None = None

    @property
    def allowed(self) -> int:
        """How many attempts a job of this task may take."""
        return self.max_attempts or self.retry_policy.max_attempts or int(conf.current().MAX_ATTEMPTS)


def declaration(name: str, task: Any) -> Declaration:
    """Read a task's declaration off the task; of an unknown task, the defaults."""
    if task is None:
        return Declaration(name)
    # What was read is kept for as long as the task still says the same.
    says = [name, type(task), *(getattr(task, attribute, None) for attribute in _SAID)]
    kept: tuple[list[Any], Declaration] | None = vars(task).get("mainstay_declared")
    if kept is None or kept[0] != says:
        kept = task.mainstay_declared = (says, _read(name, task))
    return kept[1]


_SAID = (
    "run", "typed", "job_queue", "job_priority", "key", "key_scope", "version", "upcasters", "idempotent",
    "transactional", "retry_policy", "limits", "breakers", "retry_priority", "debounce", "throttle", "max_retries",
    "time_limit", "soft_time_limit",
)  # fmt: skip


def _read(name: str, task: Any) -> Declaration:
    if getattr(type(task), "adopted_class", False):
        return _of_others(name, task)
    policy = getattr(task, "retry_policy", None) or DEFAULT_POLICY
    chunked = getattr(task, "chunked", False)
    return Declaration(
        name=name, body=task.body_of_one() if chunked else task.run, typed=getattr(task, "typed", False),
        queue=getattr(task, "job_queue", None), priority=getattr(task, "job_priority", None),
        key=_key_of(task), key_scope=getattr(task, "key_scope", WHILE_UNFINISHED),
        version=getattr(task, "version", 1), upcasters=getattr(task, "upcasters", None),
        idempotent=getattr(task, "idempotent", False), transactional=getattr(task, "transactional", False),
        retry_policy=policy, chunked=chunked, breakers=tuple(getattr(task, "breakers", ())),
        limits=(*getattr(task, "limits", ()), *([task.gather()] if chunked else [])),
        retry_priority=getattr(task, "retry_priority", None), window=_window_of(task),
        max_attempts=None if policy.max_attempts else _of_celery(task),
        time_limit=getattr(task, "time_limit", None), soft_time_limit=getattr(task, "soft_time_limit", None),
    )  # fmt: skip


def _of_others(name: str, task: Any) -> Declaration:
    """What a task with a base class of somebody else says: its attributes of our names mean something else."""
    return Declaration(
        name, body=task.run, queue=getattr(task, "job_queue", None), priority=getattr(task, "job_priority", None),
        max_attempts=_of_celery(task), time_limit=getattr(task, "time_limit", None),
        soft_time_limit=getattr(task, "soft_time_limit", None),
    )  # fmt: skip


def _key_of(task: Any) -> Any:
    """The key as it was declared: a function of the arguments, which must not be bound to the task."""
    key = inspect.getattr_static(type(task), "key", NO_KEY)
    return key.__func__ if isinstance(key, staticmethod) else key


def _window_of(task: Any) -> Window | None:
    """The burst that each call belongs to, where the task says one."""
    for option, kind in windows.KINDS.items():
        value = getattr(task, option, None)
        if isinstance(value, kind):
            return value
        if value is not None and not callable(value):  # a method of this name means something else
            raise OptionError(f"The {option} of {task.name} must be a {kind.__name__}(…), not {value!r}.")
    return None


def _of_celery(task: Any) -> int | None:
    """Celery's ``max_retries`` as a number of attempts, where the task set its own."""
    for cls in type(task).__mro__:
        if cls.__module__.startswith("celery."):
            return None
        if "max_retries" in vars(cls):
            retries = vars(cls)["max_retries"]
            return 1000 if retries is None else max(1, int(retries) + 1)
    return None


def draft(
    name: str, task: Any, args: Any, kwargs: Any, given: dict[str, Any], app_timezone: Any, *, handed_on: bool = False
) -> Job:
    """Build the row of one call; ``handed_on`` by another job, it is told of no error that comes too late.

    Raises ``PayloadError``, ``KeyCannotBeMade`` or ``OptionError``; nothing is left behind.
    """
    says = declaration(name, task)
    job = _usual(says, task, given) or outline(says, given, app_timezone, handed_on=handed_on)
    window = windows.chosen(name, says.window, given)
    fill(job, says, _payload(name, args, kwargs), given.get("key"), window, handed_on=handed_on)
    return job


def outline(says: Declaration, given: dict[str, Any], app_timezone: Any, *, handed_on: bool = False) -> Job:
    """All of a row but its payload and its key. Raises ``OptionError``."""
    options.check_names(says.name, given)
    job = _blank(says, given)
    _time(job, given, app_timezone, late=handed_on)
    job.queue = _queue(given, says)
    job.delivery = _delivery(given)
    for name in _TEXTS:
        if given.get(name) and not plain.storable(getattr(job, name)):
            raise OptionError(f"{name} has a character that not every database can keep: {given[name]!r}.")
    return job


# What a call may be given that its row does not say.
_UNSAID = frozenset({"task_type", "result_cls", "ignore_result", "add_to_parent", "retry", "retry_policy", "producer"})


def _usual(says: Declaration, task: Any, given: dict[str, Any]) -> Job | None:
    """A row as ``outline`` makes it for a call that says nothing of its own; None for other calls.

    Celery gives each call what the task itself says of its serializer and its limits.
    """
    if task is None or context.correlation_id():
        return None
    of_the_task = {"serializer": "json", "time_limit": says.time_limit, "soft_time_limit": says.soft_time_limit}
    for name, value in given.items():
        if name not in _UNSAID and (name not in of_the_task or value != of_the_task[name]):
            return None
    kept: tuple[Declaration, Any, Job] | None = vars(task).get("mainstay_outline")
    if kept is None or kept[0] is not says or kept[1] is not conf.current():
        kept = task.mainstay_outline = (says, conf.current(), outline(says, {}, None))
    job = next(copies(kept[2]))
    job.tags, job.metadata = [], {}
    return job


def copies(outlined: Job) -> Iterator[Job]:
    """New jobs with the same outline, without end."""
    fields = outlined.__dict__
    own_root = outlined.root_id == outlined.id
    own_correlation = own_root and outlined.correlation_id == str(outlined.id)
    while True:
        job, job_id = Job.__new__(Job), new_id()
        given = job.__dict__
        given.update(fields)
        given["_state"], given["id"] = ModelState(), job_id
        if own_root:
            given["root_id"] = job_id
        if own_correlation:
            given["correlation_id"] = str(job_id)
        yield job


_TEXTS = ("tenant", "tags", "metadata", "correlation_id")


def _payload(name: str, args: Any, kwargs: Any) -> Payload:
    """The arguments of a call, once it is known that they are a list and a mapping by name."""
    if not isinstance(args, list | tuple | None):
        raise PayloadError(f"args of {name} must be a list or a tuple, not {args!r}.")
    if not isinstance(kwargs, Mapping | None) or not all(isinstance(key, str) for key in kwargs or ()):
        raise PayloadError(f"kwargs of {name} must be a dictionary by parameter name, not {kwargs!r}.")
    return Payload(tuple(args or ()), dict(kwargs or {}))


def fill(
    job: Job, says: Declaration, content: Payload, key: str | None = None, window: Window | None = None, *,
    handed_on: bool = False,
) -> None:  # fmt: skip
    """Put a payload into a draft: checked, coerced, encoded, and its keys made, once all of it is known.

    What other jobs ``handed_on`` (the results of a chord) may be as large as a canvas.
    """
    if content.waits() or content.reports():
        job.payload = payload.encode(content)
        return
    if says.body is not None:
        content = (payload.coerce if says.typed else _fitting)(says.body, content, says.name)
    size = conf.current().CANVAS_LIMIT if handed_on else conf.current().PAYLOAD_LIMIT
    job.payload = payload.limit(payload.encode(content), int(size), says.name)
    if window is None:
        job.key = _key(says, content, key)
    else:
        job.window = _bound(says, content, key, window, job)
    job.bound = _keys_of_limits(job, says, content)


def bound_by(job: Job, says: Declaration, content: Payload, queue: str = "") -> str:
    """The keys by which limits and breakers bind a job that runs again, as its task declares them today.

    Where they cannot be made from this payload, those that it had: the body will say what is wrong with it.
    """
    try:
        content = payload.upgrade(content, job.version, says.version, says.upcasters or {}, job.task)
        if says.body is None or content.waits() or content.reports():
            return job.bound
        content = (payload.coerce if says.typed else _fitting)(says.body, content, says.name)
        return limits.settle(_keys_of_limits(job, says, content), queue or job.queue)
    except Exception:  # an upcaster and a key are code of the project
        return job.bound


def _keys_of_limits(job: Job, says: Declaration, content: Payload) -> str:
    keyed = (*says.limits, *says.breakers)
    if not keyed or says.body is None:
        return ""
    return limits.bound(says.name, keyed, payload.arguments(says.body, content), job.tenant)


def _bound(says: Declaration, content: Payload, key: str | None, window: Window, job: Job) -> windows.Bound:
    """The burst that a call belongs to."""
    option = type(window).__name__.lower()
    if key is not None:
        raise OptionError(
            f"{says.name} was given a key and has a {option}: both say which calls are one job. Give one."
        )
    if job.state != State.RESERVED:
        raise OptionError(
            f"{says.name} has a {option}, which says when it runs: give no countdown and no eta, or {option}=False."
        )
    arguments = {} if says.body is None else payload.arguments(says.body, content)
    bound = windows.bind(says.name, window, arguments, job.tenant)
    if not plain.storable(bound.key):
        raise KeyCannotBeMade(f"The {option} of {says.name} has a key that not every database can keep: {bound.key!r}.")
    return bound


def _fitting(body: Any, content: Payload, name: str) -> Payload:
    payload.fitting(body, content, name)
    return content


def _key(says: Declaration, content: Payload, given: str | None) -> str | None:
    key = _made(says, content, given)
    if key is not None and not plain.storable(key):
        raise KeyCannotBeMade(f"The key of {says.name} has a character that not every database can keep: {key!r}.")
    return key


def _made(says: Declaration, content: Payload, given: str | None) -> str | None:
    if given is not None:
        return idempotency.check_made(says.name, given)
    if says.key is NO_KEY or says.key is None or says.body is None:
        return None
    return idempotency.make_key(says.name, says.key, payload.arguments(says.body, content))


def _blank(says: Declaration, given: dict[str, Any]) -> Job:
    job_id = options.identity("task_id", given.get("task_id")) or new_id()
    root = options.identity("root_id", given.get("root_id")) or job_id
    chord = given.get("chord")
    group = options.identity("group_id", given.get("group_id"))
    return _job(
        id=job_id, task=says.name, version=says.version, state=State.PENDING,
        priority=options.priority(given.get("priority"), says.priority).value,
        tenant=options.text("tenant", given.get("tenant"), 100),
        tags=options.tags(given.get("tags")), metadata=options.metadata(given.get("metadata")),
        correlation_id=_correlation(given) or context.correlation_id() or str(root),
        schedule=_schedule(given),
        parent_id=options.identity("parent_id", given.get("parent_id")), root_id=root,
        group_id=group, group_index=given.get("group_index"), fanin_id=group if chord else None,
        max_attempts=says.allowed,
        **_limits(given, says),
    )  # fmt: skip


def _job(**fields: Any) -> Job:
    """A new job. Django's own way asks fifty fields for their defaults, which costs as much as the INSERT."""
    job = Job.__new__(Job)
    job.__dict__.update(_defaults(), _state=ModelState(), **fields)
    return job


@cache
def _defaults() -> dict[str, Any]:
    return {f.attname: f.get_default() for f in Job._meta.concrete_fields if not f.primary_key}


def _schedule(given: dict[str, Any]) -> str:
    """The name of the schedule that fired the job: django-celery-beat says it in a header."""
    headers = given.get("headers") or {}
    return options.text("schedule", given.get("schedule") or headers.get("periodic_task_name"), 200)


def _correlation(given: dict[str, Any]) -> str:
    return options.text("correlation_id", given.get("correlation_id"), 100)


def _limits(given: dict[str, Any], says: Declaration) -> dict[str, float | None]:
    """Hard and soft time limit; the soft one always comes first, or the pool would never reach the hard one."""
    own = [name for name in ("time_limit", "soft_time_limit") if given.get(name) not in (None, getattr(says, name))]
    if own and says.chunked:
        raise OptionError(
            f"{own[0]} is that of a call for many jobs: declare it on {says.name}, not for one job of it."
        )
    hard = _limit("time_limit", given, says.time_limit) or conf.current().TIME_LIMIT
    soft = _limit("soft_time_limit", given, says.soft_time_limit)
    if soft is not None and soft >= hard:
        if given.get("soft_time_limit") not in (None, says.soft_time_limit):
            raise OptionError(f"soft_time_limit ({soft:g} s) must be below time_limit ({hard:g} s).")
        soft = hard * 0.9
    return {"time_limit": hard, "soft_time_limit": soft}


def _limit(name: str, given: dict[str, Any], declared: float | None) -> float | None:
    value = given.get(name)
    if value is None:
        return declared
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise OptionError(f"{name} must be a number of seconds above 0, not {value!r}.")
    return float(value)


def _time(job: Job, given: dict[str, Any], app_timezone: Any, *, late: bool) -> None:
    due = _as_clock(options.due(given, app_timezone))
    # A date is compared with the database's clock, as it is later, whatever the clock of this machine says.
    due_in = _from_now(due) if due else timedelta(0)
    expires = _as_clock(options.expiry(given, due_in, app_timezone))
    if isinstance(expires, datetime) and _from_now(expires) <= due_in:
        if late:
            expires = timedelta(0)  # the step of a chain that expired before its turn is cancelled, not refused
        else:
            raise OptionError(f"The job would expire at {expires.isoformat()}, before it is due.")
    job.created_at = NOW  # type: ignore[assignment]
    job.due_at = _by_clock(due) or NOW  # type: ignore[assignment]
    job.expires_at = _by_clock(expires)
    if due_in <= timedelta(0):
        job.state = State.RESERVED
        job.due_at = NOW  # type: ignore[assignment]
    else:
        job.reason = "scheduled"


def _as_clock(when: timedelta | datetime | None) -> timedelta | datetime | None:
    return lifecycle.as_clock(when) if isinstance(when, datetime) else when


def _from_now(when: timedelta | datetime) -> timedelta:
    return when if isinstance(when, timedelta) else max(timedelta(0), when - lifecycle.database_now())


def _by_clock(value: timedelta | datetime | None) -> Any:
    return Clock(value) if isinstance(value, timedelta) else value


def _queue(given: dict[str, Any], says: Declaration) -> str:
    queue = given.get("queue")
    if queue is None:
        return says.queue or ""
    name = getattr(queue, "name", queue)
    if not isinstance(name, str) or not name.strip() or name != name.strip():
        raise OptionError(f"queue must be the name of a queue, not {queue!r}.")
    return name


def _delivery(given: dict[str, Any]) -> str:
    if given.get("serializer") not in (None, "json"):
        raise OptionError(f"Jobs are JSON only; serializer={given['serializer']!r} cannot be kept.")
    names = [*options.CARRIED, *(given.get("stamped_headers") or ())]
    carried = {name: given[name] for name in names if given.get(name) is not None}
    return payload.to_json(carried) if carried else ""


def copy(original: Job, **changes: Any) -> Job:
    """A new draft that repeats a job: same task, payload and place in its canvas; a new id, no key."""
    fields = {f.attname: getattr(original, f.attname) for f in Job._meta.concrete_fields if f.attname in _REPEATED}
    fields |= {
        "id": new_id(), "state": State.RESERVED, "created_at": NOW, "due_at": NOW, "key": None,
        "replay_of_id": original.pk, "origin_id": original.origin_id or original.pk,
    }  # fmt: skip
    return Job(**(fields | changes))


_REPEATED = {
    "task", "payload", "version", "queue", "priority", "tenant", "tags", "metadata", "correlation_id", "parent_id",
    "root_id", "group_id", "group_index", "fanin_id", "waits_for_id", "schedule", "canvas", "delivery", "max_attempts",
    "time_limit", "soft_time_limit", "bound",
}  # fmt: skip
