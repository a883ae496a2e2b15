"""What people and programs may do to jobs: cancel, retry, pause, resume; and what time does: expire."""

from __future__ import annotations

import functools
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db import transaction

from jobs import audit, bursts, circuits, declared, gathering, lanes, lifecycle, limits, standing, successors
from jobs.errors import DeclarationError, JobNotFound, MoveRefused, Refused
from jobs.lifecycle import NOW, Clock, Column
from jobs.models import Allotment, Circuit, Job, Pause, Slot, Worker
from jobs.states import WAITING, State

NAME_LENGTH = 248  # a lane keeps it with the kind before it


def cancel(job_id: UUID, *, reason: str, by: str) -> Job:
    """Cancel a job: one that waits never runs; of one that runs, it is a request that its runner obeys.

    Raises ``Refused`` when the job has finished.
    """
    for _ in range(5):
        job = _existing(job_id)
        if job.finished:
            raise Refused(f"Job {job_id} is {job.state} already; there is nothing to cancel.")
        try:
            return _cancel(job, reason or "cancelled", by)
        except MoveRefused:
            continue  # It moved between our look and our act: look again.
    raise Refused(f"Job {job_id} keeps moving. Try again.")


def _cancel(job: Job, reason: str, by: str) -> Job:
    with transaction.atomic(using=lifecycle.alias()):
        if job.state == State.RUNNING:
            if not lifecycle.amend(job, cancel_requested_at=NOW, cancel_reason=reason[:255]):
                raise MoveRefused("it ended meanwhile")
            cancelled = job
        else:
            cancelled = successors.finish(job, State.CANCELLED, reason)
        audit.record_act("cancel", by, str(job.pk), job_id=job.pk, reason=reason)
    return cancelled


def retry(job_id: UUID, *, by: str, reason: str = "") -> Job:
    """Make a waiting job due now.

    Raises ``Refused`` when it is not waiting, or waits for other jobs; a failed job is replayed from its dead letter.
    """
    job = _existing(job_id)
    if job.state == State.FAILED:
        raise Refused(f"Job {job_id} has failed: replay its dead letter (manage.py dlq replay, or in the admin).")
    if job.state not in WAITING:
        raise Refused(f"Job {job_id} is {job.state}; only a job that waits can be made due.")
    gathers = bursts.gathers(job)
    if job.due_at is None and not gathers:
        raise Refused(f"Job {job_id} {job.reason or 'waits for other jobs'}; it cannot run before them.")
    try:
        with transaction.atomic(using=lifecycle.alias()):
            if gathers:
                gathering.go_now(job)
                job = _existing(job_id)
            else:
                job = lifecycle.move(job, State(job.state), f"made due by {by}", due_at=NOW)
            audit.record_act("retry", by, str(job_id), job_id=job_id, reason=reason)
    except MoveRefused:
        raise Refused(f"Job {job_id} has just moved on by itself, or is being called. Try again.") from None
    return job


def snooze(job_id: UUID, until: timedelta | datetime | float, *, by: str, reason: str = "") -> Job:
    """Put a job that has not started off until a time, or for so long (seconds) from now; no attempt is used.

    Raises ``Refused`` for a job that runs, has finished, or waits for other jobs.
    """
    job = _existing(job_id)
    if job.finished or job.state == State.RUNNING:
        raise Refused(f"Job {job_id} is {job.state}; only a job that waits can be snoozed.")
    if bursts.gathers(job):
        raise Refused(f"Job {job_id} is {job.reason}. Let it go (retry) or cancel it.")
    if job.due_at is None:
        raise Refused(f"Job {job_id} {job.reason or 'waits for other jobs'}, and has no time of its own.")
    due_at = _later(timedelta(seconds=until) if isinstance(until, int | float) else until)
    reserved = job.state == State.RESERVED  # its message is refused when it comes
    changes: dict[str, Any] = {"due_at": due_at} | ({"sends": 0} if reserved else {})
    try:
        with transaction.atomic(using=lifecycle.alias()):
            target = State.PENDING if reserved else State(job.state)
            job = lifecycle.move(job, target, f"snoozed by {by}{f': {reason}' if reason else ''}", **changes)
            audit.record_act("snooze", by, str(job_id), job_id=job_id, reason=reason, until=str(job.due_at))
    except MoveRefused:
        raise Refused(f"Job {job_id} has just moved on by itself.") from None
    return job


def _later(until: timedelta | datetime) -> Clock | datetime:
    """A time that is not over, and not in a hundred years."""
    delay = until if isinstance(until, timedelta) else lifecycle.as_clock(until) - lifecycle.database_now()
    if not timedelta(0) < delay < timedelta(days=36_500):
        raise Refused(f"A job is snoozed for some time from now, not until {until}.")
    return Clock(until) if isinstance(until, timedelta) else lifecycle.as_clock(until)


def pause(*, queue: str | None = None, task: str | None = None, reason: str, by: str) -> Pause:
    """Stop starting jobs of a queue or a task; what waits in the broker is taken back. Running jobs go on.

    A task may be named by the last part of its name, where only one is called so.
    """
    kind, name = _one_of(queue, task)
    with transaction.atomic(using=lifecycle.alias()):
        pause = Pause(kind=kind, name=name, reason=reason, by=by, created_at=lifecycle.database_now())
        # One statement: between a look and an insert, somebody else may pause and resume.
        Pause.objects.using(lifecycle.alias()).bulk_create(
            [pause], update_conflicts=True, unique_fields=["kind", "name"], update_fields=["reason", "by", "created_at"]
        )
        lifecycle.move_all(
            [State.RESERVED],
            State.PENDING,
            f"finished_at IS NULL AND {kind} = %s",
            [name],
            "paused",
            due_at=Column("due_at"),
            sends=0,
        )
        audit.record_act("pause", by, f"{kind} {name}", reason=reason)
    return pause


def resume(*, queue: str | None = None, task: str | None = None, by: str, reason: str = "") -> bool:
    """Let jobs of a queue or a task start again; False when it was not paused."""
    kind, name = _one_of(queue, task)
    with transaction.atomic(using=lifecycle.alias()):
        lanes.keep_still()
        deleted, _ = Pause.objects.using(lifecycle.alias()).filter(kind=kind, name=name).delete()
        if deleted:
            lanes.reopen()  # what they wait for may have come meanwhile
            audit.record_act("resume", by, f"{kind} {name}", reason=reason)
    return bool(deleted)


def allot(
    name: str = "", *, queue: str = "", task: str = "", tenant: str = "", slots: int | None = None,
    rate: str | None = None, burst: int | None = None, weight: float | None = None, by: str, reason: str = "",
) -> Allotment:  # fmt: skip
    """Say what a key (or the template of keys, as a task declares it) allows from now on, or the weight of a tenant.

    In place of the name of a key, name a queue, a task or a tenant: its jobs have this limit together, whatever is
    declared. It holds in place of what the code says until ``withdraw``. What was released and has not begun is taken
    back. Raises ``Refused``.
    """
    name = _named(name, queue, task, tenant, weighed=weight is not None)
    kind, numbers, said = _allotted(name, slots, rate, burst, weight)
    with transaction.atomic(using=lifecycle.alias()):
        lanes.keep_still()
        allotment = Allotment(
            kind=kind, name=name, amount=numbers.amount, burst=numbers.burst, said=said, by=by, reason=reason,
            created_at=lifecycle.database_now(),
        )  # fmt: skip
        Allotment.objects.using(lifecycle.alias()).bulk_create(
            [allotment], update_conflicts=True, unique_fields=["kind", "name"],
            update_fields=["amount", "burst", "said", "by", "reason", "created_at"],
        )  # fmt: skip
        _begin_anew(kind, name)
        audit.record_act("allot", by, f"{kind} {name}", reason=reason, said=said)
    return allotment


def _named(name: str, queue: str, task: str, tenant: str, *, weighed: bool) -> str:
    """The key that is spoken of, or the name of a tenant whose weight is."""
    task = declared.full_name(task) if task else ""
    given = [(scope, of) for scope, of in (("queue", queue), ("task", task), ("tenant", tenant)) if of]
    if bool(name) + len(given) != 1:
        raise Refused("Name one of these: a key, a queue, a task or a tenant.")
    if not given:
        return name
    if weighed and not tenant:
        raise Refused("A tenant has a weight; a queue or a task has none.")
    return tenant if weighed else standing.name(*given[0])


def withdraw(
    kind: str, name: str = "", *, queue: str = "", task: str = "", tenant: str = "", by: str, reason: str = ""
) -> bool:
    """Let hold again what the code says; False when nothing else was said.

    ``kind`` is what ``allot`` was given: "slots", "rate" or "weight". Raises ``Refused`` for any other.
    """
    kind = _kind(kind)
    name = _named(name, queue, task, tenant, weighed=kind == Allotment.Kind.WEIGHT)
    with transaction.atomic(using=lifecycle.alias()):
        lanes.keep_still()
        rows = Allotment.objects.using(lifecycle.alias()).filter(kind=kind, name=name)
        said = rows.values_list("said", flat=True).first()
        deleted, _ = rows.delete()
        if deleted:
            _begin_anew(kind, name)
            audit.record_act("withdraw", by, f"{kind} {name}", reason=reason, said=said)
    return bool(deleted)


def _kind(text: str) -> str:
    """The kind of what was said, by the name that ``allot`` has for it, or by the one that is stored."""
    kind = Allotment.Kind.TOKENS.value if text == "rate" else str(text)
    if kind not in Allotment.Kind.values:
        raise Refused(f'What is withdrawn is "slots", "rate" or "weight", not {text!r}.')
    return kind


def _allotted(
    name: str, slots: int | None, rate: str | None, burst: int | None, weight: float | None
) -> tuple[str, limits.Numbers, str]:
    """What was said, checked."""
    given = [value for value in (slots, rate, weight) if value is not None]
    if len(given) != 1:
        raise Refused(f"Say one of slots, rate and weight for {name}, not {len(given) or 'none'} of them.")
    if len(name) > NAME_LENGTH:
        raise Refused(f"The name of a key has at most {NAME_LENGTH} characters, not {len(name)}.")
    if burst is not None and rate is None:
        raise Refused(f'A burst belongs to a rate: say both for {name}, such as rate="5/s", burst={burst!r}.')
    try:
        if rate is not None:
            told = f"{rate}, burst {burst}" if burst else rate
            return Allotment.Kind.TOKENS, limits.Rate(name, rate, burst).numbers, told
        if slots is not None:
            return Allotment.Kind.SLOTS, limits.Concurrency(name, slots).numbers, str(slots)
    except DeclarationError as error:
        raise Refused(str(error)) from None
    assert weight is not None
    said: object = weight
    if isinstance(said, bool) or not isinstance(said, int | float) or not 0.001 <= said <= 1000:
        raise Refused(f"A weight is a number from 0.001 to 1000, not {weight!r}; the others have 1.")
    return Allotment.Kind.WEIGHT, limits.Numbers(weight, weight), f"{weight:g}"


def _begin_anew(kind: str, name: str) -> None:
    """Let all who wait for a limit be looked at again, and take back what was released by it and has not begun."""
    scope = standing.scope_of(name)
    if scope is not None and kind in standing.COUNTED:
        standing.take_back(*scope, "its limit was changed")
    if kind == Allotment.Kind.SLOTS:
        _take_back_bound(kind, name)
    lanes.reopen()


def _take_back_bound(kind: str, name: str) -> None:
    held = Slot.objects.using(lifecycle.alias()).filter(key="").values("job_id")
    reserved = Job.objects.using(lifecycle.alias()).filter(pk__in=held, state=State.RESERVED).exclude(bound="")
    concerned = [
        lifecycle.prepared("id", job_id)
        for job_id, bound in reserved.values_list("pk", "bound")
        if any(bind.kind.value == kind and name in (bind.key, bind.rule) for bind in limits.binds(bound))
    ]
    if concerned:
        marks = ", ".join(["%s"] * len(concerned))
        lifecycle.move_all(
            [State.RESERVED], State.PENDING, f"id IN ({marks})", concerned, "its limit was changed",
            due_at=Column("due_at"), sends=0,
        )  # fmt: skip


def breakers() -> list[Circuit]:
    """The circuits of which something is known, those that are open first."""
    return circuits.all_circuits()


def reset_breaker(key: str, *, by: str, reason: str = "") -> Circuit:
    """Close a circuit at once, and forget what failed: its jobs go on.

    Raises ``Refused`` where nothing is known of it.
    """
    with transaction.atomic(using=lifecycle.alias()):
        lanes.keep_still()
        was = circuits.reset(key)
        if was is None:
            known = ", ".join(row.key for row in breakers()[:20]) or "none"
            raise Refused(f"No breaker knows of a failure under the key {key!r}. There are: {known}.")
        lanes.reopen(f"{limits.Kind.CIRCUIT.value} {key}")
        audit.record_act("reset breaker", by, key, reason=reason, was=str(circuits.phase(was)))
    return Circuit.objects.using(lifecycle.alias()).get(pk=was.pk)


def expire(limit: int = 500) -> int:
    """Cancel waiting jobs whose time has run out; return how many."""
    rows = Job.objects.using(lifecycle.alias()).filter(
        finished_at__isnull=True,
        state__in=[*WAITING, State.RESERVED],
        expires_at__lte=lifecycle.database_now(),
    )
    return sum(
        lifecycle.tried(job, functools.partial(successors.finish, job, State.CANCELLED, "expired"))
        for job in rows[:limit]
    )


def forget_workers() -> int:
    """Drop the reports of workers that have been silent for an hour; return how many."""
    silent = lifecycle.database_now() - timedelta(hours=1)
    return Worker.objects.using(lifecycle.alias()).filter(seen_at__lt=silent).delete()[0]


def _existing(job_id: UUID) -> Job:
    try:
        job = lifecycle.seen(UUID(str(job_id)))
    except ValueError:
        job = None
    if job is None:
        raise JobNotFound(f"There is no job {job_id}.")
    return job


def _one_of(queue: str | None, task: str | None) -> tuple[str, str]:
    if bool(queue) == bool(task):
        raise Refused("Name either a queue or a task.")
    return (Pause.Kind.QUEUE, str(queue)) if queue else (Pause.Kind.TASK, declared.full_name(str(task)))
