"""Reading a periodic task of django-celery-beat: the rule by which it fires, or why it cannot fire."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any, Final
from zoneinfo import ZoneInfo

from celery import schedules
from celery.exceptions import ImproperlyConfigured
from django.conf import settings
from django.core.exceptions import ObjectDoesNotExist
from django.utils import timezone

from jobs.errors import JobsError
from jobs.schedule import fires
from jobs.schedule.fires import RESOLUTION, Clocked, Crontab, Interval, Rule, Solar

SHORTEST: Final = timedelta(milliseconds=100)
# "Never" and "always" are often written as the last or the first date that there is: nothing can be added to those.
FIRST: Final = datetime(2, 1, 1, tzinfo=UTC)
LAST: Final = datetime(9900, 1, 1, tzinfo=UTC)
_SUNDAY: Final = re.compile(r"(?<![\w/-])(?:(\w+)-)?7(?![\w/-])")
KINDS: Final = ("interval", "crontab", "solar", "clocked")


class Unschedulable(JobsError, ValueError):
    """A schedule that cannot fire as it stands."""


@dataclass(frozen=True, slots=True)
class Timetable:
    """The rule of one periodic task, and from when and until when it holds."""

    rule: Rule
    start: datetime | None
    end: datetime | None

    def after(self, decided_until: datetime) -> datetime:
        """From when on fires are due, when all up to ``decided_until`` are decided."""
        return max(decided_until, self.start - RESOLUTION) if self.start else decided_until

    def until(self, now: datetime) -> datetime:
        """Up to when fires are due."""
        return min(now, self.end - RESOLUTION) if self.end else now

    def first(self, decided_until: datetime) -> datetime | None:
        """The next fire; None if there is none."""
        return next(iter(self.upcoming(decided_until, 1)), None)

    def upcoming(self, decided_until: datetime, number: int) -> list[datetime]:
        """The next fires, at most ``number``."""
        found = fires.upcoming(self.rule, self.after(decided_until), number)
        return [fire for fire in found if self.end is None or fire < self.end]


def timetable(task: Any, anchor: datetime) -> Timetable:
    """When a periodic task fires; an interval is counted from its start time, else from ``anchor``.

    Raises ``Unschedulable`` with what is wrong.
    """
    start, end = aware(task.start_time), aware(task.expires)
    kind, schedule = scheduled_by(task)
    if kind == "interval":
        rule: Rule = interval(schedule, start or anchor)
    elif kind == "crontab":
        rule = crontab(schedule)
    elif kind == "solar":
        rule = solar(schedule)
    else:
        rule = Clocked(given(schedule.clocked_time))
    return Timetable(rule, start, end)


def says(task: Any) -> str:
    """What a periodic task says of when it fires, as text: a schedule that says something else begins anew."""
    kind, schedule = scheduled_by(task)
    names = {
        "interval": ("every", "period"), "solar": ("event", "latitude", "longitude"), "clocked": ("clocked_time",),
        "crontab": ("minute", "hour", "day_of_month", "month_of_year", "day_of_week", "timezone"),
    }[kind]  # fmt: skip
    said = " ".join(str(getattr(schedule, name)).replace(" ", "") for name in names)
    start = aware(task.start_time)
    return f"{kind} {said}" + (f" from {start.astimezone(UTC).isoformat()}" if start else "")


def scheduled_by(task: Any) -> tuple[str, Any]:
    """The kind of schedule that a periodic task has, and the schedule. Raises ``Unschedulable`` if it has none."""
    for kind in KINDS:
        try:
            schedule = getattr(task, kind)
        except ObjectDoesNotExist:
            schedule = None
        if schedule is not None:
            return kind, schedule
    raise Unschedulable("It has no schedule. Choose an interval, a crontab, a solar event or a clocked time.")


def interval(schedule: Any, anchor: datetime) -> Interval:
    """An interval; raises ``Unschedulable`` for one that is no length of time, or too short."""
    try:
        every = timedelta(**{str(schedule.period): int(schedule.every)})
    except (TypeError, ValueError, OverflowError):
        raise Unschedulable(f"{schedule.every!r} {schedule.period!r} is not a length of time.") from None
    if every < SHORTEST:
        raise Unschedulable(
            f"It would fire every {every.total_seconds():g} s; the shortest interval is {SHORTEST.total_seconds():g} s."
        )
    if every > fires.HORIZON:
        raise Unschedulable(f"An interval of {every.days:,} days is longer than a lifetime's work. Use a shorter one.")
    return Interval(every, anchor)


def crontab(schedule: Any) -> Crontab:
    """A crontab; raises ``Unschedulable`` for one that cannot be read, or that no date fits."""
    fields = ("minute", "hour", "day_of_week", "day_of_month", "month_of_year")
    told = {name: str(getattr(schedule, name)).replace(" ", "") for name in fields}
    told["day_of_week"] = _SUNDAY.sub(_sunday, told["day_of_week"])
    try:
        parsed: Any = schedules.crontab(**told)
    except (ValueError, KeyError, IndexError, ZeroDivisionError, schedules.ParseException) as error:
        raise Unschedulable(_crontab_sentence(schedule, error)) from None
    rule = Crontab(
        tuple(sorted(parsed.minute)), tuple(sorted(parsed.hour)), frozenset(parsed.day_of_month),
        frozenset(parsed.month_of_year), frozenset(parsed.day_of_week), zone_of(schedule),
    )  # fmt: skip
    if not (rule.minutes and rule.hours and rule.days and rule.months and rule.weekdays):
        raise Unschedulable("One of the fields of its crontab fits no time at all.")
    return rule


def _sunday(found: re.Match[str]) -> str:
    """Sunday as 0, which is also called 7.

    >>> [_SUNDAY.sub(_sunday, days) for days in ("7", "1,7", "5-7", "*/7")]
    ['0', '1,0', '5-6,0', '*/7']
    """
    return f"{found[1]}-6,0" if found[1] else "0"


def _crontab_sentence(schedule: Any, error: Exception) -> str:
    days, months = schedule.day_of_month, schedule.month_of_year
    if "day_of_month" in str(error) or "month" in str(error):
        return f"There is no such date: day {days} of month {months} never comes. Correct the day or the month."
    return f"Its crontab cannot be read: {error}."


def zone_of(schedule: Any) -> tzinfo:
    """The zone whose wall clock a crontab is for."""
    zone = getattr(schedule, "timezone", None)
    if zone is None or not getattr(settings, "DJANGO_CELERY_BEAT_TZ_AWARE", True):
        return timezone.get_default_timezone()
    return zone if isinstance(zone, tzinfo) else ZoneInfo(str(zone))


def solar(schedule: Any) -> Solar:
    """A solar event; raises ``Unschedulable`` without the library that computes it."""
    clock: list[datetime] = []
    try:
        event = schedules.solar(schedule.event, schedule.latitude, schedule.longitude, nowfun=lambda: clock[0])
    except (ImproperlyConfigured, ValueError, ImportError) as error:
        raise Unschedulable(f"Its solar event cannot be computed: {' '.join(str(error).split())}") from None
    except Exception as error:
        raise Unschedulable(f"Its solar event cannot be computed: {error}") from error

    def following(moment: datetime) -> datetime:
        clock[:] = [moment]
        return moment + event.remaining_estimate(moment)

    return Solar(following)


def aware(moment: datetime | None) -> datetime | None:
    """A moment with a zone: without one it is in the project's."""
    return None if moment is None else given(moment)


def given(moment: datetime) -> datetime:
    """The same moment; without a zone it is in the project's. Kept where there is time to count before and after."""
    aware = moment if timezone.is_aware(moment) else timezone.make_aware(moment)
    return min(max(aware, FIRST), LAST)
