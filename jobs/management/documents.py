"""A job as JSON values with stable keys: short in a list, whole by itself. Secrets are hidden."""

from __future__ import annotations

from typing import Any

from jobs import lifecycle, shown
from jobs.masking import mask
from jobs.models import Attempt, Checkpoint, Job
from jobs.states import MEANING, Priority, State
from jobs.views import job_of

MOST_ATTEMPTS = 50
MOST_CHECKPOINTS = 50


def short(job: Job) -> dict[str, Any]:
    """A job in a list; each key is one of ``whole`` too."""
    texts = ("task", "state", "reason", "queue", "key", "tenant", "worker")
    times = ("created_at", "due_at", "started_at", "finished_at")
    return {
        "id": str(job.pk),
        **{name: getattr(job, name) for name in texts},
        **{name: iso(getattr(job, name)) for name in times},
        "priority": Priority(job.priority).name.lower(),
        "tags": job.tags, "attempt": job.attempt, "max_attempts": job.max_attempts,
    }  # fmt: skip


def whole(job: Job) -> dict[str, Any]:
    """A job with all that may be shown of it."""
    plain = (
        "version",
        "pid",
        "sends",
        "snoozes",
        "losses",
        "time_limit",
        "soft_time_limit",
        "cancel_reason",
        "traceback",
    )
    times = ("sent_at", "lease_until", "cancel_requested_at")
    ids = ("follows_id", "waits_for_id", "origin_id")
    return {
        **job_of(job),
        "meaning": MEANING[State(job.state)],
        **{name: getattr(job, name) for name in plain},
        **{name: iso(getattr(job, name)) for name in times},
        **{name: str(getattr(job, name) or "") or None for name in ids},
        "attempts": attempts(job),
        "checkpoints": checkpoints(job),
        "dead_letter": letter(job),
    }


def attempts(job: Job) -> list[dict[str, Any]]:
    """The latest attempts, oldest first; the last one may be told by the job's own row only."""
    rows = Attempt.objects.using(lifecycle.alias()).filter(job_id=job.pk).order_by("-number")[:MOST_ATTEMPTS]
    recorded = [_recorded(row) for row in rows][::-1]
    if job.attempt and (not recorded or recorded[-1]["number"] < job.attempt):
        recorded.append(_last(job))
    return recorded


def checkpoints(job: Job) -> list[dict[str, Any]]:
    """The latest checkpoints, oldest first."""
    rows = Checkpoint.objects.using(lifecycle.alias()).filter(job_id=job.pk).order_by("-written_at", "-id")
    return [
        {
            "name": row.name, "kind": row.kind, "value": mask({row.name: shown.loaded(row.value)})[row.name],
            "attempt": row.attempt or None, "written_at": iso(row.written_at),
        }
        for row in reversed(rows[:MOST_CHECKPOINTS])
    ]  # fmt: skip


def _recorded(row: Attempt) -> dict[str, Any]:
    names = ("number", "worker", "pid", "outcome", "decision", "reason", "delay", "error_type", "error_message")
    return {name: getattr(row, name) for name in names} | {
        "started_at": iso(row.started_at), "finished_at": iso(row.finished_at),
    }  # fmt: skip


def _last(job: Job) -> dict[str, Any]:
    return {
        "number": job.attempt, "worker": job.worker, "pid": job.pid, "outcome": job.state, "decision": "",
        "reason": job.reason, "delay": 0.0, "error_type": job.error_type, "error_message": job.error_message,
        "started_at": iso(job.started_at), "finished_at": iso(job.finished_at),
    }  # fmt: skip


def letter(job: Job) -> dict[str, Any] | None:
    """The dead letter of a job, where there is one."""
    found = getattr(job, "dead_letter", None)
    return None if found is None else {"id": found.pk, "status": found.status}


def iso(moment: Any) -> str | None:
    """A time as text."""
    return moment.isoformat() if moment else None
