"""Finding jobs by what an operator has at hand: an id or its end, a key, a correlation id, a task's name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime
from functools import partial
from uuid import UUID

from django.db.models import CharField, Q
from django.db.models.functions import Cast

from jobs.admin.wording import short_task
from jobs.leap import occurring
from jobs.models import Job

HORIZON = 100_000
_END_OF_ID = re.compile(r"[0-9a-f]{6,12}", re.IGNORECASE)


def found(term: str) -> Q:
    """The jobs that a search term means: the first of its meanings that has any."""
    return next((meaning for meaning in _meanings(term) if Job.objects.filter(meaning).exists()), Q(pk__in=[]))


def horizon() -> datetime | None:
    """When the newest ``HORIZON`` jobs begin: what no index serves is not looked for beyond."""
    newest = Job.objects.order_by("-created_at", "-id").values_list("created_at", flat=True)
    return next(iter(newest[HORIZON : HORIZON + 1]), None)


def within_horizon() -> Q:
    """The newest ``HORIZON`` jobs."""
    begins = horizon()
    return Q(created_at__gte=begins) if begins else Q()


def _meanings(term: str) -> Iterator[Q]:
    if uuid := _uuid(term):
        yield Q(pk=uuid)
    yield Q(key=term)
    if tasks := _tasks(term):
        yield Q(task__in=tasks)
    yield Q(correlation_id=term) & within_horizon()
    if _END_OF_ID.fullmatch(term):
        yield Q(pk__in=_ids_ending(term.lower()))


def _uuid(term: str) -> UUID | None:
    try:
        return UUID(term)
    except ValueError:
        return None


def _tasks(term: str) -> list[str]:
    begins = partial(_begins, term.lower())
    return [name for name in occurring(Job, "task") if begins(name) or begins(short_task(name))]


def _begins(prefix: str, name: str) -> bool:
    return name.lower().startswith(prefix)


def _ids_ending(end: str) -> list[UUID]:
    newest = Job.objects.filter(within_horizon()).annotate(text=Cast("id", CharField()))
    return list(newest.filter(text__endswith=end).values_list("pk", flat=True)[:50])
