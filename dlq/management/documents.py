"""A dead letter as JSON values with stable keys: short in a list, whole by itself. Secrets are hidden."""

from __future__ import annotations

from typing import Any

from dlq.models import DeadLetter
from jobs import shown
from jobs.management.documents import iso
from jobs.masking import mask


def short(letter: DeadLetter) -> dict[str, Any]:
    """A letter in a list; each key is one of ``whole`` too."""
    names = ("id", "status", "task", "queue", "tenant", "reason", "error_type", "error_message", "fingerprint")
    closing = ("closed_by", "closing_reason")
    return {
        **{name: getattr(letter, name) for name in names},
        "job": str(letter.job_id),
        "created_at": iso(letter.created_at), "closed_at": iso(letter.closed_at),
        **{name: getattr(letter, name) for name in closing},
    }  # fmt: skip


def whole(letter: DeadLetter) -> dict[str, Any]:
    """A letter with all that may be shown of it."""
    return {
        **short(letter),
        "payload": shown.masked_payload(letter.payload, shown.parameters(letter.task)),
        "version": letter.version, "headers": mask(letter.headers), "traceback": letter.traceback,
        "attempts": letter.attempts, "replay": replay(letter),
    }  # fmt: skip


def replay(letter: DeadLetter) -> dict[str, Any] | None:
    """How it was replayed, where it was."""
    kept = getattr(letter, "replay", None)
    if kept is None:
        return None
    return {"job": str(kept.job_id), "at": iso(kept.at), "by": kept.by, "reason": kept.reason, "edited": kept.edited}
