"""Deciding what follows an attempt. Pure: no clock, no database, no Celery."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from email.utils import parsedate_to_datetime
from enum import Enum
from typing import Any

from jobs.errors import (
    DeclarationError,
    JobCancelled,
    LeaseLost,
    Snooze,
    WorkerLost,
)
from jobs.states import State

HIGHEST_ATTEMPTS = 1000


class Kind(Enum):
    """What sort of failure it was, which decides whether trying again can help."""

    TRANSIENT = "transient"
    PERMANENT = "permanent"
    AMBIGUOUS = "ambiguous"
    RATE_LIMITED = "rate limited"
    UNCLASSIFIED = "unclassified"
    ASKED = "asked to retry"
    SNOOZED = "snoozed"
    CANCELLED = "cancelled"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Failure:
    """What an attempt ended with, when it did not complete.

    ``delay`` is what the failure itself asks for (Retry-After, countdown, snooze).
    """

    kind: Kind
    reason: str
    delay: timedelta | None = None


@dataclass(frozen=True, slots=True)
class History:
    """How the job fared so far: the attempt that just ended, and what it is allowed."""

    attempt: int
    allowed: int
    losses: int = 0
    snoozes: int = 0
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
    classes come before the defaults.
    """

    max_attempts: int | None = None
    base: float = 1.0
    cap: float = 300.0
    transient: Errors = ()
    permanent: Errors = ()
    ambiguous: Errors = ()
    rate_limited: Errors = ()

    def __post_init__(self) -> None:
        if self.max_attempts is not None and not 1 <= self.max_attempts <= HIGHEST_ATTEMPTS:
            raise DeclarationError(f"max_attempts must be between 1 and {HIGHEST_ATTEMPTS}, not {self.max_attempts!r}.")
        if not 0 <= self.base <= self.cap:
            raise DeclarationError(f"base ({self.base!r} s) must be between 0 and cap ({self.cap!r} s).")
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
        own = _by_signal(error)
        if own is not None:
            return own
        for kind, classes in self._declared():
            if isinstance(error, classes):
                return Failure(kind, f"{kind.value}, says the task's policy", _requested_delay(error))
        return _by_default(error)

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
            case Kind.SNOOZED:
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
        backoff = self.backoff(history.snoozes + 1)
        # A little jitter on top of what was asked for, so that those told the same time do not come back as one.
        waits = failure.delay + min(backoff, timedelta(seconds=1)) * jitter if failure.delay else backoff * jitter
        if failure.kind is Kind.SNOOZED:
            waits = failure.delay or timedelta(0)
        return Decision(target, failure.reason, waits, consumed=False)

    def _after_loss(self, failure: Failure, history: History, bounds: Bounds, jitter: float) -> Decision:
        if history.losses >= bounds.losses:
            return Decision(State.FAILED, f"poison: {failure.reason}, {history.losses} times")
        if history.attempt >= history.allowed:
            return Decision(
                State.FAILED, f"exhausted: {failure.reason}, attempt {history.attempt} of {history.allowed}"
            )
        # The first loss is most often a deploy or the machine; from the second on the job is suspect.
        waits = self.backoff(history.losses) * jitter if history.losses > 1 else timedelta(0)
        return Decision(State.RETRYING, f"lost: {failure.reason}", waits)


def _check_classes(name: str, classes: Any) -> None:
    if not isinstance(classes, tuple) or not all(isinstance(c, type) and issubclass(c, BaseException) for c in classes):
        raise DeclarationError(f"{name} of a RetryPolicy must be a tuple of exception classes, not {classes!r}.")


def _by_signal(error: BaseException) -> Failure | None:
    """Mainstay's own exceptions mean what they say, also to a policy for all of ``Exception``."""
    if isinstance(error, Snooze):
        return Failure(Kind.SNOOZED, error.reason, error.delay)
    if isinstance(error, JobCancelled):
        return Failure(Kind.CANCELLED, str(error) or "cancelled")
    if isinstance(error, WorkerLost | LeaseLost):
        return Failure(Kind.LOST, str(error) or type(error).__name__)
    return None


def _by_default(error: BaseException) -> Failure:
    if isinstance(error, MemoryError):
        return Failure(Kind.LOST, str(error) or type(error).__name__)
    status, reply = _status(error), _smtp_reply(error)
    if status is not None:
        return _by_status(status, error)
    if reply is not None:
        # Of the 400s transient, of the 500s permanent (RFC 5321, 4.2.1): the reverse of HTTP.
        return Failure(Kind.TRANSIENT if 400 <= reply < 500 else Kind.PERMANENT, f"SMTP {reply}")
    return _by_class(error)


def _by_class(error: BaseException) -> Failure:
    if isinstance(error, OSError) and error.errno in _TRANSIENT_ERRNO:
        return Failure(Kind.TRANSIENT, f"transient: {type(error).__name__}")
    for cls in type(error).__mro__:
        kind = DEFAULT_KINDS.get(f"{cls.__module__}.{cls.__qualname__}")
        if kind is Kind.AMBIGUOUS and _never_sent(error):
            kind = Kind.TRANSIENT
        if kind is not None:
            return Failure(kind, f"{kind.value}: {type(error).__qualname__}", _requested_delay(error))
    return Failure(Kind.UNCLASSIFIED, f"unclassified: {type(error).__name__}")


def _never_sent(error: BaseException) -> bool:
    """Whether a connection error wraps one that came before anything was sent, however deep.

    What was merely being handled (``__context__``) may be the failure of another server, asked before.
    """
    seen: set[int] = set()
    waiting: list[Any] = [error]
    while waiting and len(seen) < 20:
        inner = waiting.pop()
        if not isinstance(inner, BaseException) or id(inner) in seen:
            continue
        seen.add(id(inner))
        if _names(inner) & _BEFORE_SENDING:
            return True
        waiting += [getattr(inner, "reason", None), inner.__cause__, *inner.args]
    return False


def _by_status(status: int, error: BaseException) -> Failure:
    """The kind of an HTTP status code (RFC 9110, RFC 6585 for 429)."""
    reason = f"HTTP {status}"
    if status == 429:
        return Failure(Kind.RATE_LIMITED, reason, _requested_delay(error))
    if status in (408, 423, 425, 503):
        return Failure(Kind.TRANSIENT, reason, _requested_delay(error))
    if status >= 500 and status not in (501, 505):
        return Failure(Kind.AMBIGUOUS, reason, _requested_delay(error))
    return Failure(Kind.PERMANENT, reason)


def _status(error: BaseException) -> int | None:
    """The status of an HTTP error of requests, httpx or urllib."""
    if not _names(error) & _HTTP_ERRORS:
        return None
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None) or getattr(error, "code", None)
    return status if isinstance(status, int) else None


def _smtp_reply(error: BaseException) -> int | None:
    """The reply code of an SMTP error; of several recipients, the gravest."""
    if "smtplib.SMTPResponseException" in _names(error):
        return int(getattr(error, "smtp_code", 0))
    if "smtplib.SMTPRecipientsRefused" in _names(error):
        return max((code for code, _ in getattr(error, "recipients", {}).values()), default=550)
    return None


def _names(error: BaseException) -> set[str]:
    return {f"{cls.__module__}.{cls.__qualname__}" for cls in type(error).__mro__}


def _requested_delay(error: BaseException) -> timedelta | None:
    """How long the other side asked us to wait, if it did."""
    own = getattr(error, "retry_after", None)
    if isinstance(own, int | float):
        return timedelta(seconds=max(0.0, own))
    headers = getattr(getattr(error, "response", error), "headers", None)
    return retry_after(headers) if isinstance(headers, Mapping) or hasattr(headers, "get") else None


def retry_after(headers: Any) -> timedelta | None:
    """The wait of a Retry-After header (RFC 9110, 10.2.3): seconds, or a date against the reply's own Date.

    >>> retry_after({"Retry-After": "3"})
    datetime.timedelta(seconds=3)
    """
    value = headers.get("Retry-After")
    if value is None:
        return None
    try:
        if str(value).strip().isdigit():
            return timedelta(seconds=int(value))
        until, sent = parsedate_to_datetime(value), parsedate_to_datetime(headers.get("Date"))
        return max(timedelta(0), until - sent)
    except (TypeError, ValueError, OverflowError):
        return None


_TRANSIENT_ERRNO = {
    errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ENOSPC,
    errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTDOWN, errno.EINTR,
}  # fmt: skip

_BEFORE_SENDING = {
    "builtins.ConnectionRefusedError", "socket.gaierror", "urllib3.exceptions.NewConnectionError",
    "urllib3.exceptions.ConnectTimeoutError", "urllib3.exceptions.NameResolutionError",
}  # fmt: skip

_HTTP_ERRORS = {"requests.exceptions.HTTPError", "httpx.HTTPStatusError", "urllib.error.HTTPError"}

T, P, A = Kind.TRANSIENT, Kind.PERMANENT, Kind.AMBIGUOUS

# By name, so that a library is not imported to know its errors; the nearest base class decides.
DEFAULT_KINDS: dict[str, Kind] = {
    "jobs.errors.TransientError": T,
    "jobs.errors.PermanentError": P,
    "jobs.errors.AmbiguousError": A,
    "jobs.errors.RateLimited": Kind.RATE_LIMITED,
    "jobs.errors.PayloadError": P,
    # The standard library
    "builtins.ConnectionRefusedError": T,
    "builtins.ConnectionError": A,
    "builtins.TimeoutError": A,
    "builtins.BlockingIOError": T,
    "builtins.InterruptedError": T,
    "socket.gaierror": T,
    "ssl.SSLCertVerificationError": P,
    "ssl.SSLError": A,
    "http.client.HTTPException": A,
    "urllib.error.URLError": A,
    "smtplib.SMTPConnectError": T,
    "smtplib.SMTPServerDisconnected": A,
    "subprocess.TimeoutExpired": A,
    "asyncio.exceptions.TimeoutError": A,
    # Django
    "django.db.utils.OperationalError": T,
    "django.db.utils.InterfaceError": T,
    "django.db.utils.DatabaseError": P,
    "django.core.exceptions.ObjectDoesNotExist": P,
    "django.core.exceptions.ValidationError": P,
    "django.core.exceptions.PermissionDenied": P,
    "django.core.exceptions.ImproperlyConfigured": P,
    "django.core.exceptions.SuspiciousOperation": P,
    # Database drivers, Redis, kombu
    "psycopg.OperationalError": T,
    "psycopg.InterfaceError": T,
    "redis.exceptions.BusyLoadingError": T,
    "redis.exceptions.ConnectionError": A,
    "redis.exceptions.TimeoutError": A,
    "kombu.exceptions.OperationalError": T,
    # Celery
    "billiard.exceptions.SoftTimeLimitExceeded": A,
    "celery.exceptions.Reject": P,
    # requests
    "requests.exceptions.ConnectTimeout": T,
    "requests.exceptions.Timeout": A,
    "requests.exceptions.SSLError": P,
    "requests.exceptions.ProxyError": T,
    "requests.exceptions.ConnectionError": A,
    "requests.exceptions.ChunkedEncodingError": A,
    "requests.exceptions.RequestException": P,
    # httpx
    "httpx.ConnectError": T,
    "httpx.ConnectTimeout": T,
    "httpx.PoolTimeout": T,
    "httpx.ProxyError": T,
    "httpx.TimeoutException": A,
    "httpx.NetworkError": A,
    "httpx.RemoteProtocolError": A,
    "httpx.HTTPError": P,
}
