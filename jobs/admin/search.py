"""Finding jobs by what an operator has at hand: an id or its end, a key, a correlation id, a task's name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from uuid import UUID

from django.db.models import CharField, Q
from django.db.models.functions import Cast

from jobs.admin.filters import correlated
from jobs.admin.wording import short_task
from jobs.horizon import Course
from jobs.leap import ALL, occurring
from jobs.models import Job

_END_OF_ID = re.compile(r"[0-9a-f]{6,12}", re.IGNORECASE)


def found(term: str) -> Q:
    """The jobs that a search term means: the first of its meanings that has any."""
    return next((meaning for meaning in _meanings(term) if Job.objects.filter(meaning).exists()), Q(pk__in=[]))


def newest() -> Q:
    """The newest jobs: what no index serves is looked for among them."""
    everything = Course(Q(), "created_at", bounded=True)
    return everything.within(everything.horizon(Job.objects.all()))


def _meanings(term: str) -> Iterator[Q]:
    if uuid := _uuid(term):
        yield Q(pk=uuid)
    yield Q(key=term)
    if tasks := _tasks(term):
        yield Q(task=tasks[0]) if len(tasks) == 1 else Q(task__in=tasks)
    yield correlated(term)
    if _END_OF_ID.fullmatch(term):
        yield Q(pk__in=_ids_ending(term.lower()))


def _uuid(term: str) -> UUID | None:
    try:
        return UUID(term)
    except ValueError:
        return None


def _tasks(term: str) -> list[str]:
    begins = partial(_begins, term.lower())
    return [name for name in occurring(Job, "task", most=ALL) if begins(name) or begins(short_task(name))]


def _begins(prefix: str, name: str) -> bool:
    return name.lower().startswith(prefix)


def _ids_ending(end: str) -> list[UUID]:
    rows = Job.objects.filter(newest()).annotate(text=Cast("id", CharField()))
    return list(rows.filter(text__endswith=end).values_list("pk", flat=True)[:50])
