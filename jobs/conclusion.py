"""What follows an attempt that did not complete: the decision, its record, and the move, in one transaction."""

from __future__ import annotations

import random
import traceback
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

from django.db import transaction

from jobs import checkpoints, circuits, declared, drafts, lifecycle, limits, payload, successors
from jobs.conf import current as settings
from jobs.failures import Failure, Kind, hung
from jobs.lifecycle import Clock, Column, Plus
from jobs.models import Attempt, Job
from jobs.retry import Bounds, Decision, History
from jobs.signals import job_failed
from jobs.states import Priority, State, lowered

TRACEBACK_LIMIT = 32_000
MESSAGE_LIMIT = 8_000


@dataclass(frozen=True, slots=True)
class Report:
    """An error as it is kept: class, message and traceback, bounded in size."""

    error_type: str = ""
    error_message: str = ""
    traceback: str = ""
    error: BaseException | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of(cls, error: BaseException) -> Report:
        """Describe an exception; never raises, whatever its ``__str__`` does."""
        try:
            message = str(error)
        except Exception as broken:
            message = f"(its message cannot be shown: {type(broken).__name__})"
        kind = f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins.")
        text = "".join(traceback.format_exception(error)) if error.__traceback__ else ""
        return cls(kind[:255], _clean(message, MESSAGE_LIMIT), _clean(text, TRACEBACK_LIMIT), error)


def declaration(job: Job) -> drafts.Declaration:
    """What the task of a job says of itself."""
    return drafts.declaration(job.task, declared.task(job.task))


def conclude(job: Job, failure: Failure, report: Report, **changes: Any) -> tuple[Job, Decision]:
    """Decide what becomes of a job whose attempt did not complete, and record it.

    Raises ``MoveRefused`` when the attempt is no longer the one that holds the job.
    """
    decision = decide(job, failure)
    if failure.kind is Kind.SNOOZED and decision.target is not State.FAILED:
        report = Report()  # nothing went wrong
    with transaction.atomic(using=lifecycle.alias()):
        moved = _move(job, failure, decision, report, {**_lower(job, failure, decision), **changes})
        lifecycle.record_attempt(
            job, outcome=failure.kind.value, decision=decision.target, reason=decision.reason[:255],
            delay=decision.delay.total_seconds(), **_priority(job), **_fields(report),
        )  # fmt: skip
        if moved.lane != job.lane:
            lifecycle.note_arrivals([moved])
        if decision.target is State.FAILED:
            job_failed.send(sender=Job, job=Job.objects.using(lifecycle.alias()).get(pk=job.pk))
        if moved.finished and successors.has_any(moved):
            successors.settle(moved)
        if not moved.finished and moved.cancel_requested_at is not None:
            # Somebody asked it to stop while its body was failing: it does not run again.
            decision = replace(decision, target=State.CANCELLED, reason=moved.cancel_reason)
            return successors.finish(moved, State.CANCELLED, moved.cancel_reason), decision
        if breakers := declaration(job).breakers:
            # Last, as where a job completes: whoever waits here for a circuit must hold nothing that others take later.
            circuits.note_failure(job, breakers, failure, report.error)
        event = moved.state if moved.finished else "retried"
        lifecycle.announce(event, moved, decision=decision, failure=failure)
    return moved, decision


def decide(job: Job, failure: Failure) -> Decision:
    """The decision of the task's policy, with the dice thrown and the clock read here."""
    says, limits = declaration(job), settings()
    age = lifecycle.database_now() - job.created_at
    history = History(
        attempt=job.attempt, allowed=job.max_attempts, snoozes=job.snoozes, age=age, asked=_asked(job, says, failure),
        losses=job.losses + (failure.kind is Kind.LOST), idempotent=says.idempotent,
    )  # fmt: skip
    bounds = Bounds(int(limits.MAX_LOSSES), int(limits.MAX_SNOOZES), timedelta(seconds=limits.MAX_AGE))
    return says.retry_policy.decide(failure, history, bounds, random.random())


def _asked(job: Job, says: drafts.Declaration, failure: Failure) -> int:
    """How often the body has snoozed before, where its task bounds that."""
    if failure.kind is not Kind.SNOOZED or says.retry_policy.max_snoozes is None:
        return 0
    return Attempt.objects.using(lifecycle.alias()).filter(job_id=job.pk, outcome=Kind.SNOOZED.value).count()


def _move(job: Job, failure: Failure, decision: Decision, report: Report, changes: dict[str, Any]) -> Job:
    changes = {**changes, **_fields(report)}
    if not decision.consumed:
        changes |= {"max_attempts": Plus(1), "snoozes": Plus(1)}
    if failure.kind is Kind.LOST:
        changes["losses"] = Plus(1)
    if "payload" in changes and payload.decode(changes["payload"]) != payload.decode(job.payload):
        checkpoints.forget(job)
    if decision.target in (State.RETRYING, State.PENDING):
        changes |= _elsewhere(job, changes)
        # What was not begun in earnest keeps its place.
        kept = failure.kind is Kind.HANDED_BACK and not decision.delay
        changes["due_at"] = Column("due_at") if kept else Clock(decision.delay)
    else:
        changes = {name: value for name, value in changes.items() if name not in ("queue", "priority")}
    return lifecycle.move(job, decision.target, decision.reason, **changes)


def _elsewhere(job: Job, changes: dict[str, Any]) -> dict[str, Any]:
    """Its keys and its lane, where it comes back with another payload, in another queue or at another priority.

    The keys of limits follow the payload with which it runs next; its own key stays that of its call.
    """
    if not changes.keys() & {"payload", "queue", "priority"}:
        return {}
    queue, priority, bound = changes.get("queue", job.queue), changes.get("priority", job.priority), job.bound
    if changes.keys() & {"payload", "queue"}:
        content = payload.decode(changes.get("payload", job.payload))
        bound = drafts.bound_by(job, declaration(job), content, queue)
    if not (job.lane or bound or job.tenant or priority != Priority.NORMAL):
        return {}  # nothing constrains it, as before
    return {"bound": bound, "lane": limits.lane(queue, priority, job.tenant, job.task, bound)}


def _lower(job: Job, failure: Failure, decision: Decision) -> dict[str, Any]:
    """Where the task says so, a job that failed comes back at a lower priority, unless it asked for another."""
    rule = declaration(job).retry_priority
    failed = decision.consumed and (failure.kind is not Kind.LOST or hung(failure))
    if rule is None or decision.target is not State.RETRYING or not failed:
        return {}
    return {"priority": lowered(job.priority, rule).value}


def _priority(job: Job) -> dict[str, Any]:
    """At which priority an attempt ran, where it is not the same for all: a replay begins with the first."""
    return {} if declaration(job).retry_priority is None else {"priority": job.priority}


def _fields(report: Report) -> dict[str, str]:
    return {
        "error_type": report.error_type,
        "error_message": report.error_message,
        "traceback": report.traceback,
    }


def _clean(text: str, limit: int) -> str:
    """Text that every database can keep: no NUL, valid UTF-8, the end kept when it is too long."""
    text = text.replace("\x00", "\\x00").encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= limit else f"… {text[-limit:]}"
