"""Deciding what follows an attempt. Pure: no clock, no database, no Celery."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from jobs.errors import DeclarationError
from jobs.failures import Failure, Kind, by_default, by_signal, requested_delay
from jobs.states import State

HIGHEST_ATTEMPTS = 1000
SUSPECT = timedelta(seconds=1)  # what a job that took two processes down waits at most, where its policy says less


@dataclass(frozen=True, slots=True)
class History:
    """How the job fared so far: the attempt that just ended, and what it is allowed."""

    attempt: int
    allowed: int
    losses: int = 0
    snoozes: int = 0
    asked: int = 0
    age: timedelta = timedelta(0)
    idempotent: bool = False


@dataclass(frozen=True, slots=True)
class Bounds:
    """Where it ends, whatever a task says; ``wait`` is the longest that another side may make us wait."""

    losses: int = 3
    snoozes: int = 1000
    age: timedelta = timedelta(days=30)
    wait: timedelta = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Decision:
    """Where the job goes next, why, and after how long."""

    target: State
    reason: str
    delay: timedelta = timedelta(0)
    consumed: bool = True


Errors = tuple[type[BaseException], ...]


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often, how soon and after which errors a task is tried again.

    ``base`` and ``cap`` are seconds: the longest wait before attempt n + 1 is ``base * 2 ** (n - 1)``,
    at most ``cap``; the actual wait is drawn evenly below it ("full jitter", Marc Brooker,
    "Exponential Backoff and Jitter", AWS Architecture Blog, 2015). The four tuples of exception
    classes come before the defaults. A body may snooze ``max_snoozes`` times, and not when its job is older than
    ``snooze_for`` (seconds, or a ``timedelta``); then it has failed.
    """

    max_attempts: int | None = None
    base: float = 1.0
    cap: float = 300.0
    transient: Errors = ()
    permanent: Errors = ()
    ambiguous: Errors = ()
    rate_limited: Errors = ()
    max_snoozes: int | None = None
    snooze_for: float | timedelta | None = None

    def __post_init__(self) -> None:
        if self.max_attempts is not None and not 1 <= self.max_attempts <= HIGHEST_ATTEMPTS:
            raise DeclarationError(f"max_attempts must be between 1 and {HIGHEST_ATTEMPTS}, not {self.max_attempts!r}.")
        if not 0 <= self.base <= self.cap:
            raise DeclarationError(f"base ({self.base!r} s) must be between 0 and cap ({self.cap!r} s).")
        if self.max_snoozes is not None and not 0 <= self.max_snoozes <= HIGHEST_ATTEMPTS:
            raise DeclarationError(f"max_snoozes must be between 0 and {HIGHEST_ATTEMPTS}, not {self.max_snoozes!r}.")
        if self.snooze_for is not None and not _seconds(self.snooze_for) > 0:
            raise DeclarationError(f"snooze_for must be longer than nothing, not {self.snooze_for!r}.")
        for name in ("transient", "permanent", "ambiguous", "rate_limited"):
            _check_classes(name, getattr(self, name))

    def backoff(self, attempt: int) -> timedelta:
        """The longest wait before the next attempt; the caller adds jitter.

        >>> [RetryPolicy().backoff(n).seconds for n in (1, 2, 3, 20)]
        [1, 2, 4, 300]
        """
        doubled = self.base * 2.0 ** min(attempt - 1, 60)
        return timedelta(seconds=min(doubled, self.cap))

    def classify(self, error: BaseException) -> Failure:
        """Name the kind of failure that an exception is.

        >>> RetryPolicy().classify(ConnectionRefusedError("no")).kind
        <Kind.TRANSIENT: 'transient'>
        >>> RetryPolicy(permanent=(OSError,)).classify(ConnectionRefusedError("no")).kind
        <Kind.PERMANENT: 'permanent'>
        """
        own = by_signal(error)
        if own is not None:
            return own
        for kind, classes in self._declared():
            if isinstance(error, classes):
                return Failure(kind, f"{kind.value}, says the task's policy", requested_delay(error))
        return by_default(error)

    def _declared(self) -> Iterator[tuple[Kind, Errors]]:
        yield Kind.RATE_LIMITED, self.rate_limited
        yield Kind.PERMANENT, self.permanent
        yield Kind.AMBIGUOUS, self.ambiguous
        yield Kind.TRANSIENT, self.transient

    def decide(self, failure: Failure, history: History, bounds: Bounds, jitter: float) -> Decision:
        """What becomes of the job. ``jitter`` is a number from 0 to 1, drawn by the caller.

        >>> policy, bounds = RetryPolicy(), Bounds()
        >>> refused = policy.classify(ConnectionRefusedError("no"))
        >>> policy.decide(refused, History(attempt=3, allowed=5), bounds, jitter=0.5)  # doctest: +ELLIPSIS
        Decision(target=State.RETRYING, reason='transient: attempt 3 of 5', delay=...(seconds=2), consumed=True)
        >>> policy.decide(refused, History(attempt=5, allowed=5), bounds, jitter=0.5).reason
        'exhausted: transient, attempt 5 of 5'
        """
        if failure.delay is not None and failure.kind not in (Kind.ASKED, Kind.SNOOZED):
            failure = replace(failure, delay=min(failure.delay, bounds.wait))
        match failure.kind:
            case Kind.CANCELLED:
                return Decision(State.CANCELLED, failure.reason)
            case Kind.SNOOZED | Kind.HANDED_BACK:
                return self._later(failure, history, bounds, State.PENDING, jitter)
            case Kind.RATE_LIMITED:
                return self._later(failure, history, bounds, State.RETRYING, jitter)
            case Kind.PERMANENT | Kind.UNCLASSIFIED:
                return Decision(State.FAILED, failure.reason)
            case Kind.AMBIGUOUS if not history.idempotent:
                return Decision(
                    State.FAILED,
                    f"{failure.reason}; it may have taken effect, and the task is not idempotent",
                )
            case Kind.LOST:
                return self._after_loss(failure, history, bounds, jitter)
        return self._again(failure, history, jitter)

    def _again(self, failure: Failure, history: History, jitter: float) -> Decision:
        count = f"attempt {history.attempt} of {history.allowed}"
        if history.attempt >= history.allowed:
            return Decision(State.FAILED, f"exhausted: {failure.kind.value}, {count}")
        waits = self.backoff(history.attempt) * jitter
        if failure.delay is not None:
            asked_for_by_task = failure.kind is Kind.ASKED
            waits = failure.delay if asked_for_by_task else max(failure.delay, waits)
        return Decision(State.RETRYING, f"{failure.kind.value}: {count}", waits)

    def _later(self, failure: Failure, history: History, bounds: Bounds, target: State, jitter: float) -> Decision:
        if history.snoozes >= bounds.snoozes or history.age > bounds.age:
            return Decision(State.FAILED, f"exhausted: {failure.kind.value} {history.snoozes} times")
        if failure.kind is Kind.SNOOZED and (over := self._snoozed_enough(history)):
            return Decision(State.FAILED, f"exhausted: {over}")
        backoff = self.backoff(history.snoozes + 1)
        # A little jitter on top of what was asked for, so that those told the same time do not come back as one.
        waits = failure.delay + min(backoff, timedelta(seconds=1)) * jitter if failure.delay else backoff * jitter
        if failure.kind is not Kind.RATE_LIMITED:
            waits = failure.delay or timedelta(0)
        return Decision(target, failure.reason, waits, consumed=False)

    def _snoozed_enough(self, history: History) -> str:
        """Why a body may not snooze once more; empty where it may.

        >>> RetryPolicy(max_snoozes=3)._snoozed_enough(History(attempt=4, allowed=13, asked=3))
        'snoozed 3 times'
        """
        if self.max_snoozes is not None and history.asked >= self.max_snoozes:
            return f"snoozed {history.asked} times"
        if self.snooze_for is not None and history.age.total_seconds() > _seconds(self.snooze_for):
            return f"it may snooze for {_seconds(self.snooze_for):g} s"
        return ""

    def _after_loss(self, failure: Failure, history: History, bounds: Bounds, jitter: float) -> Decision:
        if history.losses >= bounds.losses:
            return Decision(State.FAILED, f"poison: lost {history.losses} times, last: {failure.reason}")
        if history.attempt >= history.allowed:
            return Decision(
                State.FAILED, f"exhausted: {failure.reason}, attempt {history.attempt} of {history.allowed}"
            )
        return Decision(State.RETRYING, f"lost: {failure.reason}", self._after_deaths(history.losses, jitter))

    def _after_deaths(self, losses: int, jitter: float) -> timedelta:
        """The first loss is most often a deploy or the machine; from the second on the job is suspect, and waits.

        Half of the wait is certain: what takes a process down each time must not do so in a row.
        """
        return max(SUSPECT, self.backoff(losses)) * (0.5 + jitter / 2) if losses > 1 else timedelta(0)


def _seconds(length: float | timedelta) -> float:
    return length.total_seconds() if isinstance(length, timedelta) else float(length)


def _check_classes(name: str, classes: Any) -> None:
    if not isinstance(classes, tuple) or not all(isinstance(c, type) and issubclass(c, BaseException) for c in classes):
        raise DeclarationError(f"{name} of a RetryPolicy must be a tuple of exception classes, not {classes!r}.")
