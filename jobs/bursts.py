"""The calls of a burst become one job: each call adds a row, and none waits for the transaction of another.

What is guaranteed, and what a long transaction does to it, stands in docs/explanation/bursts.md.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db import OperationalError, transaction
from django.db.models import OuterRef, Subquery

from jobs import lifecycle, outage, windows
from jobs.models import Burst, Call, Job
from jobs.states import State
from jobs.windows import Bound, Rule

# Seconds that a caller waits for others who begin or end the same burst just now; then it begins one of its own.
PATIENCE = 0.25
RETRY = 0.005
REASONS = {True: "debounced: waits for a quiet moment", False: "throttled: waits for its turn"}


def gathers(job: Job) -> bool:
    """Whether a job is that of a burst which has not gone yet."""
    held = job.follows_id or job.waits_for_id
    return job.state == State.PENDING and job.due_at is None and not held and job.attempt == 0


@dataclass(frozen=True, slots=True)
class Seen:
    """A burst as somebody sees it."""

    id: int
    job_id: UUID
    rule: Rule
    first: datetime
    last: datetime
    gathers: bool
    started: datetime | None
    over: bool  # whether its job has ended

    @property
    def starting(self) -> bool:
        """Whether its job has yet to start."""
        return self.started is None and not self.over


def seen(task: str, key: str) -> list[Seen]:
    """All bursts with this key of which something is known, oldest first."""
    rows = Burst.objects.using(lifecycle.alias()).filter(task=task, key=key).order_by("pk")
    calls = Call.objects.using(lifecycle.alias()).filter(burst_id=OuterRef("pk")).order_by("-at")
    bursts = list(rows.annotate(last=Subquery(calls.values("at")[:1])))
    jobs = Job.objects.using(lifecycle.alias()).only(*_OF_JOBS).in_bulk([burst.job_id for burst in bursts])
    return [_seen(burst, jobs.get(burst.job_id)) for burst in bursts]


_OF_JOBS = ("state", "due_at", "follows_id", "waits_for_id", "attempt", "started_at", "finished_at")


def _seen(burst: Any, job: Job | None) -> Seen:
    return Seen(
        burst.pk, burst.job_id, rule_of(burst), burst.first_at, burst.last or burst.first_at,
        gathers=not burst.went and job is not None and gathers(job), started=job.started_at if job else None,
        over=job is None or job.finished,
    )  # fmt: skip


def rule_of(burst: Burst) -> Rule:
    """When a burst may go, as whoever began it said."""
    return Rule(burst.quiet, burst.span, burst.leading, trailing=True, keep_first=burst.keep_first)


def due(burst: Seen, bursts: Sequence[Seen]) -> datetime | None:
    """When the job of a burst may go, of all that are known with its key; None while nobody can know."""
    before = [one for one in bursts if one.id < burst.id or not one.gathers]
    starts = [one.started for one in before if one.started is not None]
    starting = any(one.gathers or one.starting for one in before)
    return windows.due(
        burst.rule, burst.first, burst.last, started=max(starts, default=None), starting=starting
    )  # fmt: skip


def is_open(burst: Seen, bursts: Sequence[Seen], now: datetime) -> bool:
    """Whether a call that comes now belongs to a burst."""
    if not burst.gathers:
        return False
    ends = due(burst, bursts)
    return ends is None or now < ends


# --- Calling ------------------------------------------------------------------------------------------


def join(jobs: Sequence[Job]) -> dict[UUID, UUID]:
    """Make calls with one key, in this order, part of its burst, or begin one; return which job stands for each draft.

    A draft stands for itself where a burst began with it.
    """
    with transaction.atomic(using=lifecycle.alias()):
        owners: dict[UUID, UUID] = {}
        left = list(jobs)
        while left:
            first = left[0]
            owner = _join(first)
            owners[first.pk] = owner
            left = left[1:]
            if left:
                left = _follow_on(left, owners)
        return owners


def _follow_on(jobs: list[Job], owners: dict[UUID, UUID]) -> list[Job]:
    """Let all calls join that the burst takes, as the one before them did; return those that are left."""
    bound = _bound(jobs[0])
    now = lifecycle.database_now()
    found = _open(bound, seen(jobs[0].task, bound.key), now)
    if isinstance(found, UUID):
        owners |= {job.pk: found for job in jobs}
        return []
    if found is None or not _hold(found.id):
        return jobs
    _note(found.id, jobs, now)
    owners |= {job.pk: found.job_id for job in jobs}
    return []


def _join(job: Job) -> UUID:
    bound, until = _bound(job), time.monotonic() + PATIENCE
    while True:
        now = lifecycle.database_now()
        around = seen(job.task, bound.key)
        found = _open(bound, around, now)
        if isinstance(found, UUID):
            return found
        if found is not None and _hold(found.id):
            _note(found.id, [job], now)
            return found.job_id
        # After the last one that was seen, not the last one that is there by now: that may be the one to join.
        if found is None and _begin(job, bound, now, around[-1].id if around else 0):
            return job.pk
        if time.monotonic() > until:
            # Somebody keeps the row of the burst for longer: in a long transaction that began it, say. A burst of
            # our own is as good: once both are there, the conductor makes them one.
            _begin(job, bound, now, -1 - secrets.randbits(62))
            return job.pk
        time.sleep(RETRY)


def _bound(job: Job) -> Bound:
    assert job.window is not None
    return job.window


def _open(bound: Bound, bursts: Sequence[Seen], now: datetime) -> Seen | UUID | None:
    """The burst that takes a call now, or the job that stands for it without one, or None: it begins a burst."""
    for burst in reversed(bursts):
        if is_open(burst, bursts, now):
            return burst
    if bound.rule.quiet is None and not bound.rule.trailing and bursts:
        last = bursts[-1]
        span = timedelta(seconds=bound.rule.span)
        if last.gathers or last.starting or (last.started is not None and now < last.started + span):
            return last.job_id
    return None


def _hold(burst_id: int) -> bool:
    """Keep a burst from going before this transaction has ended; others who call are not kept from it."""
    if lifecycle.database().vendor != "postgresql":
        return Burst.objects.using(lifecycle.alias()).filter(pk=burst_id).exists()  # one writes at a time
    with lifecycle.database().cursor() as cursor:
        cursor.execute("SELECT 1 FROM jobs_burst WHERE id = %s FOR SHARE SKIP LOCKED", [burst_id])
        return cursor.fetchone() is not None


def _note(burst_id: int, jobs: Sequence[Job], now: datetime) -> None:
    Call.objects.using(lifecycle.alias()).bulk_create(
        [Call(burst_id=burst_id, at=now, payload=j.payload, version=j.version, bound=j.bound) for j in jobs],
        batch_size=500,
    )


def _begin(job: Job, bound: Bound, now: datetime, after: int) -> bool:
    """Begin a burst with this draft; False where somebody else begins it just now."""
    job.state, job.due_at, job.reason = State.PENDING, None, REASONS[bound.rule.quiet is not None]
    job.sent_at, job.sends = None, 0
    with transaction.atomic(using=lifecycle.alias()):
        burst_id = insert(job.task, bound, job.pk, now, after)
        if burst_id is None:
            return False
        if lifecycle.insert(job):
            _note(burst_id, [job], now)
            lifecycle.announce("enqueued", job)
        else:  # it is there already: a successor that was dispatched twice
            Burst.objects.using(lifecycle.alias()).filter(pk=burst_id).delete()
    return True


def insert(task: str, bound: Bound, job_id: UUID, now: datetime, after: int) -> int | None:
    """Add the row of a burst that gathers; None where another one comes after the same, or may do so just now."""
    rule = bound.rule
    soon = now + timedelta(seconds=min(rule.span, rule.quiet or rule.span))
    columns = {
        "task": task, "key": bound.key, "after": after, "job_id": lifecycle.prepared("id", job_id),
        "first_at": lifecycle.prepared("created_at", now), "quiet": rule.quiet, "span": rule.span,
        "leading": rule.leading, "keep_first": rule.keep_first, "went": False,
        "look_at": lifecycle.prepared("created_at", now if rule.leading else soon),
    }  # fmt: skip
    names, marks = ", ".join(map(_quoted, columns)), ", ".join(["%s"] * len(columns))
    sql = f"INSERT INTO {Burst._meta.db_table} ({names}) VALUES ({marks}) ON CONFLICT DO NOTHING RETURNING id"
    try:
        with transaction.atomic(using=lifecycle.alias()), lifecycle.database().cursor() as cursor:
            patience = _impatiently(cursor)
            cursor.execute(sql, list(columns.values()))
            row = cursor.fetchone()
            _patiently_again(cursor, patience)
    except OperationalError as error:
        if outage.locked(error):
            return None
        raise
    return None if row is None else int(row[0])


def _quoted(column: str) -> str:
    return f'"{column}"'  # "leading" is a word of SQL's


def _impatiently(cursor: Any) -> str:
    """Wait for the transactions of others no longer than a moment; return how long it was before."""
    if lifecycle.database().vendor != "postgresql":
        return ""
    cursor.execute("SELECT current_setting('lock_timeout')")
    before = str(cursor.fetchone()[0])
    cursor.execute(f"SET LOCAL lock_timeout = {PATIENCE * 1000:.0f}")
    return before


def _patiently_again(cursor: Any, before: str) -> None:
    """The rest of the transaction waits as it did: it is the caller's."""
    if before:
        cursor.execute("SELECT set_config('lock_timeout', %s, true)", [before])
