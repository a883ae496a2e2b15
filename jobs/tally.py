"""Counting jobs without counting rows: the finished ones once, as they pass; many unfinished ones now and then.

A mark moves forward along ``finished_at``. What lies between two of its places is counted in the transaction that moves
it: neither a crash nor a second conductor loses or doubles a job. Who prunes ahead of the mark counts what goes.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db import models, transaction

from jobs import lifecycle
from jobs.models import Census, Job, Tally
from jobs.states import FINAL

FINISHED, UNFINISHED = "finished", "unfinished"
# An outcome says when its statement ran, and is seen when its transaction has committed.
LATE = timedelta(seconds=60)
STEP = 10_000  # jobs of one state that one transaction counts
A_TURN = 0.5  # seconds after which a chore lets the others have their turn
MINUTES_KEPT, HOURS_KEPT = timedelta(days=2), timedelta(days=90)

FEW = 10_000  # so many unfinished jobs are counted at each look
MANY = 1_000_000  # and so many are counted by the conductor, which must not stand still for long
MOST = 100_000  # and so many where nobody counted them lately; a number that reaches it has a "+"
FRESH = timedelta(seconds=60)
RESTING = 20.0  # times as long as the last count of the unfinished took

_BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)
_TRUNCATED = {"minute": (16, ":00"), "hour": (13, ":00:00"), "day": (10, " 00:00:00")}


@dataclass(frozen=True, slots=True)
class Ended:
    """How many jobs have ended, per state: ever, and of those how many are still in the table."""

    ever: dict[str, int]
    kept: dict[str, int]
    at_least: bool = False


@dataclass(frozen=True, slots=True)
class Unfinished:
    """How many jobs have not finished, in each state, priority and queue; ``as_of`` a moment if not just now."""

    counts: list[tuple[str, int, str, int]] = field(default_factory=list)
    as_of: datetime | None = None
    at_least: bool = False


def tick() -> int:
    """What the conductor does now and then; return how many steps the count of the finished has come."""
    steps = fold()
    if not steps:
        coarsen()
    count_unfinished()
    return steps


# --- The finished


def fold(until: datetime | None = None) -> int:
    """Count what finished since the last time, for a turn, or as far as ``until``; return in how many steps."""
    steps, enough, end = 0, time.monotonic() + A_TURN, _settled()
    while (reached := _step(end)) is not None:
        steps += 1
        if reached >= (until or end) or (until is None and time.monotonic() > enough):
            break
    return steps


def counted_until() -> datetime | None:
    """Before this moment every finished job is in the tallies."""
    return Census.objects.using(lifecycle.alias()).filter(pk=FINISHED).values_list("until", flat=True).first()


def _step(end: datetime) -> datetime | None:
    """Count one slice, not beyond ``end``; return where the mark is now, None where it stays."""
    with transaction.atomic(using=lifecycle.alias()):
        mark = _locked_mark(wait=False)
        if mark is None:
            return None
        if mark.until is not None and mark.until > (now := lifecycle.database_now()):
            _go_back(now, mark.until)
            return None
        since = mark.until or _first_end()
        if since is None or since >= end:
            return None
        span, changes = _span(since)
        until = min([end, changes, *_ends_of_slices(since)])
        until = max(until, since + timedelta(microseconds=1))
        for name, begins in ((span, _truncated(span, "finished_at")), (Tally.Span.EVER, "%s")):
            _add_ended(name, begins, since, until)
        Census.objects.using(lifecycle.alias()).filter(pk=FINISHED).update(until=until)
        return until


def _go_back(to: datetime, mark: datetime) -> None:
    """Begin again from ``to``: the clock was set back, and what ends from now on ends behind the mark."""
    for span, begins in ((Tally.Span.MINUTE, _truncated("minute", "finished_at")), (Tally.Span.EVER, "%s")):
        _add_ended(span, begins, to, mark, sign=-1)
    Census.objects.using(lifecycle.alias()).filter(pk=FINISHED).update(until=to)


def _locked_mark(*, wait: bool) -> Census | None:
    """The mark, which is ours until the transaction ends; None if another one has it and we do not ``wait``."""
    marks = Census.objects.using(lifecycle.alias())
    marks.bulk_create([Census(name=FINISHED)], ignore_conflicts=True)
    return marks.select_for_update(skip_locked=not wait).filter(pk=FINISHED).first()


def _until() -> datetime | None:
    """Where the mark is, and stays until the transaction ends."""
    mark = _locked_mark(wait=True)
    return mark.until if mark is not None else None


def _first_end() -> datetime | None:
    firsts = (_finished(state).order_by("finished_at").values_list("finished_at", flat=True).first() for state in FINAL)
    return min((first for first in firsts if first is not None), default=None)


def _ends_of_slices(since: datetime) -> list[datetime]:
    ends: list[datetime] = []
    for state in sorted(FINAL):
        rows = _finished(state).filter(finished_at__gte=since).order_by("finished_at")
        ends += [end for end in rows.values_list("finished_at", flat=True)[STEP : STEP + 1] if end is not None]
    return ends


def _finished(state: str) -> models.QuerySet[Job]:
    return Job.objects.using(lifecycle.alias()).filter(state=state, finished_at__isnull=False)


def _settled() -> datetime:
    """Before this moment no outcome can appear any more: it is long over, and no writing transaction is as old.

    It is asked before the slice is looked at: who commits later than that has ended later, too.
    """
    now: datetime = lifecycle.database_now()
    settled = now - LATE
    if lifecycle.database().vendor != "postgresql":
        return settled
    with lifecycle.database().cursor() as cursor:
        cursor.execute(
            "SELECT MIN(xact_start) FROM pg_stat_activity "
            "WHERE datname = current_database() AND backend_xid IS NOT NULL AND pid <> pg_backend_pid()"
        )
        oldest: datetime | None = cursor.fetchone()[0]
    if oldest is None:
        return settled
    return min(settled, oldest if settled.tzinfo else oldest.replace(tzinfo=None))


def _span(since: datetime) -> tuple[str, datetime]:
    """How finely a moment is counted, and until when: old history by the hour, or by the day, from the start."""
    hours, minutes = _midnight(HOURS_KEPT), _midnight(MINUTES_KEPT)
    if since < hours:
        return Tally.Span.DAY, hours
    return (Tally.Span.HOUR, minutes) if since < minutes else (Tally.Span.MINUTE, lifecycle.database_now())


def _truncated(span: str, column: str) -> str:
    """SQL for the beginning of the span in which a time lies."""
    if lifecycle.database().vendor == "postgresql":
        return f"date_trunc('{span}', {column})"
    length, rest = _TRUNCATED[span]
    return f"substr({column}, 1, {length}) || '{rest}'"


def _add_ended(span: str, begins: str, since: datetime, until: datetime, sign: int = 1) -> None:
    states = ", ".join(f"'{state}'" for state in sorted(FINAL))
    counted = (
        f"SELECT {begins} AS begins, task, queue, state, {sign:d} * COUNT(*) AS ended, 0 AS pruned "
        f"FROM {Job._meta.db_table} WHERE finished_at IS NOT NULL AND state IN ({states}) "
        "AND finished_at >= %s AND finished_at < %s GROUP BY 1, 2, 3, 4"
    )
    times = [_prepared(since), _prepared(until)]
    _add(span, counted, [_ever(), *times] if begins == "%s" else times)


def _add(span: str, counted: str, parameters: list[Any]) -> None:
    """Add what a query counted to the tallies of a span."""
    table = Tally._meta.db_table
    sql = (
        f"INSERT INTO {table} (span, begins, task, queue, state, ended, pruned) "
        f"SELECT '{span}', begins, task, queue, state, ended, pruned FROM ({counted}) AS counted WHERE true "
        "ON CONFLICT (span, begins, task, queue, state) DO UPDATE "
        f"SET ended = {table}.ended + excluded.ended, pruned = {table}.pruned + excluded.pruned"
    )
    with lifecycle.database().cursor() as cursor:
        cursor.execute(sql, parameters)


def note_pruned(ids: Iterable[UUID]) -> None:
    """Note that jobs are about to be deleted, in the transaction that deletes them; count those ahead of the mark."""
    mark = _until()
    prepared = [lifecycle.prepared("id", job_id) for job_id in ids]
    rows = f"FROM {Job._meta.db_table} WHERE id IN ({', '.join(['%s'] * len(prepared))})"
    ahead = "COUNT(CASE WHEN finished_at >= %s THEN 1 END)"
    since = _prepared(mark) if mark is not None else _ever()
    _add(
        Tally.Span.EVER,
        f"SELECT %s AS begins, task, queue, state, {ahead} AS ended, COUNT(*) AS pruned {rows} GROUP BY 2, 3, 4",
        [_ever(), since, *prepared],
    )
    _add(
        Tally.Span.MINUTE,
        f"SELECT {_truncated('minute', 'finished_at')} AS begins, task, queue, state, COUNT(*) AS ended, 0 AS pruned "
        f"{rows} AND finished_at >= %s GROUP BY 1, 2, 3, 4",
        [*prepared, since],
    )


def recount() -> int:
    """Count again how many of the jobs that have ended are in the table, which reads all of them; return how many.

    It mends what was deleted by hand, or pruned by a process of a release that knew no tallies. Meanwhile the conductor
    counts nothing, and prunes nothing.
    """
    with transaction.atomic(using=lifecycle.alias()):
        until = _until()
        ever = Tally.objects.using(lifecycle.alias()).filter(span=Tally.Span.EVER)
        ever.update(pruned=models.F("ended"))
        if until is not None:
            _add(
                Tally.Span.EVER,
                "SELECT %s AS begins, task, queue, state, 0 AS ended, -COUNT(*) AS pruned "
                f"FROM {Job._meta.db_table} WHERE finished_at IS NOT NULL AND finished_at < %s GROUP BY 2, 3, 4",
                [_ever(), _prepared(until)],
            )
        kept = ever.aggregate(kept=models.Sum(models.F("ended") - models.F("pruned")))["kept"]
        return int(kept or 0)


def coarsen() -> None:
    """Put old minutes together into hours, and old hours into days."""
    for fine, coarse, kept in (("minute", "hour", MINUTES_KEPT), ("hour", "day", HOURS_KEPT)):
        old = Tally.objects.using(lifecycle.alias()).filter(span=fine, begins__lt=_midnight(kept))
        if not old.exists():
            continue
        with transaction.atomic(using=lifecycle.alias()):
            if _locked_mark(wait=False) is None:
                return
            counted = (
                f"SELECT {_truncated(coarse, 'begins')} AS begins, task, queue, state, SUM(ended) AS ended, "
                "0 AS pruned "
                f"FROM {Tally._meta.db_table} WHERE span = '{fine}' AND begins < %s GROUP BY 1, 2, 3, 4"
            )
            before = _midnight(kept)
            _add(coarse, counted, [_prepared(before)])
            Tally.objects.using(lifecycle.alias()).filter(span=fine, begins__lt=before).delete()


def _midnight(ago: timedelta) -> datetime:
    now: datetime = lifecycle.database_now()
    return (now - ago).replace(hour=0, minute=0, second=0, microsecond=0)


def ended() -> Ended:
    """How many jobs have ended, in one look: the tallies, and what came after them."""
    tallies, jobs = Tally._meta.db_table, Job._meta.db_table
    mark = f"(SELECT until FROM {Census._meta.db_table} WHERE name = '{FINISHED}')"
    since = f"COALESCE({mark}, %s)"
    parts = [f"SELECT state, SUM(ended), SUM(pruned), 0 FROM {tallies} WHERE span = 'ever' GROUP BY state"]
    for state in sorted(FINAL):
        later = (
            f"SELECT 1 FROM {jobs} WHERE state = '{state}' AND finished_at IS NOT NULL AND finished_at >= {since} "
            f"LIMIT {MOST}"
        )
        parts.append(f"SELECT '{state}', 0, 0, COUNT(*) FROM ({later}) AS later")
    with lifecycle.database().cursor() as cursor:
        cursor.execute(" UNION ALL ".join(parts), [_ever()] * len(FINAL))
        rows = cursor.fetchall()
    ever = {state.value: 0 for state in sorted(FINAL)}
    pruned = dict(ever)
    for state, counted, gone, later in rows:
        ever[state] += int(counted) + int(later)
        pruned[state] += int(gone)
    kept = {state: max(0, ever[state] - pruned[state]) for state in ever}
    return Ended(ever, kept, any(int(row[3]) >= MOST for row in rows))


# --- The unfinished


def unfinished() -> Unfinished:
    """How many have not finished: counted now if they are few, else as the conductor counted them lately."""
    counts = _count_unfinished(FEW)
    if sum(row[3] for row in counts) < FEW:
        return Unfinished(counts)
    census = Census.objects.using(lifecycle.alias()).filter(pk=UNFINISHED).first()
    if census is not None and census.until is not None and census.until > lifecycle.database_now() - FRESH:
        counts = [(s, p, q, n) for s, p, q, n in census.numbers["counts"]]
        return Unfinished(counts, census.until, at_least=sum(row[3] for row in counts) >= MANY)
    counts = _count_unfinished(MOST)
    return Unfinished(counts, at_least=sum(row[3] for row in counts) >= MOST)


def count_unfinished() -> None:
    """Leave a count of the unfinished for those who look, unless they are few; rarely, where it takes long."""
    census = Census.objects.using(lifecycle.alias()).filter(pk=UNFINISHED).first()
    now = lifecycle.database_now()
    if census is not None and census.until is not None:
        rest = timedelta(seconds=min(RESTING * census.numbers.get("took", 0), FRESH.total_seconds() / 2))
        if census.until + rest > now:
            return
    began = time.monotonic()
    counts = _count_unfinished(MANY)
    if sum(row[3] for row in counts) < FEW:
        if census is not None:
            census.delete()
        return
    numbers = {"counts": counts, "took": time.monotonic() - began}
    Census.objects.using(lifecycle.alias()).update_or_create(
        name=UNFINISHED, defaults={"until": now, "numbers": numbers}
    )


def _count_unfinished(most: int) -> list[tuple[str, int, str, int]]:
    rows = f"SELECT state, priority, queue FROM {Job._meta.db_table} WHERE finished_at IS NULL LIMIT {most}"
    with lifecycle.database().cursor() as cursor:
        cursor.execute(
            f"SELECT state, priority, queue, COUNT(*) FROM ({rows}) AS unfinished GROUP BY 1, 2, 3 ORDER BY 1, 2, 3", []
        )
        return [(str(s), int(p), str(q), int(n)) for s, p, q, n in cursor.fetchall()]


# --- Times as the database wants them


def _ever() -> Any:
    return _prepared(_BEGINNING if settings.USE_TZ else _BEGINNING.replace(tzinfo=None))


def _prepared(moment: datetime) -> Any:
    field: Any = Tally._meta.get_field("begins")
    return field.get_db_prep_value(moment, lifecycle.database())
