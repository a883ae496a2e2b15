"""What a job is related to: its family, its canvas, its replays, its schedule. Every list is short by a bound."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from django.db.models import QuerySet
from django.utils.http import urlencode

from jobs.admin.wording import address
from jobs.models import FanIn, Job

MOST_SHOWN: Final = 10


@dataclass(frozen=True, slots=True)
class Relation:
    """One kind of relative: the jobs, and where the rest of them are listed."""

    title: str
    jobs: Sequence[Job]
    more: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """Something related that is not a job."""

    title: str
    text: str
    address: str


def relations(job: Job) -> list[Relation]:
    """The jobs around a job, without the kinds that it has none of."""
    return [relation for relation in _relations(job) if relation.jobs]


def _relations(job: Job) -> Iterator[Relation]:
    yield _one("Parent", job.parent_id)
    if job.root_id not in (job.pk, job.parent_id):
        yield _one("Root", job.root_id)
    yield _one("Replay of", job.replay_of_id)
    if job.origin_id != job.replay_of_id:
        yield _one("First of the line", job.origin_id)
    yield _one("Settles as", job.follows_id)
    yield _many("Replays", _jobs(replay_of_id=job.pk), original=job.pk)
    yield _many("Children", _jobs(parent_id=job.pk), parent=job.pk)
    yield _many("Followers", _jobs(follows_id=job.pk))
    if job.waits_for_id:
        yield _many("Waits for", _jobs(fanin_id=job.waits_for_id), note=_remaining(job.waits_for_id))
    if job.fanin_id:
        yield _many("Then runs", _jobs(waits_for_id=job.fanin_id), note=_remaining(job.fanin_id))
    if job.group_id:
        yield _many("Group", _jobs(group_id=job.group_id).exclude(pk=job.pk), group=job.group_id)


def elsewhere(job: Job) -> list[Elsewhere]:
    """The dead letter and the schedule of a job, where it has them."""
    found = []
    # The dlq app stands above this one: its letter is known only by the name that it gave itself.
    letter = getattr(job, "dead_letter", None)
    if letter is not None:
        found.append(Elsewhere("Dead letter", str(letter.status), address("admin:dlq_deadletter_change", letter.pk)))
    if job.schedule:
        query = urlencode({"q": job.schedule})
        at = address("admin:django_celery_beat_periodictask_changelist", query=query)
        found.append(Elsewhere("Schedule", job.schedule, at))
    return found


def replay_address(job: Job) -> str:
    """Where the dead letter of a failed job is replayed; empty where there is none."""
    letter = getattr(job, "dead_letter", None)
    return address("admin:dlq_deadletter_replay", letter.pk) if letter is not None and letter.is_open else ""


def _one(title: str, job_id: UUID | None) -> Relation:
    return Relation(title, list(_slim().filter(pk=job_id)) if job_id else [])


def _many(title: str, jobs: QuerySet[Job], note: str = "", **query: Any) -> Relation:
    found = list(jobs[: MOST_SHOWN + 1])
    more = address("admin:jobs_job_changelist", query=urlencode(query)) if query and len(found) > MOST_SHOWN else ""
    return Relation(title, found[:MOST_SHOWN], more, note or ("and more" if len(found) > MOST_SHOWN else ""))


def _jobs(**related: Any) -> QuerySet[Job]:
    return _slim().filter(**related).order_by("id")


def _slim() -> QuerySet[Job]:
    return Job.objects.only("id", "task", "state", "created_at")


def _remaining(fanin_id: UUID) -> str:
    fanin = FanIn.objects.filter(pk=fanin_id).first()
    return f"{fanin.size - fanin.remaining} of {fanin.size} settled" if fanin else ""
