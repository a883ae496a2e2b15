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
from jobs.horizon import among
from jobs.stats import MOST

# So many letters of a status are counted, and so many of the newest open ones are looked at.
COUNTED = {Status.OPEN.value: 5_000} | dict.fromkeys(("replayed", "resolved", "discarded"), 1_000)
NEWEST = 250
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

    They cost the same at any size: open ones are counted up to 5,000, of each other status up to 1,000, and tasks and
    groups are those of the newest 250 open letters. Where that was too few, ``at_least`` says so.
    """
    per_status, groups = _per_status(), _newest_groups()
    per_task: Counter[str] = Counter()
    for group in groups:
        per_task[group["task"]] += group["count"]
    opened = per_status[Status.OPEN.value]
    first = _rows().filter(status=Status.OPEN).order_by("created_at").values_list("created_at", flat=True).first()
    return {
        "total": sum(per_status.values()),
        "open": opened,
        "per_status": per_status,
        "per_task": dict(sorted(per_task.items())),
        "groups": groups[:20],
        "oldest_open": first,
        "at_least": any(per_status[status] >= most for status, most in COUNTED.items()) or opened > NEWEST,
    }


def _per_status() -> dict[str, int]:
    """How many letters each status has, counted along the index: a letter is too wide to be looked at for it."""
    table = DeadLetter._meta.db_table
    few = (
        f"SELECT 1 FROM {table} WHERE status = '{status}' ORDER BY created_at DESC, id DESC LIMIT {most}"
        for status, most in COUNTED.items()
    )
    with lifecycle.database().cursor() as cursor:
        cursor.execute("SELECT " + ", ".join(f"(SELECT COUNT(*) FROM ({each}) AS few)" for each in few))
        return dict(zip(COUNTED, map(int, cursor.fetchone()), strict=True))


def _newest_groups() -> list[dict[str, Any]]:
    """Groups of the newest open letters, as ``groups`` has them."""
    newest = _rows().filter(status=Status.OPEN).order_by("-created_at", "-id")
    rows = among(newest.only("fingerprint", "task", "error_type", "created_at")[:NEWEST])
    counted = rows.values("fingerprint", "task", "error_type").annotate(
        count=Count("pk"), first=Min("created_at"), last=Max("created_at")
    )
    return [{**row} for row in counted.order_by("-count", "fingerprint")]


def _rows() -> QuerySet[DeadLetter]:
    return DeadLetter.objects.using(lifecycle.alias())
