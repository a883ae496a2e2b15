"""When a schedule fires, between two moments. Pure: no clock, no database, no Celery.

All moments are aware. A rule fires at the same moments whoever asks, and whenever: nothing depends on the last run.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, tzinfo
from itertools import islice
from typing import Final, Protocol

DAY: Final = timedelta(days=1)
RESOLUTION: Final = timedelta.resolution
# A crontab for 29 February on a Monday has fired within this time.
HORIZON: Final = timedelta(days=366 * 41)
# No zone ever skipped more than a day.
LOOK_BACK: Final = 2 * DAY
MOST_COUNTED: Final = 100_000


class Rule(Protocol):
    """When something fires."""

    def between(self, after: datetime, until: datetime) -> Iterator[datetime]:
        """The fires after ``after``, up to and including ``until``, in order, in UTC."""
        ...


@dataclass(frozen=True, slots=True)
class Interval:
    """Fires every so often of real time, counted from an anchor.

    >>> every = Interval(timedelta(hours=8), datetime(2030, 1, 1, tzinfo=UTC))
    >>> [f"{fire:%H:%M}" for fire in every.between(every.anchor, every.anchor + DAY)]
    ['08:00', '16:00', '00:00']
    """

    every: timedelta
    anchor: datetime

    def between(self, after: datetime, until: datetime) -> Iterator[datetime]:
        """The fires after ``after``, up to and including ``until``."""
        fire = self._next(after)
        while fire <= until:
            yield fire
            fire += self.every

    def _next(self, after: datetime) -> datetime:
        return self.anchor.astimezone(UTC) + ((after - self.anchor) // self.every + 1) * self.every

    def count(self, after: datetime, until: datetime) -> int:
        """How many fires there are between, however many that is."""
        return max(0, (until - self.anchor) // self.every - (after - self.anchor) // self.every)


@dataclass(frozen=True, slots=True)
class Clocked:
    """Fires once, at a moment."""

    at: datetime

    def between(self, after: datetime, until: datetime) -> Iterator[datetime]:
        """That moment, if it lies between."""
        if after < self.at <= until:
            yield self.at.astimezone(UTC)


@dataclass(frozen=True, slots=True)
class Solar:
    """Fires at an event of the sun; ``following`` finds the next one after a moment.

    The search always begins at midnight UTC, or two who ask at different times would get moments a little apart.
    """

    following: Callable[[datetime], datetime]

    def between(self, after: datetime, until: datetime) -> Iterator[datetime]:
        """The events after ``after``, up to and including ``until``, to the second."""
        day = after.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0) - DAY
        last = after
        while day <= until:
            found = self.following(day).astimezone(UTC)
            fire = found.replace(microsecond=0)
            if last < fire <= until and found < day + DAY:
                yield fire
                last = fire
            day += DAY


@dataclass(frozen=True, slots=True)
class Crontab:
    """Fires when the wall clock of a zone shows one of the times. Weekdays count from Sunday, 0.

    Around a change of the clock: a time that the clock skips fires as much later as was skipped, one that it shows
    twice fires the first time. A crontab of every hour follows real time instead: it fires in both of two equal hours.
    """

    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    zone: tzinfo

    @property
    def hourly(self) -> bool:
        """Whether it fires in every hour of its days."""
        return len(self.hours) == 24

    def between(self, after: datetime, until: datetime) -> Iterator[datetime]:
        """The fires after ``after``, up to and including ``until``."""
        last = after
        for span in spans(self.zone, after.astimezone(UTC) - LOOK_BACK, until.astimezone(UTC)):
            if span.end <= after:
                continue
            for fire in self._within(span, after.astimezone(UTC)):
                if last < fire <= until:
                    yield fire
                    last = fire

    def _within(self, span: Span, after: datetime) -> Iterator[datetime]:
        """The fires of one span, some of them too early or too late."""
        begin, end = span.wall(max(span.start, after)), span.wall(span.end)
        if self.hourly:
            return (span.moment(wall) for wall in self._times(begin, end))
        shown = (span.moment(wall) for wall in self._times(max(begin, span.shown_until), end))
        skipped = (span.moment_before(wall) for wall in self._times(span.shown_until, span.wall(span.start)))
        return heapq.merge(shown, skipped)

    def _times(self, begin: datetime, end: datetime) -> Iterator[datetime]:
        """The times of the wall clock from ``begin`` up to before ``end``, naive."""
        day = begin.date()
        while datetime.combine(day, datetime.min.time()) < end:
            if self._on(day):
                for hour in self.hours:
                    if day == begin.date() and hour < begin.hour:
                        continue
                    for minute in self.minutes:
                        wall = datetime(day.year, day.month, day.day, hour, minute)  # noqa: DTZ001
                        if begin <= wall < end:
                            yield wall
            day += DAY

    def _on(self, day: date) -> bool:
        return day.month in self.months and day.day in self.days and day.isoweekday() % 7 in self.weekdays


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of at most a day in which a zone keeps one distance from UTC; ``was`` is the one before."""

    start: datetime
    end: datetime
    offset: timedelta
    was: timedelta

    @property
    def shown_until(self) -> datetime:
        """What the wall clock had come to when the span began."""
        return self.start.replace(tzinfo=None) + self.was

    def wall(self, moment: datetime) -> datetime:
        """What the wall clock shows at a moment, naive."""
        return moment.replace(tzinfo=None) + self.offset

    def moment(self, wall: datetime) -> datetime:
        """When the wall clock shows this."""
        return wall.replace(tzinfo=UTC) - self.offset

    def moment_before(self, wall: datetime) -> datetime:
        """When the wall clock would have shown this, had it not been changed."""
        return wall.replace(tzinfo=UTC) - self.was


def spans(zone: tzinfo, start: datetime, until: datetime) -> Iterator[Span]:
    """The spans that cover the time from ``start`` up to and including ``until``."""
    here, was = start, distance(zone, start)
    while here <= until:
        offset = distance(zone, here)
        there = min(here + DAY, until + RESOLUTION)
        if distance(zone, there) != offset:
            there = _change(zone, here, there)
        yield Span(here, there, offset, was)
        here, was = there, offset


def distance(zone: tzinfo, moment: datetime) -> timedelta:
    """How far the zone's wall clock is ahead of UTC at a moment."""
    return moment.astimezone(zone).utcoffset() or timedelta(0)


def _change(zone: tzinfo, before: datetime, after: datetime) -> datetime:
    """The second in which the zone's distance from UTC changes."""
    offset = distance(zone, before)
    while after - before > timedelta(seconds=1):
        middle = before + (after - before) / 2
        before, after = (middle, after) if distance(zone, middle) == offset else (before, middle)
    # Zones change on whole seconds: the one that lies between.
    whole = after.replace(microsecond=0)
    return whole if whole > before else after


def first(rule: Rule, after: datetime) -> datetime | None:
    """The next fire after a moment; None if there never is one."""
    return next(rule.between(after, after + HORIZON), None)


def upcoming(rule: Rule, after: datetime, number: int) -> list[datetime]:
    """The next fires after a moment, at most ``number``."""
    return list(islice(rule.between(after, after + HORIZON), number))


def newest(rule: Rule, after: datetime, until: datetime, most: int) -> list[datetime]:
    """The last fires between two moments, at most ``most``, in order."""
    width = timedelta(minutes=1)
    while True:
        begin = max(after, until - width) if width < until - after else after
        found = list(rule.between(begin, until))
        if len(found) >= most or begin == after:
            return found[-most:] if most else []
        width *= 4


def count(rule: Rule, after: datetime, until: datetime) -> int:
    """How many fires there are between two moments; of rules that must be counted one by one, at most 100,000."""
    if isinstance(rule, Interval):
        return rule.count(after, until)
    return sum(1 for _ in islice(rule.between(after, until), MOST_COUNTED))
