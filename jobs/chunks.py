"""Chunks, as the release forms them: which jobs of a lane go together, and who of them stands for all.

How they gather, run and end stands in docs/explanation/chunks.md.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db.models import F

from jobs import declared, lifecycle
from jobs.conf import current as settings
from jobs.lifecycle import Plus
from jobs.limits import Bind, Numbers
from jobs.models import ChunkMember, Job, Lane, Slot
from jobs.states import WAITING, State

GATHERS = "others of their chunk"  # for what a lane waits
TAKEN_BACK = "the first of its chunk was taken back"

_IN_FLIGHT = f"('{State.RESERVED.value}', '{State.RUNNING.value}')"

# Whether a job of a chunk is no longer under way.
CHANGED = (
    "EXISTS(SELECT 1 FROM jobs_chunkmember WHERE NOT EXISTS(SELECT 1 FROM jobs_job j "
    f"WHERE j.id = jobs_chunkmember.job_id AND j.state IN {_IN_FLIGHT}))"
)


@dataclass(frozen=True, slots=True)
class Gathering:
    """A lane that waits for more: how many there are, of how many; until when at most, and when it is looked at."""

    many: int
    size: int
    latest: datetime
    until: datetime


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A job that waits in its lane."""

    id: UUID
    due_at: datetime
    losses: int
    attempt: int
    max_attempts: int

    def company(self, size: int) -> int:
        """How many may go together with it, itself included: fewer after each loss, nobody at its last chance.

        >>> job = lambda losses, attempt=0: _Waiting(UUID(int=0), datetime.min, losses, attempt, 10)
        >>> [job(losses).company(100) for losses in (0, 1, 2)], job(1, attempt=9).company(100)
        ([100, 10, 1], 1)
        """
        if not self.losses:
            return size
        chances = min(int(settings().MAX_LOSSES) - self.losses, self.max_attempts - self.attempt)
        return 1 if chances <= 1 else round(float(size ** (1 / (self.losses + 1))))


def numbers(task: str, bind: Bind) -> Numbers:
    """How many of a task go together and how long they wait: as its code says today, else as it said."""
    known: Any = declared.task(task)
    return known.gather().numbers if getattr(known, "chunked", False) else bind.numbers


def ready(lane: str, wanted: Numbers, taken: Collection[UUID], now: datetime) -> list[UUID] | Gathering | None:
    """The jobs of a lane, but for those that are taken, that go together now; or what they wait for; or None."""
    size = int(wanted.amount)
    first = _first(lane, size, taken)
    due = [job for job in first if job.due_at <= now]
    if not due:
        return None
    suspect = next((job for job in due if job.losses), None)
    if suspect is not None:
        return [job.id for job in due if job.losses == suspect.losses][: suspect.company(size)]
    latest = due[0].due_at + timedelta(seconds=wanted.burst)
    if len(due) == size or latest <= now:
        return [job.id for job in due]
    full_at = first[-1].due_at if len(first) == size else latest
    return Gathering(len(due), size, latest, min(latest, full_at))


def _first(lane: str, size: int, taken: Collection[UUID]) -> list[_Waiting]:
    """The first jobs that wait in a lane, those included that are not due yet."""
    rows = Job.objects.using(lifecycle.alias()).filter(
        lane=lane, finished_at__isnull=True, state__in=sorted(WAITING), due_at__isnull=False,
        cancel_requested_at__isnull=True,
    )  # fmt: skip
    found = rows.exclude(lane="").order_by("due_at", "pk").values_list(
        "pk", "due_at", "losses", "attempt", "max_attempts"
    )  # fmt: skip
    rows_found: list[Any] = [row for row in found[: size + len(taken)] if row[0] not in taken]
    return [_Waiting(*row) for row in rows_found[:size]]


def form(chosen: Sequence[Sequence[UUID]], released: Sequence[Job]) -> list[Job]:
    """Write down who goes with whom; return the released jobs that stand for others, or for themselves alone."""
    if not chosen:
        return list(released)
    reserved = {job.pk for job in released}
    members = []
    for chunk in chosen:
        together = [job_id for job_id in chunk if job_id in reserved]  # others were locked by somebody
        members += [ChunkMember(job_id=job_id, leader_id=together[0]) for job_id in together]
    ChunkMember.objects.using(lifecycle.alias()).bulk_create(
        members, update_conflicts=True, unique_fields=["job_id"], update_fields=["leader_id"], batch_size=200
    )
    led = {member.job_id for member in members if member.job_id != member.leader_id}
    return [job for job in released if job.pk not in led]


def tidy() -> list[UUID]:
    """Bring up to date who goes with whom; return the jobs that are no longer under way.

    Who was to be called by a job that is not in the broker any more waits again. Slots of a job whose chunk goes on
    without it are another one's from now on.
    """
    with lifecycle.database().cursor() as cursor:
        cursor.execute("SELECT EXISTS(SELECT 1 FROM jobs_chunkmember)")
        if not cursor.fetchone()[0]:
            return []
        lifecycle.move_all(
            [State.RESERVED], State.PENDING,
            "id IN (SELECT m.job_id FROM jobs_chunkmember m WHERE m.job_id <> m.leader_id AND NOT EXISTS "
            f"(SELECT 1 FROM jobs_job j WHERE j.id = m.leader_id AND j.state = '{State.RESERVED.value}'))",
            [], TAKEN_BACK, sends=Plus(-1),
        )  # fmt: skip
        mate = (
            "SELECT o.job_id FROM jobs_chunkmember m JOIN jobs_chunkmember o ON o.leader_id = m.leader_id "
            f"JOIN jobs_job j ON j.id = o.job_id AND j.state IN {_IN_FLIGHT} WHERE m.job_id = jobs_slot.job_id "
            "ORDER BY o.job_id LIMIT 1"
        )
        cursor.execute(
            f"UPDATE jobs_slot SET job_id = ({mate}) WHERE job_id IN (SELECT job_id FROM jobs_chunkmember) "
            "AND NOT EXISTS (SELECT 1 FROM jobs_job j WHERE j.id = jobs_slot.job_id "
            f"AND j.state IN {_IN_FLIGHT}) AND EXISTS ({mate}) "
            f"AND NOT EXISTS (SELECT 1 FROM jobs_slot t WHERE t.key = jobs_slot.key AND t.job_id = ({mate}))"
        )
        cursor.execute(
            "DELETE FROM jobs_chunkmember WHERE NOT EXISTS (SELECT 1 FROM jobs_job j "
            f"WHERE j.id = jobs_chunkmember.job_id AND j.state IN {_IN_FLIGHT}) RETURNING job_id"
        )
        return [UUID(str(row[0])) for row in cursor.fetchall()]


def mates(leader_id: UUID, state: State) -> list[Job]:
    """The other jobs of a chunk that are in this state."""
    members = ChunkMember.objects.using(lifecycle.alias()).filter(leader_id=leader_id).exclude(job_id=leader_id)
    rows = Job.objects.using(lifecycle.alias()).filter(pk__in=members.values("job_id"), state=state)
    return list(rows.defer("result", "error_message", "traceback", "bound"))


def led() -> Any:
    """The ids of jobs that have no message of their own, as a query."""
    return ChunkMember.objects.using(lifecycle.alias()).exclude(job_id=F("leader_id")).values("job_id")


def without_slots() -> Any:
    """The ids of jobs that do not count: of a chunk, one has its slots. As a query."""
    counted = Slot.objects.using(lifecycle.alias()).filter(key="").values("job_id")
    return ChunkMember.objects.using(lifecycle.alias()).exclude(job_id__in=counted).values("job_id")


def first_at(queue: str) -> datetime | None:
    """When the first chunk of a queue that gathers goes at the latest."""
    lanes = Lane.objects.using(lifecycle.alias()).filter(waits_on=GATHERS, share__queue=queue)
    return lanes.order_by("open_at").values_list("open_at", flat=True).first()


def leader_of(job_id: UUID) -> UUID | None:
    """The job whose message calls for this one, where that is another one."""
    row = ChunkMember.objects.using(lifecycle.alias()).filter(pk=job_id).first()
    return None if row is None or row.leader_id == job_id else row.leader_id
