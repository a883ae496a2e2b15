"""Reading jobs: one, a list by filters, and numbers. Reads only."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from django.db import models

from jobs import lifecycle
from jobs.errors import JobNotFound, OptionError
from jobs.models import Job, Pause, Worker
from jobs.states import UNFINISHED, State, priority_from

FAT = ("payload", "result", "traceback", "error_message", "canvas", "delivery")
MOST = 1000


def get(job_id: UUID | str) -> Job:
    """One job, whole. Raises ``JobNotFound``."""
    try:
        return Job.objects.using(lifecycle.alias()).get(pk=UUID(str(job_id)))
    except (ValueError, Job.DoesNotExist):
        raise JobNotFound(f"There is no job {job_id}.") from None


def find(
    *, state: str | None = None, queue: str | None = None, priority: Any = None, tag: str | None = None,
    task: str | None = None, tenant: str | None = None, key: str | None = None, since: datetime | None = None,
    until: datetime | None = None, limit: int = 50, offset: int = 0,
) -> list[Job]:  # fmt: skip
    """Jobs that fit all given filters, newest first, at most 1,000 at a time.

    Raises ``OptionError`` for a filter that cannot be.
    """
    jobs = Job.objects.using(lifecycle.alias()).defer(*FAT).order_by("-created_at", "-id")
    for name, value in {"queue": queue, "tenant": tenant, "key": key}.items():
        jobs = jobs.filter(**{name: value}) if value else jobs
    if state:
        jobs = jobs.filter(state=_state(state))
    if task:
        jobs = jobs.filter(task__startswith=task) if "." in task else jobs.filter(task__endswith=f".{task}")
    if priority is not None:
        jobs = jobs.filter(priority=_priority(priority))
    if since:
        jobs = jobs.filter(created_at__gte=since)
    if until:
        jobs = jobs.filter(created_at__lt=until)
    if tag:
        jobs = _tagged(jobs, tag)
    if not 0 < limit <= MOST or offset < 0:
        raise OptionError(f"limit must be between 1 and {MOST}, offset 0 or more.")
    return list(jobs[offset : offset + limit])


def _state(value: str) -> State:
    try:
        return State(value)
    except ValueError:
        raise OptionError(f"Unknown state {value!r}. There are: {', '.join(State.values)}.") from None


def _priority(value: Any) -> int:
    try:
        return priority_from(int(value) if str(value).isdigit() else value).value
    except ValueError as error:
        raise OptionError(str(error)) from None


def _tagged(jobs: models.QuerySet[Job], tag: str) -> models.QuerySet[Job]:
    if lifecycle.database().vendor == "postgresql":
        return jobs.filter(tags__contains=[tag])
    return jobs.extra(
        where=["EXISTS (SELECT 1 FROM json_each(jobs_job.tags) WHERE json_each.value = %s)"], params=[tag]
    )


def statistics() -> dict[str, Any]:
    """Numbers of all jobs: total, per state, per priority and per queue (of the unfinished), oldest due.

    It counts rows: seconds at millions. The dashboard will read rollups instead.
    """
    rows = Job.objects.using(lifecycle.alias()).order_by()
    per_state = dict.fromkeys(State.values, 0) | dict(rows.values_list("state").annotate(models.Count("pk")))
    unfinished = rows.filter(finished_at__isnull=True)
    oldest = unfinished.filter(due_at__lte=lifecycle.database_now()).aggregate(models.Min("due_at"))["due_at__min"]
    return {
        "total": sum(per_state.values()),
        "unfinished": sum(per_state[state] for state in UNFINISHED),
        "per_state": per_state,
        "per_priority": {priority_from(p).name.lower(): n for p, n in _counts(unfinished, "priority")},
        "per_queue": dict(_counts(unfinished, "queue")),
        "paused": [str(pause) for pause in paused()],
        "workers": Worker.objects.using(lifecycle.alias()).count(),
        "oldest_due": oldest,
    }


def paused() -> list[Pause]:
    """The queues and tasks that are paused."""
    return list(Pause.objects.using(lifecycle.alias()).order_by("kind", "name"))


def _counts(rows: models.QuerySet[Job], field: str) -> list[tuple[Any, int]]:
    return list(rows.values_list(field).annotate(models.Count("pk")).order_by(field))
