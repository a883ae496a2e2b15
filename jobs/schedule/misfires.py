"""Which of the fires that are due are to be fired, and which are left out. Pure.

A fire is late when nobody could decide it in time: beat was down, or the database was.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from jobs.schedule import fires
from jobs.schedule.fires import Rule

SKIP: Final = "skip"
ONCE: Final = "once"
ALL: Final = "all"
# Not a policy of anybody's choice: the schedule has ended, and its jobs with it.
EXPIRED: Final = "expired"

# The bounds of "all".
MOST: Final = 1000
OLDEST: Final = timedelta(days=7)
# How many of those left out have a row of their own; one row counts the rest.
MOST_RECORDED: Final = 50


@dataclass(frozen=True, slots=True)
class Plan:
    """What becomes of the fires that are due: those left out are older than those to fire."""

    fire: tuple[datetime, ...]
    left_out: tuple[datetime, ...] = ()
    uncounted: int = 0
    reason: str = ""

    @property
    def until(self) -> datetime:
        """Up to when this decides every fire."""
        return (self.fire or self.left_out)[-1]


def grace(rule: Rule, fire: datetime) -> timedelta:
    """How late a fire may be and still count as in time: a tenth of the time to the next, 5 s to 5 min.

    >>> from datetime import UTC
    >>> noon = datetime(2030, 1, 1, 12, tzinfo=UTC)
    >>> [grace(fires.Interval(timedelta(seconds=s), noon), noon).seconds for s in (1, 120, 86400)]
    [5, 12, 300]
    """
    following = fires.first(rule, fire)
    gap = following - fire if following else timedelta(days=1)
    return min(max(gap / 10, timedelta(seconds=5)), timedelta(minutes=5))


def decide(
    rule: Rule, after: datetime, until: datetime, now: datetime, policy: str, *, most: int = MOST,
    lifetime: timedelta | None = None,
) -> Plan | None:  # fmt: skip
    """What becomes of the fires after ``after`` up to ``until``; None when there are none.

    ``most`` bounds how many are fired at all; after its ``lifetime`` a late fire is left out.
    """
    oldest = next(rule.between(after, until), None)
    if oldest is None:
        return None
    due = fires.newest(rule, after, until, most)
    if policy == EXPIRED or (lifetime is not None and now - due[-1] >= max(lifetime, grace(rule, oldest))):
        return _plan(rule, after, oldest, due, lambda fire: False, "expired before it could be fired")
    if now - oldest <= grace(rule, oldest):
        return _plan(rule, after, oldest, due, lambda fire: True, "more than can be fired at once")
    if policy == ALL:
        since = now - (OLDEST if lifetime is None else min(OLDEST, lifetime))
        return _plan(rule, after, oldest, due, lambda fire: fire > since, "policy all: too many, or too old")
    last = due[-1]
    if policy == SKIP and now - last > grace(rule, last):
        return _plan(rule, after, oldest, due, lambda fire: False, "policy skip: missed")
    return _plan(rule, after, oldest, due, lambda fire: fire == last, f"policy {policy}: missed")


def _plan(
    rule: Rule, after: datetime, oldest: datetime, due: list[datetime], wanted: Callable[[datetime], bool], reason: str
) -> Plan:
    """The wanted ones of the newest fires, and an account of all the others."""
    chosen = tuple(fire for fire in due if wanted(fire))
    end = chosen[0] - fires.RESOLUTION if chosen else due[-1]
    if end < oldest:
        return Plan(chosen)
    recorded = fires.newest(rule, after, end, MOST_RECORDED)
    uncounted = max(0, fires.count(rule, after, end) - len(recorded))
    return Plan(chosen, (oldest, *recorded) if uncounted else tuple(recorded), uncounted, reason)
