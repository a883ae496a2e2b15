"""What a task declares of circuit breakers, and how a circuit opens, is probed and closes. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, ClassVar, Final

from jobs import failures, limits
from jobs.errors import DeclarationError
from jobs.failures import Failure
from jobs.limits import LimitKey, Numbers

MOST_FAILURES: Final = 1000
DAY: Final = 86_400.0

# What a dependency may be the cause of. Nobody classified the third: it may be.
_COUNTED = {failures.Kind.TRANSIENT, failures.Kind.AMBIGUOUS, failures.Kind.UNCLASSIFIED}
_NEVER = {failures.Kind.CANCELLED, failures.Kind.SNOOZED, failures.Kind.HANDED_BACK}

Errors = tuple[type[BaseException], ...]


@dataclass(frozen=True, slots=True)
class Breaker:
    """Parks the jobs of a key that keeps failing: ``Breaker("gateway", failures=5, within=60, park=300)``.

    Its circuit opens after ``failures`` in so many seconds; without ``within``, after so many in a row. While it is
    open, no job with this key starts, and none loses an attempt. After ``park`` seconds it is half-open, and lets
    ``probes`` through: if they complete, it closes; if one fails, it is open again, ``growth`` times as long each time,
    ``cap`` seconds at most. With ``on``, these exceptions count, and no others.
    """

    kind: ClassVar[limits.Kind] = limits.Kind.CIRCUIT

    key: LimitKey
    failures: int = 5
    within: float | None = None
    park: float = 60.0
    probes: int = 1
    growth: float = 1.0
    cap: float = DAY
    on: Errors = ()

    def __post_init__(self) -> None:
        told = f"Breaker({self.key!r}, …)"
        for name, most in (("failures", MOST_FAILURES), ("probes", 100)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
                raise DeclarationError(f"{told}: {name} is a whole number from 1 to {most:,}, not {value!r}.")
        for name, least in (("within", 0.001), ("park", 0.001), ("growth", 1.0), ("cap", 0.001)):
            value = getattr(self, name)
            if not (name == "within" and value is None) and not _number(value, least):
                unit = "" if name == "growth" else " of seconds"
                raise DeclarationError(f"{told}: {name} is a number{unit}, {least:g} or more, not {value!r}.")
        if not _are_errors(self.on):
            raise DeclarationError(f"{told}: on must be a tuple of exception classes, not {self.on!r}.")

    @property
    def numbers(self) -> Numbers:
        """What it allows: its numbers are read off the code when a job fails, never off the job."""
        return Numbers(0.0, 0.0)

    @property
    def in_a_row(self) -> bool:
        """Whether a success in between makes it begin anew."""
        return self.within is None

    def parked(self, openings: int) -> timedelta:
        """For how long the jobs wait, when it has opened so many times without closing.

        >>> [Breaker("x", park=60, growth=2, cap=200).parked(n).seconds for n in (1, 2, 3, 99)]
        [60, 120, 200, 200]
        """
        longest = max(self.cap, self.park)
        return timedelta(seconds=min(self.park * self.growth ** min(openings - 1, 60), longest))

    def counts(self, failure: Failure, error: BaseException | None) -> bool:
        """Whether an attempt that ended so says something about what the key stands for.

        >>> Breaker("x").counts(Failure(failures.Kind.PERMANENT, "a bad payload"), ValueError())
        False
        >>> Breaker("x").counts(Failure(failures.Kind.TRANSIENT, "it is away"), OSError())
        True
        """
        if failure.kind in _NEVER:
            return False
        if self.on:
            return isinstance(error, self.on)
        if failure.kind is failures.Kind.LOST:
            return failures.hung(failure)
        if failure.kind is failures.Kind.ASKED:
            return error is not None and not _celerys_retry(error)
        return failure.kind in _COUNTED


def _number(value: object, least: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value < math.inf


def _are_errors(value: object) -> bool:
    return isinstance(value, tuple) and all(isinstance(c, type) and issubclass(c, BaseException) for c in value)


def _celerys_retry(error: BaseException) -> bool:
    """A task that only wants to look again later says so without an error."""
    return f"{type(error).__module__}.{type(error).__qualname__}" == "celery.exceptions.Retry"


def check_breakers(name: str, breakers: Any, parameters: Mapping[str, Any] | None) -> None:
    """Refuse breakers that can never work: at declaration, with the remedy."""
    if isinstance(breakers, Breaker) or not isinstance(breakers, Sequence) or isinstance(breakers, str):
        raise DeclarationError(f'The breakers of {name} must be a list, such as [Breaker("x")], not {breakers!r}.')
    for breaker in breakers:
        if not isinstance(breaker, Breaker):
            raise DeclarationError(f"A breaker of {name} must be a Breaker, not {breaker!r}.")
        if not callable(breaker.key):
            limits.check_template(name, breaker.key, parameters, "breaker")
    rules = [limits.rule_of(name, breaker) for breaker in breakers]
    for twice in (rule for rule in rules if rules.count(rule) > 1):
        raise DeclarationError(f"{name} has two breakers for the key {twice!r}. Keep one.")


# --- A circuit ----------------------------------------------------------------------------------------


class Phase(StrEnum):
    """How a circuit stands."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


@dataclass(frozen=True, slots=True)
class Standing:
    """What is known of a circuit; times are those of the database's clock, failures in seconds."""

    failed_at: tuple[float, ...] = ()
    opened_at: datetime | None = None
    open_until: datetime | None = None
    openings: int = 0  # since it was last closed
    probes: int = 1
    succeeded: int = 0  # probes, since it is half-open

    def phase(self, now: datetime) -> Phase:
        """How it stands at a moment."""
        if self.open_until is None:
            return Phase.CLOSED
        return Phase.OPEN if now < self.open_until else Phase.HALF_OPEN


def failed(standing: Standing, breaker: Breaker, now: datetime, *, probe: bool) -> Standing:
    """The circuit after a failure that counts. What began before it opened says nothing new."""
    phase = standing.phase(now)
    if phase is Phase.HALF_OPEN and probe:
        return _opened(standing, breaker, now)
    if phase is not Phase.CLOSED:
        return standing
    recent = [at for at in standing.failed_at if breaker.within is None or at > now.timestamp() - breaker.within]
    standing = replace(standing, failed_at=(*recent, now.timestamp())[-breaker.failures :])
    return _opened(standing, breaker, now) if len(standing.failed_at) >= breaker.failures else standing


def _opened(standing: Standing, breaker: Breaker, now: datetime) -> Standing:
    openings = standing.openings + 1
    return replace(
        standing, opened_at=now, open_until=now + breaker.parked(openings), openings=openings, probes=breaker.probes,
        succeeded=0,
    )  # fmt: skip


def completed(standing: Standing, now: datetime, *, in_a_row: bool, probe: bool) -> Standing:
    """The circuit after a job of it has completed."""
    match standing.phase(now):
        case Phase.CLOSED if in_a_row and standing.failed_at:
            return replace(standing, failed_at=())
        case Phase.HALF_OPEN if probe and standing.succeeded + 1 >= standing.probes:
            return Standing()
        case Phase.HALF_OPEN if probe:
            return replace(standing, succeeded=standing.succeeded + 1)
    return standing


@dataclass(slots=True)
class Passage:
    """How many jobs of a circuit may still go within one release."""

    until: datetime | None = None  # while it is open
    left: float = field(default=math.inf)

    @property
    def guarded(self) -> bool:
        """Whether those who go are probes."""
        return not math.isinf(self.left)


def passage(standing: Standing, now: datetime, flying: int) -> Passage:
    """What a circuit lets through, of which so many probes have not come back."""
    match standing.phase(now):
        case Phase.OPEN:
            return Passage(standing.open_until, 0)
        case Phase.HALF_OPEN:
            return Passage(None, max(0, standing.probes - standing.succeeded - flying))
    return Passage()
