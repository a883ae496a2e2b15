"""What a person wants to know of a schedule: its next fires with their distance from UTC, its last ones, its troubles.

Reads only; rows are the database's, and so is the time.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta, tzinfo
from typing import Any, Final

from django.utils import timezone

from jobs.models import Schedule, Tick
from jobs.schedule import ledger, misfires, rules
from jobs.schedule.rules import Timetable, Unschedulable

NEVER: Final = "It has no fire left: its time has passed, or never comes. Change it, or disable it."


@dataclass(frozen=True, slots=True)
class Outlook:
    """A schedule as it stands. ``problem`` says why an enabled one does not fire."""

    task: Any
    misfire: str
    now: datetime
    zone: tzinfo
    fires: tuple[datetime, ...] = ()
    overdue_since: datetime | None = None
    problem: str = ""

    @property
    def next_at(self) -> datetime | None:
        """The next fire, unless it is disabled."""
        return self.fires[0] if self.fires and self.task.enabled else None


def outlook(task: Any, number: int = 1, now: datetime | None = None) -> Outlook:
    """A periodic task and its next fires. ``task`` need not be saved."""
    return _outlook(task, ledger.rows().filter(name=task.name).first(), number, now or ledger.clock())


def outlooks(number: int = 1, name: str = "") -> list[Outlook]:
    """All periodic tasks in order of their names, or those whose name contains ``name``."""
    now = ledger.clock()
    rows = {row.name: row for row in ledger.rows()}
    tasks = ledger.every().filter(name__icontains=name) if name else ledger.every()
    return [_outlook(task, rows.get(task.name), number, now) for task in tasks.order_by("name")]


def _outlook(task: Any, row: Schedule | None, number: int, now: datetime) -> Outlook:
    misfire = row.misfire if row else Schedule.Misfire.ONCE.value
    zone: tzinfo = timezone.get_current_timezone()
    try:
        kind, schedule = rules.scheduled_by(task)
        zone = rules.zone_of(schedule) if kind == "crontab" else zone
        table = _timetable(task, row, now)
    except Unschedulable as problem:
        return Outlook(task, misfire, now, zone, problem=str(problem))
    decided = row.decided_until if row is not None and row.decided_until is not None else now
    overdue = table.first(decided) if task.enabled else None
    fires = tuple(table.upcoming(now, number))
    late = overdue is not None and now - overdue > misfires.grace(table.rule, overdue)
    return Outlook(
        task, misfire, now, zone, fires, overdue if late else None, NEVER if not fires and not overdue else ""
    )


def _timetable(task: Any, row: Schedule | None, now: datetime) -> Timetable:
    known = row is not None and row.anchor is not None and row.says == rules.says(task)
    return rules.timetable(task, row.anchor if known and row is not None and row.anchor else now)


def problems() -> list[tuple[str, str]]:
    """Enabled schedules that do not fire as they stand, and why: name and sentence."""
    return [(found.task.name, found.problem) for found in outlooks() if found.task.enabled and found.problem]


def recent(name: str, number: int = 10) -> list[Tick]:
    """The last entries of the ledger for a schedule, newest first."""
    return list(ledger.ticks().filter(schedule=name)[:number])


def local(moment: datetime, zone: tzinfo) -> str:
    """A moment on a zone's wall clock, with the distance from UTC.

    >>> from datetime import UTC
    >>> from zoneinfo import ZoneInfo
    >>> local(datetime(2026, 10, 25, 0, 30, tzinfo=UTC), ZoneInfo("Europe/Oslo"))
    'Sun 25 Oct 2026 02:30:00 +02:00'
    """
    shown = moment.astimezone(zone)
    if shown.microsecond >= 500_000:
        shown += timedelta(seconds=1)
    offset = f"{shown:%z}"
    return f"{shown:%a %d %b %Y %H:%M:%S} {offset[:3]}:{offset[3:5]}"
