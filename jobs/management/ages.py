"""Ages as people write and read them: ``2h``, ``7d``, ``3 min ago``. Pure."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import Final

SECONDS: Final = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400, "w": 604_800}
LONGEST: Final = timedelta(days=36_500)

_PART = re.compile(r"(\d+(?:\.\d+)?)\s*(s|min|m|h|d|w)\s*")


def age(text: str) -> timedelta:
    """The length of time that a text names; several parts add up.

    Raises ``ValueError`` that shows how to write one.

    >>> age("90s"), age("1d12h"), age("2 w").days
    (datetime.timedelta(seconds=90), datetime.timedelta(days=1, seconds=43200), 14)
    """
    parts = _PART.findall(text.strip().lower())
    if not parts or _PART.sub("", text.strip().lower()):
        raise ValueError(f"{text!r} is not an age. Write 90s, 30m, 2h, 7d, 4w or 1d12h.")
    seconds = sum(float(amount) * SECONDS[unit] for amount, unit in parts)
    if seconds > LONGEST.total_seconds():
        raise ValueError(f"{text!r} is longer than a hundred years.")
    return timedelta(seconds=seconds)


def moment(text: str, now: datetime) -> datetime:
    """The moment that a text names: an age before ``now``, or an ISO time (without a zone, in that of ``now``).

    Raises ``ValueError`` that shows how to write one.

    >>> from datetime import UTC
    >>> noon = datetime(2030, 1, 31, 12, tzinfo=UTC)
    >>> print(moment("2h", noon), moment("2030-01-31", noon))
    2030-01-31 10:00:00+00:00 2030-01-31 00:00:00+00:00
    """
    try:
        return now - age(text)
    except ValueError:
        pass
    try:
        given = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r} is neither an age (2h, 7d) nor a time (2030-01-31T12:00).") from None
    return given if given.tzinfo else given.replace(tzinfo=now.tzinfo)


def said(length: timedelta) -> str:
    """A length of time in at most two units.

    >>> [said(timedelta(seconds=s)) for s in (0.0421, 3.25, 47, 125, 7260, 90000)]
    ['42 ms', '3.2 s', '47 s', '2 min 5 s', '2 h 1 min', '1 d 1 h']
    """
    seconds = max(length.total_seconds(), 0.0)
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 10 else _two_units(round(seconds))


def _two_units(seconds: int) -> str:
    parts = []
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        amount, seconds = divmod(seconds, size)
        if amount:
            parts.append(f"{amount} {unit}")
        elif parts:
            break
    return " ".join(parts[:2])


def ago(then: datetime, now: datetime) -> str:
    """How long before ``now`` a moment was, or how long after it is.

    >>> noon = datetime(2030, 1, 31, 12)
    >>> ago(noon, noon + timedelta(hours=1)), ago(noon, noon - timedelta(minutes=2))
    ('1 h ago', 'in 2 min')
    """
    passed = now - then
    if abs(passed) < timedelta(seconds=1):
        return "now"
    return f"{said(passed)} ago" if passed > timedelta(0) else f"in {said(-passed)}"
