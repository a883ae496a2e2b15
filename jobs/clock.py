"""The database's clock, as a value and as SQL: times never come from the machine that asks. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True, slots=True)
class Clock:
    """The database's clock, plus ``delta``: times never come from the machine that asks."""

    delta: timedelta = timedelta(0)


NOW = Clock()


def sql(vendor: str, delta: timedelta = timedelta(0)) -> str:
    """SQL for the clock plus ``delta``."""
    # PostgreSQL's now() is the start of the transaction; a lease must be told the time that it is.
    if vendor == "postgresql":
        return f"(clock_timestamp() + interval '{delta.total_seconds():.6f} seconds')"
    return f"strftime('%%Y-%%m-%%d %%H:%%M:%%f000', 'now', '{delta.total_seconds():+.6f} seconds')"


def later_sql(vendor: str, seconds: str) -> str:
    """SQL for the clock plus as many seconds as the SQL ``seconds`` gives; NULL where that is NULL."""
    if vendor == "postgresql":
        return f"(clock_timestamp() + {seconds} * interval '1 second')"
    return f"strftime('%%Y-%%m-%%d %%H:%%M:%%f000', 'now', {seconds} || ' seconds')"


def seconds(vendor: str, delta: timedelta) -> float | str:
    """A length of time as ``later_sql`` takes it."""
    # SQLite would write a small number with an exponent, and then not understand it.
    return delta.total_seconds() if vendor == "postgresql" else f"{delta.total_seconds():+.6f}"
