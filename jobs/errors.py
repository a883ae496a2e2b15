"""What can go wrong, as sentences; and what a body may raise to say how it went. Pure."""

from __future__ import annotations

from datetime import timedelta


class JobsError(Exception):
    """Anything that Mainstay refuses; the message says what to do instead."""

    item: int | None = None
    """Of a bulk, which item was refused, counted from 0."""


class PayloadError(JobsError, TypeError):
    """A payload that does not fit its task, is not JSON, or is too large."""


class KeyCannotBeMade(JobsError, ValueError):
    """The idempotency key of a task could not be made from a payload."""


class OptionError(JobsError, ValueError):
    """An option of an enqueue or of a task that is unknown or makes no sense."""


class DeclarationError(JobsError, TypeError):
    """A task that is declared wrongly; raised where it is declared."""


class OutcomesError(JobsError, TypeError):
    """What the body of a chunk returned does not say what became of each of its jobs."""


class CheckpointError(JobsError, ValueError):
    """A checkpoint that cannot be kept: its name, its value, or where it is made."""


class MoveRefused(JobsError):
    """The job was no longer as the caller saw it: somebody else moved it first."""


class Refused(JobsError):
    """An operator's request that cannot be done; the message says why."""


class JobNotFound(Refused):
    """No job has this id."""


class BrokerUnavailable(JobsError):
    """The broker could not be reached, or did not answer in time."""


class Unsendable(JobsError):
    """A job that cannot be made into a message, however well the broker is; the cause says why."""


class UnreadableMessage(JobsError):
    """A message of the broker that no worker can make a call of; its text is kept with a dead letter."""


class UnknownTask(JobsError):
    """A job whose task no worker knew, however often it was sent."""


class TransientError(Exception):
    """Raised by a body: try again later."""


class PermanentError(Exception):
    """Raised by a body: trying again cannot help; a person must look."""


class AmbiguousError(Exception):
    """Raised by a body: it may have taken effect; retried only if the task is idempotent."""


class RateLimited(Exception):
    """Raised by a body: told to slow down. The attempt is not consumed.

    ``retry_after`` is in seconds; without it the backoff decides.
    """

    def __init__(self, message: str = "rate limited", *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Snooze(Exception):
    """Raised by a body: put the job back for later, without consuming an attempt.

    ``delay`` is a number of seconds or a ``timedelta``.
    """

    def __init__(self, delay: float | timedelta, reason: str = "snoozed") -> None:
        given: object = delay.total_seconds() if isinstance(delay, timedelta) else delay
        if isinstance(given, bool) or not isinstance(given, int | float) or not given >= 0:
            raise OptionError(f"Snooze needs a delay of 0 seconds or more, or a timedelta, not {delay!r}.")
        seconds = float(given)
        super().__init__(f"{reason} for {seconds:g} s")
        self.delay = timedelta(seconds=seconds)
        self.reason = reason

    def __reduce__(self) -> tuple[type[Snooze], tuple[timedelta, str]]:
        return type(self), (self.delay, self.reason)  # Celery's Retry replaces what cannot be pickled


class JobCancelled(Exception):
    """Raised inside a body whose job was cancelled."""


class LeaseLost(Exception):
    """Raised inside a body that may no longer assume that it is the only runner."""


class LeaseNotRenewed(LeaseLost):
    """Raised inside a body whose lease is about to end because the database is away: not the job's fault."""


class Replaced(BaseException):
    """Raised by ``Task.replace``: the job is to settle as ``signature`` does."""

    def __init__(self, signature: object) -> None:
        super().__init__("replaced")
        self.signature = signature


class WorkerLost(Exception):
    """Recorded for an attempt whose process died or stopped answering."""


class DependencyFailed(Exception):
    """Recorded for a job that waited for another one which failed."""
