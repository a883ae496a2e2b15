"""What sort of failure an exception is: the defaults for Django, the standard library, HTTP and mail. Pure."""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from email.utils import parsedate_to_datetime
from enum import Enum
from typing import Any

from jobs.errors import JobCancelled, LeaseLost, LeaseNotRenewed, Snooze, WorkerLost


class Kind(Enum):
    """What sort of failure it was, which decides whether trying again can help."""

    TRANSIENT = "transient"
    PERMANENT = "permanent"
    AMBIGUOUS = "ambiguous"
    RATE_LIMITED = "rate limited"
    UNCLASSIFIED = "unclassified"
    ASKED = "asked to retry"
    SNOOZED = "snoozed"
    HANDED_BACK = "handed back"
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


HUNG = "hung past its time limit"


def hung(failure: Failure) -> bool:
    """Whether the process was lost because its body did not end in time."""
    return failure.kind is Kind.LOST and failure.reason.startswith(HUNG)


def how_it_ended(words: str) -> str:
    """How a process ended, in a phrase without numbers that differ each time, from what its pool says of it.

    >>> how_it_ended("Worker exited prematurely: signal 9 (SIGKILL) Job: 12.")
    'killed by signal 9 (SIGKILL)'
    >>> how_it_ended("Worker exited prematurely: exitcode 3 Job: 0.")
    'its process ended with exit code 3'
    >>> how_it_ended("TimeLimitExceeded(1.5,)")
    'hung past its time limit of 1.5 s'
    >>> how_it_ended("TimeLimitExceeded(60.0)")
    'hung past its time limit of 60 s'
    """
    for pattern, phrase in _ENDS.items():
        if found := pattern.search(words):
            return phrase.format(*found.groups())
    return f"its process died: {words}"


_ENDS = {
    re.compile(r"(signal \d+(?: \(\w+\))?)"): "killed by {}",
    re.compile(r"exitcode (-?\d+)"): "its process ended with exit code {}",
    re.compile(r"TimeLimitExceeded\(([\d.]+?)(?:\.0)?,?\)"): f"{HUNG} of {{}} s",
}


def by_signal(error: BaseException) -> Failure | None:
    """Mainstay's own exceptions mean what they say, also to a policy for all of ``Exception``."""
    if isinstance(error, Snooze):
        return Failure(Kind.SNOOZED, error.reason, error.delay)
    if isinstance(error, JobCancelled):
        return Failure(Kind.CANCELLED, str(error) or "cancelled")
    if isinstance(error, LeaseNotRenewed):
        return Failure(Kind.HANDED_BACK, str(error) or "the database was away")
    if isinstance(error, WorkerLost | LeaseLost):
        return Failure(Kind.LOST, str(error) or type(error).__name__)
    return None


def by_default(error: BaseException) -> Failure:
    """What an exception means where the task does not say."""
    if isinstance(error, MemoryError):
        return Failure(Kind.LOST, f"out of memory: {error}".rstrip(": "))
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
    if _sqlstates(error) & _TRANSIENT_SQLSTATES:
        return Failure(Kind.TRANSIENT, f"transient: {type(error.__cause__ or error).__name__}")
    for cls in type(error).__mro__:
        kind = DEFAULT_KINDS.get(f"{cls.__module__}.{cls.__qualname__}")
        if kind is Kind.AMBIGUOUS and _never_sent(error):
            kind = Kind.TRANSIENT
        if kind is not None:
            return Failure(kind, f"{kind.value}: {type(error).__qualname__}", requested_delay(error))
    return Failure(Kind.UNCLASSIFIED, f"unclassified: {type(error).__name__}")


def _sqlstates(error: BaseException) -> set[Any]:
    """The code that PostgreSQL gave an error of Django's or of a driver's."""
    return {getattr(one, name, None) for one in (error, error.__cause__) for name in ("sqlstate", "pgcode")} - {None}


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
        return Failure(Kind.RATE_LIMITED, reason, requested_delay(error))
    if status in (408, 423, 425, 503):
        return Failure(Kind.TRANSIENT, reason, requested_delay(error))
    if status >= 500 and status not in (501, 505):
        return Failure(Kind.AMBIGUOUS, reason, requested_delay(error))
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


def requested_delay(error: BaseException) -> timedelta | None:
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

# What Django calls an InternalError: read-only (a standby after a failover), and time-outs of transactions.
_TRANSIENT_SQLSTATES = {"25006", "25P03", "25P04"}

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
    "jobs.errors.CheckpointError": P,
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
