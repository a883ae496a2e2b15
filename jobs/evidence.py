"""What is known of the messages of reserved jobs: who holds them, how far each line has come. Reads only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from django.db.models import F, Max, Min, QuerySet

from jobs import chunks, lifecycle
from jobs.conf import current as settings
from jobs.models import Job, Worker
from jobs.states import State

# A report begins to be gathered before it is written.
GATHERING = timedelta(seconds=1)
# As much may lie between the mark on a row and its message in the broker: see ``outbox.FRESH`` and ``SEND_TIMEOUT``.
SENDING = timedelta(seconds=10)
# How many of the newest completed jobs tell how far their lists have come.
SAMPLE = 200
# A job that was sent as soon after it was created had no other message before, at another place of its line.
AT_ONCE = timedelta(seconds=2)


@dataclass(frozen=True, slots=True)
class Line:
    """Jobs that the broker hands out in the order in which they were sent: those of one queue and priority."""

    queue: str
    priority: int


@dataclass(frozen=True, slots=True)
class Reports:
    """What the workers said last: who lives, what they hold, who died holding something."""

    now: datetime
    oldest: datetime | None = None
    held: frozenset[str] = frozenset()
    dead: list[Worker] = field(default_factory=list)

    def since(self, moment: datetime) -> bool:
        """Whether each live worker has said what it holds since that moment."""
        told = moment + GATHERING
        return self.now > told and (self.oldest is None or self.oldest > told)


def reports() -> Reports:
    """Read what the workers said."""
    now = lifecycle.database_now()
    alive = now - timedelta(seconds=settings().LEASE)
    workers = list(Worker.objects.using(lifecycle.alias()).only("name", "seen_at", "holds"))
    live = [worker for worker in workers if worker.seen_at > alive]
    return Reports(
        now,
        min((worker.seen_at for worker in live), default=None),
        frozenset(job_id for worker in live for job_id in worker.holds),
        [worker for worker in workers if worker.seen_at <= alive and worker.holds],
    )


def reserved() -> QuerySet[Job]:
    """The jobs whose message should be in the broker or with a worker."""
    rows = Job.objects.using(lifecycle.alias()).filter(state=State.RESERVED, finished_at__isnull=True)
    return rows.exclude(pk__in=chunks.led())


def suspect_lines(now: datetime) -> dict[Line, datetime]:
    """The lines with a job that was sent long enough ago to be suspect, and when the first of them was sent."""
    suspect = reserved().filter(sent_at__lt=now - timedelta(seconds=settings().LOST_AFTER))
    rows = suspect.order_by().values_list("queue", "priority").annotate(Min("sent_at"))
    return {Line(queue, priority): first for queue, priority, first in rows}


def progress(held: frozenset[str]) -> dict[Line, datetime]:
    """How far each line has come, at least: when the newest job was sent that is known to have left it.

    Jobs that run, that a worker holds, and some of those that completed lately: what is not seen is only seen later.
    """
    rows = Job.objects.using(lifecycle.alias())
    at_once = rows.filter(sent_at__lt=F("created_at") + AT_ONCE)
    running = at_once.filter(finished_at__isnull=True, lease_until__isnull=False, state=State.RUNNING)
    reached: dict[Line, datetime] = {}
    for queue, priority, sent_at in (
        *_newest(running), *_newest(at_once.filter(pk__in=list(held))), *_completed_lately(rows),
    ):  # fmt: skip
        line = Line(queue, priority)
        reached[line] = max(sent_at, reached.get(line, sent_at))
    return reached


def _completed_lately(rows: QuerySet[Job]) -> Iterator[tuple[str, int, datetime]]:
    # Chosen here: where no job of a long history was sent at once, the database would look through all of it.
    newest = rows.filter(state=State.COMPLETED, finished_at__isnull=False).order_by("-finished_at")[:SAMPLE]
    for queue, priority, sent_at, created_at in newest.values_list("queue", "priority", "sent_at", "created_at"):
        if sent_at is not None and sent_at < created_at + AT_ONCE:
            yield queue, priority, sent_at


def _newest(rows: QuerySet[Job]) -> list[Any]:
    return list(rows.order_by().values_list("queue", "priority").annotate(Max("sent_at")))
