"""Letting the jobs of bursts go when their time has come: the one place that decides it.

Any number of processes may do it at once: the row of a burst is held by one. Its callers hold it too, together, until
their transactions end; so what they call just now is a part of it.
"""

from __future__ import annotations

import logging
import secrets
from datetime import datetime, timedelta
from uuid import UUID

from django.db import transaction

from jobs import bursts, drafts, lifecycle, outbox, successors
from jobs.bursts import Seen
from jobs.errors import MoveRefused
from jobs.lifecycle import NOW
from jobs.models import Burst, Call, Job
from jobs.states import State
from jobs.windows import Bound

logger = logging.getLogger("jobs.conductor")

BATCH = 200  # bursts that one turn looks at
# Seconds after which a burst goes although a caller's transaction is open. What that calls becomes a burst of its own.
GRACE = 5.0
FORGET = 60.0  # seconds after which a throttle's last run is looked at again: it does no harm
PATIENCE = 30.0  # seconds after which a burst at the latest is looked at again that waits for another job's start


def let_go(limit: int = BATCH) -> int:
    """Let up to ``limit`` bursts go whose time has come; return how many went."""
    due = Burst.objects.using(lifecycle.alias()).filter(look_at__lte=lifecycle.database_now())
    rows = list(due.order_by("look_at", "pk").values_list("pk", "job_id")[:limit])
    return sum(_tried(burst_id, job_id) for burst_id, job_id in sorted(rows))


def _tried(burst_id: int, job_id: UUID) -> bool:
    went: list[bool] = []
    lifecycle.tried(Job(pk=job_id), lambda: went.append(_look(burst_id)))
    return any(went)


def _look(burst_id: int) -> bool:
    """Look at one burst; whether its job went."""
    with transaction.atomic(using=lifecycle.alias()):
        rows = Burst.objects.using(lifecycle.alias()).filter(pk=burst_id)
        burst = rows.select_for_update(skip_locked=True).first()
        if burst is None:
            called = rows.first()
            return called is not None and _overdue(called)
        now = lifecycle.database_now()
        if burst.went:
            _forget_if_past(burst, now)
            return False
        job = lifecycle.seen(burst.job_id)
        if job is None or not bursts.gathers(job):
            _begin_with_the_late(burst, job)
            return False
        around = _made_one(burst, bursts.seen(burst.task, burst.key))
        here = next(one for one in around if one.id == burst.pk)
        at = bursts.due(here, around)
        if at is None or now < at:
            rows.update(look_at=at or _later(burst, now))
            return False
        return _go(burst, job)


def _later(burst: Burst, now: datetime) -> datetime:
    """When to look again at one that waits for another job's start: it goes a span after that at the earliest."""
    waited = (now - burst.first_at).total_seconds()
    return now + timedelta(seconds=max(burst.span, min(waited / 4, PATIENCE)))


def _overdue(burst: Burst) -> bool:
    """A burst whose callers have not ended: it does not wait for them for ever; whether its job went."""
    job = lifecycle.seen(burst.job_id)
    around = bursts.seen(burst.task, burst.key)
    here = next((one for one in around if one.id == burst.pk), None)
    if burst.went or job is None or here is None or not bursts.gathers(job):
        return False
    at = bursts.due(here, around)
    if at is None or lifecycle.database_now() < at + timedelta(seconds=GRACE):
        return False
    return _go(burst, job, held=True)


def _go(burst: Burst, job: Job, *, held: bool = False) -> bool:
    """Make the job of a burst due, with the payload that is kept; of a row that others hold, only the calls go."""
    calls = Call.objects.using(lifecycle.alias()).filter(burst_id=burst.pk).order_by("at", "pk")
    ids = list(calls.values_list("pk", flat=True)) if held else []
    kept = calls.first() if burst.keep_first else calls.last()
    if kept is not None:
        job.payload, job.version, job.bound = kept.payload, kept.version, kept.bound
    else:
        job.bound = Job.objects.using(lifecycle.alias()).values_list("bound", flat=True).get(pk=job.pk)
    reason = outbox.IN_LINE if outbox.line_up(job) else ""
    lifecycle.move(
        job, State.PENDING, reason, due_at=NOW, payload=job.payload, version=job.version, bound=job.bound,
        lane=job.lane,
    )  # fmt: skip
    if held:  # what was committed since we looked comes late
        Call.objects.using(lifecycle.alias()).filter(pk__in=ids).delete()
    else:
        calls.delete()
        Burst.objects.using(lifecycle.alias()).filter(pk=burst.pk).delete()
    if burst.quiet is None:
        _remember(burst, job)
    return True


def _remember(burst: Burst, job: Job) -> None:
    """The next run of a throttle comes a span after this one has started."""
    Burst.objects.using(lifecycle.alias()).create(
        task=burst.task, key=burst.key, after=_aside(), job_id=job.pk, first_at=burst.first_at, span=burst.span,
        leading=burst.leading, went=True, look_at=lifecycle.database_now() + timedelta(seconds=burst.span),
    )  # fmt: skip


def _aside() -> int:
    """A number that no other burst comes after."""
    return -1 - secrets.randbits(62)


def _forget_if_past(burst: Burst, now: datetime) -> None:
    """A run of a throttle that is longer ago than the span says nothing any more."""
    job, rows = lifecycle.seen(burst.job_id), Burst.objects.using(lifecycle.alias()).filter(pk=burst.pk)
    span = timedelta(seconds=burst.span)
    if job is None or (job.finished and (job.started_at is None or job.started_at + span <= now)):
        rows.delete()
    else:
        rows.update(look_at=now + max(span, timedelta(seconds=FORGET)))


def _made_one(burst: Burst, around: list[Seen]) -> list[Seen]:
    """Take other bursts in that began beside this one, because their callers could not see each other."""
    for _ in range(len(around)):
        here = next(one for one in around if one.id == burst.pk)
        ends = bursts.due(here, around)
        twins = [
            one for one in around
            if one.id != here.id and one.gathers and one.id > here.id and (ends is None or one.first < ends)
        ]  # fmt: skip
        taken = [_take_in(burst, twin) for twin in twins]
        if not any(taken):
            return around
        around = bursts.seen(burst.task, burst.key)
    return around


def _take_in(burst: Burst, twin: Seen) -> bool:
    """Let the calls of a twin be calls of this burst, and its job settle as this one's does."""
    rows = Burst.objects.using(lifecycle.alias()).filter(pk=twin.id)
    if rows.select_for_update(skip_locked=True).first() is None:
        return False
    job = lifecycle.seen(twin.job_id)
    if job is None or not bursts.gathers(job):
        return False
    Call.objects.using(lifecycle.alias()).filter(burst_id=twin.id).update(burst_id=burst.pk)
    burst.first_at = min(burst.first_at, twin.first)
    Burst.objects.using(lifecycle.alias()).filter(pk=burst.pk).update(first_at=burst.first_at)
    rows.delete()
    successors.follow(job, burst.job_id)
    return True


def _begin_with_the_late(burst: Burst, job: Job | None) -> None:
    """What was called in a transaction that outlasted its burst becomes the next one; a cancelled burst is no more."""
    rows = Burst.objects.using(lifecycle.alias()).filter(pk=burst.pk)
    calls = Call.objects.using(lifecycle.alias()).filter(burst_id=burst.pk)
    late = calls.order_by("at", "pk").first()
    rows.delete()
    if late is None:
        return
    if job is None or (job.state == State.CANCELLED and job.attempt == 0 and late.at == burst.first_at):
        calls.delete()
        return
    new = _repeated(job, late)
    lifecycle.insert(new)
    bound = Bound(burst.key, bursts.rule_of(burst))
    next_id = bursts.insert(burst.task, bound, new.pk, lifecycle.database_now(), _aside())
    calls.update(burst_id=next_id)
    lifecycle.announce("enqueued", new)
    logger.warning("Job %s had gone when a call of its burst was committed: %s is the next.", job.pk, new.pk)


def _repeated(job: Job, call: Call) -> Job:
    """A job like the one that a call was to be part of, which belongs to no canvas."""
    whole = Job.objects.using(lifecycle.alias()).get(pk=job.pk)
    alone = dict.fromkeys(("group_id", "group_index", "fanin_id", "waits_for_id", "replay_of_id", "origin_id"))
    return drafts.copy(
        whole, **alone, state=State.PENDING, due_at=None, canvas="", payload=call.payload, version=call.version,
        bound=call.bound, lane="", reason=whole.reason or bursts.REASONS[True],
    )  # fmt: skip


def go_now(job: Job) -> None:
    """Let the job of a burst go at once, whatever its time. Raises ``MoveRefused`` while somebody calls it."""
    with transaction.atomic(using=lifecycle.alias()):
        rows = Burst.objects.using(lifecycle.alias()).filter(job_id=job.pk, went=False)
        burst = rows.select_for_update(skip_locked=True).first()
        if burst is None:
            raise MoveRefused(f"Job {job.pk} is being called just now. Try again.")
        _go(burst, job)
