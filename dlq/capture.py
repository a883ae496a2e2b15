"""A failed job becomes a dead letter, in the transaction that records the failure."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from dlq.fingerprint import fingerprint
from dlq.models import DeadLetter, Status
from jobs import lifecycle, payload
from jobs.models import Attempt, Job
from jobs.signals import job_failed, job_replayed

ATTEMPTS_KEPT = 50
TRACEBACK_KEPT = 4_000


def connect() -> None:
    """Listen to what the jobs app announces."""
    job_failed.connect(capture, dispatch_uid="dlq.capture")
    job_replayed.connect(close_replayed, dispatch_uid="dlq.close_replayed")


def capture(sender: Any, job: Job, **_: Any) -> DeadLetter:
    """Keep a letter for a job that has failed for good; a second one for the same job is not made."""
    letter, _created = DeadLetter.objects.using(lifecycle.alias()).get_or_create(job=job, defaults=_contents(job))
    return letter


def _contents(job: Job) -> dict[str, Any]:
    return {
        "task": job.task, "queue": job.queue, "tenant": job.tenant, "payload": job.payload, "version": job.version,
        "headers": _headers(job), "reason": job.reason, "error_type": job.error_type,
        "error_message": job.error_message, "traceback": job.traceback, "attempts": _attempts(job),
        "created_at": job.finished_at,
        "fingerprint": fingerprint(
            job.task, job.error_type, job.traceback, job.reason, job.error_message
        ),
    }  # fmt: skip


def _headers(job: Job) -> dict[str, Any]:
    return {
        **_carried(job.delivery),
        "priority": job.priority, "key": job.key, "tags": job.tags, "metadata": job.metadata,
        "correlation_id": job.correlation_id, "parent_id": _text(job.parent_id), "root_id": _text(job.root_id),
        "group_id": _text(job.group_id), "replay_of": _text(job.replay_of_id), "schedule": job.schedule,
        "created_at": _text(job.created_at), "max_attempts": job.max_attempts,
    }  # fmt: skip


def _carried(delivery: str) -> dict[str, str]:
    """What the message carried, as text; a letter is made even of what cannot be read."""
    try:
        return {name: str(value) for name, value in payload.from_json(delivery).items()} if delivery else {}
    except (ValueError, TypeError, AttributeError):
        return {"unreadable": delivery[:1000]}


def _attempts(job: Job) -> list[dict[str, Any]]:
    """The last attempts, oldest first."""
    rows = Attempt.objects.using(lifecycle.alias()).filter(job_id=job.pk).order_by("-number")[:ATTEMPTS_KEPT]
    return [
        {
            "number": row.number,
            "worker": row.worker,
            "started_at": _text(row.started_at),
            "finished_at": _text(row.finished_at),
            "outcome": row.outcome,
            "error_type": row.error_type,
            "error_message": row.error_message,
            "traceback": row.traceback[-TRACEBACK_KEPT:],
            "decision": row.decision,
            "reason": row.reason,
            "delay": row.delay,
        }
        for row in reversed(rows)
    ]


def close_replayed(sender: Any, original: UUID, job: UUID, by: str, reason: str, **_: Any) -> None:
    """A job was replayed without its letter being asked (a chord that a replay completed): close the letter."""
    from dlq.replay import keep_replay

    letter = DeadLetter.objects.using(lifecycle.alias()).filter(job_id=original, status=Status.OPEN).first()
    if letter is not None:
        keep_replay(letter, job, by=by, reason=reason, payload=letter.payload)


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
