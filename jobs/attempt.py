"""One attempt of a job: claim it, run the body, record what became of it. Nothing here trusts the message."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

from billiard.exceptions import SoftTimeLimitExceeded
from celery.exceptions import Ignore, Reject, Retry, WorkerShutdown, WorkerTerminate
from django.db import Error, transaction

from jobs import (
    circuits,
    conclusion,
    drafts,
    errbacks,
    green,
    handover,
    heartbeat,
    lifecycle,
    outage,
    payload,
    successors,
)
from jobs.conclusion import Report
from jobs.conf import current as settings
from jobs.context import correlated
from jobs.drafts import Declaration
from jobs.errors import JobCancelled, LeaseLost, MoveRefused, PayloadError, RateLimited, Replaced, Snooze, WorkerLost
from jobs.failures import Failure, Kind
from jobs.lifecycle import NOW, Clock
from jobs.models import Job
from jobs.retry import Decision
from jobs.shield import shielded, unshielded
from jobs.states import State

logger = logging.getLogger("jobs.attempt")

MOMENT = 0.5  # seconds for which a claim made ahead says that the job may run
COMMIT_SILENCE = 60.0  # seconds that the end of a transactional body may take

_database = outage.Outage(logger, "Attempts wait for it.")


HANDED_BACK = "handed back at shutdown"
UNBEGUN = "handed back before it began"


class JobFailed(Exception):
    """Told to Celery in place of an error that would harm its worker."""


@dataclass(frozen=True, slots=True)
class Completed:
    """The body returned."""

    result: Any


@dataclass(frozen=True, slots=True)
class Recorded:
    """The body's transaction has committed, with what became of the job in it."""

    result: Any


@dataclass(frozen=True, slots=True)
class Raised:
    """The body raised."""

    error: BaseException


Outcome = Completed | Recorded | Raised


def perform(task: Any, job_id: UUID, worker: str) -> Any:
    """Run one attempt of a job and record what became of it; return the result or raise what Celery must know."""
    says = drafts.declaration(task.name, task)
    with shielded():
        job, leased = claim(job_id, worker, breakers=bool(says.breakers))
        lifecycle.announce("started", job)
        with correlated(job.correlation_id):
            outcome = run(task, job, says, leased)
            return record(job, outcome, says)


def claim(job_id: UUID, worker: str, *, breakers: bool = False) -> tuple[Job, float]:
    """Start the next attempt; return the job, and a moment by the heartbeat's clock that is not after its lease began.

    Raises ``Ignore`` where the job is not to be run now, or not by us.
    """
    given = handover.claimed(job_id)
    if given is not None and given.row is not None and heartbeat.clock() - given.asked < settings().LEASE / 3:
        return _still_wanted(lifecycle.as_job(given.row), given.asked), given.asked
    token = given.token if given is not None else uuid4()
    lease, asked = timedelta(seconds=settings().LEASE), 0.0

    def once() -> Job | None:
        nonlocal asked
        asked = heartbeat.clock()
        connection: Any = lifecycle.database()
        connection.health_check_done = True  # the claim is the check: where it fails, it is tried on a new connection
        found = lifecycle.claim(
            job_id, token=token, worker=worker, pid=os.getpid(), lease=lease, breakers=breakers
        )  # fmt: skip
        return found or _claimed_before(job_id, token, lease)

    job: Job | None = patiently(once)
    if job is None:
        patiently(lambda: refuse(job_id))
        raise Ignore(f"job {job_id} is not to be run now")
    return job, asked


def _still_wanted(job: Job, asked: float) -> Job:
    """A job that was claimed ahead of its turn: if it waited here, its queue or task may have been paused meanwhile."""
    waited = heartbeat.clock() - asked > MOMENT
    if waited and patiently(lambda: lifecycle.paused(job)) and hand_back(job, UNBEGUN):
        raise Ignore(f"job {job.pk} is paused")
    return job


def _claimed_before(job_id: UUID, token: UUID, lease: timedelta) -> Job | None:
    """A claim whose commit was lost on its way back, or that waited for its turn, is ours all the same: from now on."""
    found = lifecycle.seen(job_id)
    if found is None or found.token != token or found.state != State.RUNNING:
        return None
    return found if lifecycle.amend(found, lease_until=Clock(lease), pid=os.getpid()) else None


def refuse(job_id: UUID) -> None:
    """Say why a reserved job was not claimed: it expired, its circuit is open, or its queue or task is paused."""
    job = lifecycle.seen(job_id)
    if job is None or job.state != State.RESERVED:
        return
    try:
        if job.expires_at is not None and job.expires_at <= lifecycle.database_now():
            successors.finish(job, State.CANCELLED, "expired")
        elif job.lane and circuits.parks(job_id):
            lifecycle.move(job, State.PENDING, circuits.PARKED, sends=0)
        else:
            reason = "paused" if lifecycle.paused(job) else "waits for its turn"
            lifecycle.move(job, State.PENDING, reason, due_at=job.due_at or NOW, sends=0)
    except MoveRefused:
        return


def run(task: Any, job: Job, says: Declaration, leased: float) -> Outcome:
    """Run the body, whatever it does; its lease began at ``leased``, by the heartbeat's clock."""
    with heartbeat.watching(job, leased) as watched:
        try:
            upgraded = payload.upgrade(
                payload.decode(job.payload), job.version, says.version, says.upcasters or {}, job.task
            )
            args, kwargs = _arguments(says, upgraded)
            task.request.retries = job.attempt - 1
            task.request.mainstay_watched = watched
            with unshielded():
                outcome = _body(task, job, says, args, kwargs)
        except BaseException as error:
            if isinstance(error, WorkerShutdown | WorkerTerminate):
                hand_back(job)
                raise
            if by_sigterm(error):
                raise  # the worker's main process knows whether it was told to stop too, and acts
            outcome = Raised(told(error, watched))
    return outcome


def _arguments(says: Declaration, content: payload.Payload) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if says.typed and not content.reports():
        return payload.restore(says.body, content, says.name)
    return errbacks.with_failures(content.args), content.kwargs


def _body(task: Any, job: Job, says: Declaration, args: Any, kwargs: Any) -> Outcome:
    if not says.transactional:
        return Completed(task.execute(*args, **kwargs))
    with ExitStack() as ending, transaction.atomic(using=lifecycle.alias()):
        try:
            result = task.execute(*args, **kwargs)
        except Replaced as handed_over:
            signature = handed_over.signature
            with shielded():
                _holding(job, lambda: successors.replace(job, signature))
            return Recorded(handed_over)
        ending.enter_context(outage.bounded(lifecycle.database(), COMMIT_SILENCE))  # until after the commit
        with shielded():
            # The fence: an attempt that was overtaken rolls everything back that it wrote.
            encoded = encoded_result(result, job.task)
            _holding(job, lambda: _end(job, encoded, says))
    return Recorded(result)


def told(error: BaseException, watched: heartbeat.Watched) -> BaseException:
    """The error to record: where we stopped the body ourselves, our reason for it."""
    if watched.stop is not None and isinstance(error, SoftTimeLimitExceeded | JobCancelled | LeaseLost):
        return watched.stop.with_traceback(error.__traceback__)
    if isinstance(error, SystemExit | KeyboardInterrupt) or green.killed(error):
        return WorkerLost(f"the body raised {error!r}").with_traceback(error.__traceback__)
    return error


def record(job: Job, outcome: Outcome, says: Declaration) -> Any:
    """Record an outcome, waiting for the database as long as it takes; raise what Celery must know."""
    try:
        if isinstance(outcome, Completed):
            encoded = encoded_result(outcome.result, job.task)
            patiently(lambda: _recorded(job, lambda: _end(job, encoded, says)))
            return outcome.result
        if isinstance(outcome, Raised):
            if not isinstance(outcome.error, Replaced):
                return _record_error(job, outcome.error, says)
            signature = outcome.error.signature
            patiently(lambda: _recorded(job, lambda: successors.replace(job, signature)))
    except MoveRefused as late:
        raise Ignore(f"late: {late}") from None
    except (Ignore, Retry, JobFailed):
        raise
    except Exception as unrecordable:
        if isinstance(outcome, Raised) and not isinstance(outcome.error, Replaced):
            raise
        # The body has run: its result is not JSON, or what follows it cannot be recorded. Running it again cannot help.
        known = Failure(Kind.PERMANENT, "its outcome could not be recorded")
        return _record_error(job, unrecordable, says, None if isinstance(unrecordable, PayloadError) else known)
    if isinstance(outcome, Recorded) and not isinstance(outcome.result, Replaced):
        return outcome.result
    raise Ignore("replaced by another job")


def _end(job: Job, result: str | None, says: Declaration) -> None:
    """Completed; where a circuit waits to hear of that, both in one transaction."""
    if not says.breakers or not circuits.await_success(job.pk):
        _complete(job, result)
        return
    with transaction.atomic(using=lifecycle.alias()):
        _complete(job, result)
        circuits.note_success(job.pk)


def _complete(job: Job, result: str | None) -> None:
    """Completed, with what follows: one statement where nothing does, one transaction where something does."""
    watched = heartbeat.watched(job.pk)
    progress = (watched.progress if watched else None) or job.progress
    changes = {"progress": progress} if progress else {}
    if not successors.has_any(job):
        if not changes and handover.take(job, result):
            return
        if lifecycle.complete(job, result, **changes):
            lifecycle.announce("completed", job)
            return
    successors.finish(job, State.COMPLETED, "", result=result, error_type="", error_message="", traceback="", **changes)


def _record_error(job: Job, error: BaseException, says: Declaration, known: Failure | None = None) -> Any:
    failure, changes = (known, dict[str, Any]()) if known else failure_of(error, job, says)
    report = Report.of(original_of(error))
    try:
        decision = patiently(lambda: _recorded(job, lambda: conclusion.conclude(job, failure, report, **changes)[1]))
    except MoveRefused as late:
        raise Ignore(f"late: {late}") from None
    raise for_celery(error, decision) from None


def _recorded(job: Job, act: Callable[[], Any]) -> Any:
    """Do a guarded act; when it finds itself already done (a commit lost on its way back), accept that."""
    try:
        return _holding(job, act)
    except MoveRefused:
        now = lifecycle.seen(job.pk)
        if now is None or now.token != job.token or now.state == State.RUNNING or now.attempt != job.attempt:
            raise
        if now.finished and now.reason.startswith("forced"):
            raise
        return Decision(State(now.state), now.reason)


def _holding(job: Job, act: Callable[[], Any]) -> Any:
    """Do a guarded act; when the database has forgotten our claim, take it again first."""
    try:
        return act()
    except MoveRefused:
        if lifecycle.claim_again(job) is None:
            raise
        return act()


def failure_of(error: BaseException, job: Job, says: Declaration) -> tuple[Failure, dict[str, Any]]:
    """What kind of failure an exception is, Celery's own ones included, and what else it changes."""
    if isinstance(error, Retry):
        if isinstance(error.exc, Snooze | RateLimited | JobCancelled | LeaseLost):
            return says.retry_policy.classify(error.exc), {}  # Celery's autoretry_for takes it for an error
        return _asked(error, job, says)
    if isinstance(error, Reject):
        return Failure(Kind.PERMANENT, f"rejected: {getattr(error, 'reason', None) or 'by the task'}"), {}
    if isinstance(error, Ignore):
        return Failure(Kind.CANCELLED, f"ignored by the task: {error}".rstrip(": ")), {}
    return says.retry_policy.classify(error), {}


def _asked(error: Retry, job: Job, says: Declaration) -> tuple[Failure, dict[str, Any]]:
    changes: dict[str, Any] = {}
    wanted = getattr(error, "mainstay", {})
    if wanted.get("payload") is not None:
        changes["payload"] = payload.encode(payload.decode(wanted["payload"]))
    changes |= {name: wanted[name] for name in ("queue", "priority") if wanted.get(name) is not None}
    if wanted.get("max_attempts") is not None:
        # What was not counted as an attempt so far (snoozes, hand-backs) does not count now.
        changes["max_attempts"] = max(int(wanted["max_attempts"]), 1) + job.snoozes
        job.max_attempts = changes["max_attempts"]
    return Failure(Kind.ASKED, "the task asked for it", wanted.get("delay")), changes


def original_of(error: BaseException) -> BaseException:
    if isinstance(error, Retry) and isinstance(error.exc, BaseException):
        return error.exc
    return error


def for_celery(error: BaseException, decision: Decision) -> BaseException:
    """What to raise so that Celery, its events and Flower see what happened."""
    if decision.target in (State.RETRYING, State.PENDING, State.RESERVED):
        original = original_of(error)
        exc = original if isinstance(original, Exception) else JobFailed(str(original))
        when: Any = decision.delay.total_seconds()
        return Retry(decision.reason, exc=exc, when=when)
    if decision.target in (State.CANCELLED, State.COMPLETED):
        return Ignore(decision.reason or "completed; only the answer to its commit was lost")
    if isinstance(error, MemoryError | Ignore | Reject | Retry) or not isinstance(error, Exception):
        return JobFailed(f"{type(error).__name__}: {error}")
    return error


def by_sigterm(error: BaseException) -> bool:
    """Whether the pool's child was told to end by a signal: that is how billiard says so."""
    return isinstance(error, SystemExit) and error.code == signal.SIGTERM - 256


def hand_back(job: Job, why: str = HANDED_BACK) -> bool:
    """The worker stops under a running job's feet: give it back at once, its attempt not consumed."""
    try:
        conclusion.conclude(job, Failure(Kind.HANDED_BACK, why), Report())
    except (MoveRefused, Error):
        return False  # it is over, or its lease ends by itself
    return True


def encoded_result(result: Any, task: str) -> str | None:
    if result is None:
        return None
    return payload.limit(payload.to_json(result), int(settings().RESULT_LIMIT), f"(the result of) {task}")


def patiently(act: Callable[[], Any]) -> Any:
    """Do a database act, waiting for the database as long as it takes, here in the slot."""
    return outage.patiently(lifecycle.database(), act, _database)
