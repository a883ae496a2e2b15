"""Reading dead letters: one, a list by filters, groups of the same trouble, and numbers. Reads only."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from django.db.models import Count, Max, Min, QuerySet

from dlq.models import DeadLetter, Status
from jobs import lifecycle
from jobs.errors import OptionError, Refused
from jobs.stats import MOST

FAT = ("payload", "traceback", "attempts", "headers")


class LetterNotFound(Refused):
    """No dead letter has this number."""


def get(number: int | UUID | str) -> DeadLetter:
    """One letter, whole, by its number or by the id of its job. Raises ``LetterNotFound``."""
    rows = _rows().select_related("job")
    text = str(number)
    found = rows.filter(pk=int(text)) if text.isdecimal() else rows.filter(job_id=_job_id(text))
    letter = found.first()
    if letter is None:
        what = f"dead letter {text}" if text.isdecimal() else f"dead letter of job {text}"
        raise LetterNotFound(f"There is no {what}.")
    return letter


def _job_id(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise LetterNotFound(f"{text!r} is neither the number of a dead letter nor the id of its job.") from None


def matching(
    *, status: str | None = None, task: str | None = None, fingerprint: str | None = None, error: str | None = None,
    queue: str | None = None, tenant: str | None = None, since: datetime | None = None, until: datetime | None = None,
) -> QuerySet[DeadLetter]:  # fmt: skip
    """Letters that fit all given filters, newest first. ``fingerprint`` may be its beginning.

    Raises ``OptionError`` for a status that does not exist.
    """
    if status and status not in Status.values:
        raise OptionError(f"Unknown status {status!r}. There are: {', '.join(Status.values)}.")
    given = {
        "status": status, "queue": queue, "tenant": tenant, "fingerprint__startswith": fingerprint,
        "created_at__gte": since, "created_at__lt": until,
    }  # fmt: skip
    letters = _rows().filter(**{name: value for name, value in given.items() if value})
    letters = _named(letters, "task", task)
    return _named(letters, "error_type", error).order_by("-created_at", "-id")


def _named(letters: QuerySet[DeadLetter], column: str, text: str | None) -> QuerySet[DeadLetter]:
    """A dotted name from its beginning, a plain one as the last part."""
    if not text:
        return letters
    if "." in text:
        return letters.filter(**{f"{column}__startswith": text})
    return letters.filter(**{f"{column}__endswith": f".{text}"}) | letters.filter(**{column: text})


def find(*, limit: int = 50, offset: int = 0, **filters: Any) -> list[DeadLetter]:
    """Letters that fit, as ``matching`` has it, at most 1,000 at a time."""
    if not 0 < limit <= MOST or offset < 0:
        raise OptionError(f"limit must be between 1 and {MOST}, offset 0 or more.")
    return list(matching(**filters).defer(*FAT)[offset : offset + limit])


def groups(limit: int = 50, **filters: Any) -> list[dict[str, Any]]:
    """Letters of the same fingerprint as one: task, error, how many, first and last; the largest first."""
    rows = matching(**filters).order_by().values("fingerprint", "task", "error_type")
    counted = rows.annotate(count=Count("pk"), first=Min("created_at"), last=Max("created_at"))
    return [{**row} for row in counted.order_by("-count", "fingerprint")[:limit]]


def statistics() -> dict[str, Any]:
    """Numbers of all letters: total, per status; per task and the oldest of the open ones."""
    rows = _rows().order_by()
    per_status = dict.fromkeys(Status.values, 0) | dict(rows.values_list("status").annotate(Count("pk")))
    opened = rows.filter(status=Status.OPEN)
    return {
        "total": sum(per_status.values()),
        "open": per_status[Status.OPEN],
        "per_status": per_status,
        "per_task": dict(opened.values_list("task").annotate(Count("pk")).order_by("task")),
        "groups": groups(limit=20, status=Status.OPEN),
        "oldest_open": opened.aggregate(Min("created_at"))["created_at__min"],
    }


def _rows() -> QuerySet[DeadLetter]:
    return DeadLetter.objects.using(lifecycle.alias())
