"""Reading jobs: one, a list by filters, and numbers. Reads only."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from django.db import models
from django.db.models import Q

from jobs import leap, lifecycle, tally
from jobs.errors import JobNotFound, OptionError
from jobs.horizon import TAGGED, Course, course, of_state
from jobs.models import Job, Pause, Worker
from jobs.states import UNFINISHED, Priority, State, priority_from

FAT = ("payload", "result", "traceback", "error_message", "canvas", "delivery")
MOST = 1000
BREAKDOWNS = ("priority", "tenant", "queue", "task")
NEWEST = 100_000  # jobs that a breakdown counts


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
    """Jobs that fit all given filters, newest first, at most 1,000 at a time; in a final state, the last ended first.

    ``since`` and ``until`` are times of creation. A filter that has no index is looked for among the newest 10,000
    jobs that the others leave: ``horizon`` says how far back that is.
    Raises ``OptionError`` for a filter that cannot be.
    """
    if not 0 < limit <= MOST or offset < 0:
        raise OptionError(f"limit must be between 1 and {MOST}, offset 0 or more.")
    rows, chosen, _ = _looked(
        state=state, queue=queue, priority=priority, tag=tag, task=task, tenant=tenant, key=key, since=since,
        until=until,
    )  # fmt: skip
    return list(rows.defer(*FAT).order_by(*chosen.order)[offset : offset + limit])


def horizon(**filters: Any) -> datetime | None:
    """How far back ``find`` looks with these filters; None: as far as there are jobs. ``until`` looks further."""
    return _looked(**filters)[2]


def _looked(
    *, state: str | None = None, queue: str | None = None, priority: Any = None, tag: str | None = None,
    task: str | None = None, tenant: str | None = None, key: str | None = None, since: datetime | None = None,
    until: datetime | None = None,
) -> tuple[models.QuerySet[Job], Course, datetime | None]:  # fmt: skip
    """The jobs that fit and are near enough, what leads to them, and how far back."""
    everything = Job.objects.using(lifecycle.alias())
    leaders = {name: Q(**{name: value}) for name, value in {"queue": queue, "tenant": tenant}.items() if value}
    if state:
        leaders["state"] = of_state(_state(state).value)
    if task:
        leaders["task"] = _named(task)
    if tag:
        leaders["tag"] = TAGGED
    chosen = course(leaders, state, ["priority"] if priority is not None else [])
    times = Q(created_at__gte=since) if since else Q()
    times &= Q(created_at__lt=until) if until else Q()
    if since and chosen.by == "finished_at":
        times &= Q(finished_at__gte=since)  # a job does not end before it is created
    everything = everything.filter(times)
    back = chosen.horizon(everything) if not key else None
    rows = everything
    for leader in leaders.values():
        rows = rows.filter(leader)
    rows = rows.filter(key=key) if key else rows
    rows = rows.filter(priority=_priority(priority)) if priority is not None else rows
    rows = _tagged(rows, tag) if tag else rows
    return chosen.nearest(rows, everything, back), chosen, back


def _named(task: str) -> Q:
    """A dotted name from its beginning, a plain one as the last part: looked up among the names that occur."""
    occurring = leap.occurring(Job, "task", most=leap.ALL)
    fits = [n for n in occurring if (n.startswith(task) if "." in task else n == task or n.endswith(f".{task}"))]
    return Q(task=fits[0]) if len(fits) == 1 else Q(task__in=fits)


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

    They cost the same at any size: the finished are read off the tallies, many unfinished ones off the conductor's
    last count (then ``as_of`` says when that was). ``ended`` also counts what was pruned since. Where nobody has
    counted yet, ``at_least`` says that there may be more.
    """
    now, finished = tally.unfinished(), tally.ended()
    per_state = dict.fromkeys(State.values, 0) | finished.kept | _summed(now.counts, 0)
    return {
        "total": sum(per_state.values()),
        "unfinished": sum(per_state[state] for state in UNFINISHED),
        "per_state": per_state,
        "per_priority": {priority_from(p).name.lower(): n for p, n in sorted(_summed(now.counts, 1).items())},
        "per_queue": dict(sorted(_summed(now.counts, 2).items())),
        "ended": finished.ever,
        "paused": [str(pause) for pause in paused()],
        "workers": Worker.objects.using(lifecycle.alias()).count(),
        "oldest_due": _oldest_due(),
        "as_of": now.as_of,
        "at_least": now.at_least or finished.at_least,
    }


def breakdown(by: str, *, since: datetime | None = None) -> dict[str, Any]:
    """How many jobs each priority, tenant, queue or task has, in all and per state: the newest 100,000 are counted.

    ``since`` is a time of creation. The answer has ``counts`` by name, and ``back_to``: when the oldest of those that
    were counted was created, where there are more. A job stands under the priority that it has now.
    Raises ``OptionError`` for what jobs cannot be counted by.
    """
    if by not in BREAKDOWNS:
        raise OptionError(f"Jobs are counted by {', '.join(BREAKDOWNS)}, not by {by!r}.")
    newest = f"SELECT {by} AS name, state, created_at FROM {Job._meta.db_table}"
    newest += f"{' WHERE created_at >= %s' if since else ''} ORDER BY created_at DESC LIMIT {NEWEST}"
    with lifecycle.database().cursor() as cursor:
        given = [lifecycle.prepared("created_at", since)] if since else []
        cursor.execute(f"SELECT name, state, COUNT(*) FROM ({newest}) AS newest GROUP BY 1, 2 ORDER BY 1, 2", given)
        rows = cursor.fetchall()
    counts: dict[str, dict[str, int]] = {}
    for name, state, many in rows:
        named = priority_from(name).name.lower() if by == "priority" else str(name)
        of_name = counts.setdefault(named, {"total": 0} | dict.fromkeys(State.values, 0))
        of_name[state] += many
        of_name["total"] += many
    return {"by": by, "since": since, "counts": counts, "back_to": _back_to(sum(row[2] for row in rows))}


def _back_to(counted: int) -> datetime | None:
    if counted < NEWEST:
        return None
    times = Job.objects.using(lifecycle.alias()).order_by("-created_at").values_list("created_at", flat=True)
    return times[NEWEST - 1 : NEWEST].first()


def _summed(counts: list[tuple[str, int, str, int]], column: int) -> dict[Any, int]:
    sums: dict[Any, int] = {}
    for row in counts:
        sums[row[column]] = sums.get(row[column], 0) + row[3]
    return sums


def paused() -> list[Pause]:
    """The queues and tasks that are paused."""
    return list(Pause.objects.using(lifecycle.alias()).order_by("kind", "name"))


def _oldest_due() -> datetime | None:
    """When the first of the unfinished became due: one look into the index for each queue and priority."""
    unfinished = Job.objects.using(lifecycle.alias()).filter(finished_at__isnull=True)
    now, oldest = lifecycle.database_now(), list[datetime]()
    for queue in leap.occurring(Job, "queue", "finished_at IS NULL"):
        for priority in Priority:
            due = unfinished.filter(queue=queue, priority=priority.value, due_at__lte=now).order_by("due_at")
            oldest += [at for at in due.values_list("due_at", flat=True)[:1] if at is not None]
    return min(oldest, default=None)
