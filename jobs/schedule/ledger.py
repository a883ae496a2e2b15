"""The ledger of fires: what is due becomes ticks and jobs in one transaction, once, whichever beat comes first.

All times are the database's, so that beats whose clocks differ decide alike.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from django.conf import settings
from django.db import IntegrityError, router, transaction
from django.db.models import F, QuerySet
from django.utils import timezone
from django_celery_beat.models import PeriodicTask

from jobs import lifecycle
from jobs.models import Schedule, Tick
from jobs.schedule import call, misfires, rules
from jobs.schedule.fires import RESOLUTION
from jobs.schedule.misfires import Plan
from jobs.schedule.rules import Timetable

logger = logging.getLogger("jobs.schedule")

# How many jobs one transaction may hold; the rest of a long catch-up comes in the next ones.
BATCH: Final = 100
KEPT: Final = timedelta(days=30)
FORGOTTEN_AT_ONCE: Final = 500


@dataclass(frozen=True, slots=True)
class Decided:
    """What a look at one schedule led to: how many jobs, and when to look again (None: never)."""

    fired: int
    next_at: datetime | None


def rows() -> QuerySet[Schedule]:
    """The schedules as Mainstay knows them."""
    return Schedule.objects.using(lifecycle.alias())


def ticks() -> QuerySet[Tick]:
    """The ledger."""
    return Tick.objects.using(lifecycle.alias())


def clock() -> datetime:
    """The time by the database's clock, with its zone also where ``USE_TZ`` is off."""
    now: datetime = lifecycle.database_now()
    if timezone.is_naive(now) and lifecycle.database().vendor == "sqlite":
        return now.replace(tzinfo=UTC)  # SQLite has no zone to convert to
    return rules.given(now)


def enabled() -> Any:
    """The periodic tasks that are to fire, with their schedules."""
    return every().filter(enabled=True)


def every() -> Any:
    """All periodic tasks, with their schedules."""
    return _written().select_related(*rules.KINDS)


def _written() -> Any:
    return PeriodicTask.objects.using(router.db_for_write(PeriodicTask))


# --- From when on a schedule is decided -------------------------------------------------------------


def noted(task: Any, *, saved: bool = False) -> Schedule:
    """The row of a periodic task; it begins anew where the task is new, was changed or was enabled.

    ``saved`` just now, a new one begins now; otherwise when it last ran, or was last changed.
    Raises ``Unschedulable``.
    """
    for _ in range(5):
        row = rows().filter(name=task.name).first() or _renamed(task)
        changes = unnoted(row, task, saved=saved)
        if row is not None and not changes:
            return row
        if row is None:
            rows().bulk_create([Schedule(name=task.name, **changes)], ignore_conflicts=True)
        else:
            rows().filter(**_as_seen(row)).update(**changes)
    raise RuntimeError(f"The schedule {task.name} changes faster than it can be read.")


def _renamed(task: Any) -> Schedule | None:
    """The row that a periodic task had under its former name, brought along: a new name changes nothing else."""
    former = rows().filter(periodic_task_id=task.pk).order_by(F("decided_until").desc(nulls_last=True)).first()
    if former is None:
        return None
    try:
        with transaction.atomic(using=lifecycle.alias()):
            rows().filter(**_as_seen(former)).update(name=task.name)
    except IntegrityError:
        pass  # somebody else has just made a row of this name
    return rows().filter(name=task.name).first()


def unnoted(row: Schedule | None, task: Any, *, saved: bool = False) -> dict[str, Any]:
    """What is to be written before the task can be decided."""
    says, ran_at = rules.says(task), rules.aware(task.last_run_at)
    if row is None or row.periodic_task_id != task.pk:
        since = _first_since(task, ran_at, saved=saved)
    elif row.decided_until is None or row.says != says:
        since = clock()
    elif ran_at is not None and ran_at != row.ran_at:
        # Somebody else wrote when it last ran: another scheduler, or a person who wants it caught up from there.
        return {"decided_until": min(ran_at, clock()), "ran_at": ran_at}
    else:
        return {}
    if task.clocked is not None:
        # Its one moment may have passed while it was being typed in.
        since = min(since, rules.given(task.clocked.clocked_time) - RESOLUTION)
    return {
        "periodic_task_id": task.pk, "says": says, "anchor": since, "decided_until": since, "ran_at": ran_at,
    }  # fmt: skip


def _first_since(task: Any, ran_at: datetime | None, *, saved: bool) -> datetime:
    now: datetime = clock()
    changed_at = now if saved else rules.aware(task.date_changed)
    return min(now, ran_at or changed_at or now)


def _as_seen(row: Schedule) -> dict[str, Any]:
    """What must still hold for a change that was decided on this row."""
    return {
        "name": row.name, "periodic_task_id": row.periodic_task_id, "says": row.says,
        "decided_until": row.decided_until, "ran_at": row.ran_at,
    }  # fmt: skip


def stopped(names: list[str]) -> int:
    """Note that these are disabled or gone: what they would have fired meanwhile is not missed."""
    return rows().filter(name__in=names, decided_until__isnull=False).update(decided_until=None)


# --- Deciding -----------------------------------------------------------------------------------------


def decide(task_id: int) -> Decided:
    """Fire what is due of one schedule, leave out what its policy says, and note both: all of it or nothing.

    Raises ``Unschedulable``, and what the database raises; then nothing has happened.
    """
    with transaction.atomic(using=lifecycle.alias()):
        task = enabled().filter(pk=task_id).first()
        if task is None:
            return Decided(0, None)
        row = noted(task)
        assert row.anchor is not None
        assert row.decided_until is not None
        table, now = rules.timetable(task, row.anchor), clock()
        plan = _plan(task, row, table, now)
        if plan is None:
            return Decided(0, None if _ended(task, table, now) else _next(table, row.decided_until))
        batch = plan.fire[:BATCH]
        until = batch[-1] if batch else plan.until
        if not rows().filter(**_as_seen(row)).update(decided_until=until, **({"ran_at": now} if batch else {})):
            return Decided(0, now)  # another beat was faster: look again
        _leave_out(task, plan, now)
        fired = sum(_fire(task, fire, now) for fire in batch)
        if batch:
            _advance(task, now, fired)
        return Decided(fired, None if batch and task.one_off else _next(table, until))


def _plan(task: Any, row: Schedule, table: Timetable, now: datetime) -> Plan | None:
    assert row.decided_until is not None
    lifetime = None if task.expire_seconds is None else timedelta(seconds=task.expire_seconds)
    return misfires.decide(
        table.rule, table.after(row.decided_until), table.until(now), now,
        misfires.EXPIRED if table.end and now >= table.end else row.misfire,
        most=1 if task.one_off else misfires.MOST, lifetime=lifetime,
    )  # fmt: skip


def _next(table: Timetable, decided_until: datetime) -> datetime | None:
    """When the schedule is to be looked at next: at its next fire, else at its end."""
    return table.first(decided_until) or table.end


def _ended(task: Any, table: Timetable, now: datetime) -> bool:
    """Disable a schedule whose end has come, as django-celery-beat does."""
    over = table.end is not None and now >= table.end
    if over:
        _written().filter(pk=task.pk, expires=task.expires).update(enabled=False)
    return over


def _leave_out(task: Any, plan: Plan, now: datetime) -> None:
    """Note the fires that are not to become jobs; a row counts those that have none of their own."""
    if not plan.left_out:
        return
    logger.warning(
        "The schedule %s left out %d fires up to %s (%s).",
        task.name, len(plan.left_out) - bool(plan.uncounted) + plan.uncounted, plan.left_out[-1], plan.reason,
    )  # fmt: skip
    counted = [
        Tick(schedule=task.name, fire_at=fire, left_out=1, reason=plan.reason, decided_at=now) for fire in plan.left_out
    ]
    counted[0].left_out = plan.uncounted or 1
    ticks().bulk_create(counted, ignore_conflicts=True)


def _fire(task: Any, fire: datetime, now: datetime) -> bool:
    """Make one fire a job; False when the ledger has this fire already."""
    try:
        with transaction.atomic(using=lifecycle.alias()):
            tick = ticks().create(schedule=task.name, fire_at=fire, decided_at=now)
    except IntegrityError:
        return False
    called = call.of(task, fire, now)
    ticks().filter(pk=tick.pk).update(job_id=called.job_id, reason=called.reason[:255])
    return True


def _advance(task: Any, now: datetime, fired: int) -> None:
    """Tell the admin when it last ran, and how often; nothing that a person may be editing is written."""
    ran_at = now if settings.USE_TZ else timezone.make_naive(now)
    changes: dict[str, Any] = {"last_run_at": ran_at, "total_run_count": F("total_run_count") + fired}
    if task.one_off:
        changes["enabled"] = False
    told = _written().filter(pk=task.pk)
    if told.db == lifecycle.alias():
        told.update(**changes)
    else:
        transaction.on_commit(lambda: told.update(**changes) and None, using=lifecycle.alias())


# --- Keeping ------------------------------------------------------------------------------------------


def forget_old() -> int:
    """Delete ticks older than thirty days, a slice of the oldest; return how many."""
    limit = clock() - KEPT
    oldest = ticks().order_by("id").values_list("pk", "decided_at")[:FORGOTTEN_AT_ONCE]
    old = [pk for pk, decided_at in oldest if decided_at < limit]
    return ticks().filter(pk__in=old).delete()[0] if old else 0
