"""Reading dead letters: one, a list by filters, groups of the same trouble, and numbers. Reads only."""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db.models import Count, Max, Min, QuerySet

from dlq.models import DeadLetter, Status
from jobs import leap, lifecycle
from jobs.errors import OptionError, Refused
from jobs.stats import MOST

COUNTED = 10_000
NEWEST = 2_000
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
    if column == "task":
        names = leap.occurring(DeadLetter, column, most=leap.ALL)
        fits = [n for n in names if (n.startswith(text) if "." in text else n == text or n.endswith(f".{text}"))]
        return letters.filter(task=fits[0]) if len(fits) == 1 else letters.filter(task__in=fits)
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
    """Numbers of all letters: total, per status; per task, groups and the oldest of the open ones.

    They cost the same at any size: no status is counted beyond 10,000, and tasks and groups are those of the newest
    2,000 open letters. Where that was too few, ``at_least`` says so.
    """
    newest_first = _rows().order_by("-created_at", "-id")  # along the index: a letter is too wide to be counted itself
    per_status = {status: newest_first.filter(status=status)[:COUNTED].count() for status in Status.values}
    opened = _rows().filter(status=Status.OPEN).order_by("-created_at", "-id")
    newest = list(opened.values_list("fingerprint", "task", "error_type", "created_at")[:NEWEST])
    first = _rows().filter(status=Status.OPEN).order_by("created_at").values_list("created_at", flat=True).first()
    return {
        "total": sum(per_status.values()),
        "open": per_status[Status.OPEN],
        "per_status": per_status,
        "per_task": dict(sorted(Counter(task for _, task, _, _ in newest).items())),
        "groups": _groups(newest)[:20],
        "oldest_open": first,
        "at_least": COUNTED in per_status.values() or per_status[Status.OPEN] > NEWEST,
    }


def _groups(letters: list[tuple[str, str, str, datetime]]) -> list[dict[str, Any]]:
    """Letters of the same fingerprint as one, the largest first, as ``groups`` has them; they come newest first."""
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for fingerprint, task, error, at in letters:
        group = found.setdefault(
            (fingerprint, task, error),
            {"fingerprint": fingerprint, "task": task, "error_type": error, "count": 0, "first": at, "last": at},
        )
        group["count"] += 1
        group["first"] = at
    return sorted(found.values(), key=lambda group: (-group["count"], group["fingerprint"]))


def _rows() -> QuerySet[DeadLetter]:
    return DeadLetter.objects.using(lifecycle.alias())
