"""Sending again what was lost: reserved jobs whose message is in no queue and with no live worker.

What can never be sent, or is sent and never claimed, becomes a dead letter here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from django.db.models import Min

from jobs import conclusion, lifecycle, outbox, publisher, successors
from jobs.conf import current as settings
from jobs.errors import BrokerUnavailable
from jobs.lifecycle import Clock
from jobs.models import Job, Worker
from jobs.states import State


def release(limit: int | None = None) -> int:
    """Hand up to ``limit`` due jobs to the broker; bury those that cannot be sent, however often it is tried."""
    return outbox.release(limit, give_up=_unsendable)


def _unsendable(job: Job) -> None:
    """End a job with the reason and the error that the last try left on it."""
    successors.finish(job, State.FAILED, job.reason)


@dataclass(slots=True)
class Reconciler:
    """Remembers, from tick to tick, since when each queue was seen empty."""

    empty_since: dict[str, datetime] = field(default_factory=dict)

    def tick(self, limit: int = 500) -> int:
        """Make pending again what is known to be lost; return how many.

        The evidence: the queue was empty at a moment after the job was sent, and every live worker has since
        reported what it holds without naming the job. Both reads can only delay a send, never lose one.
        """
        found = 0
        for queue, oldest in _reserved_queues():
            empty_at = self._empty_at(queue, oldest)
            if empty_at is not None:
                found += _send_again(queue, empty_at, limit)
        return found

    def _empty_at(self, queue: str, oldest: datetime) -> datetime | None:
        """A moment after ``oldest`` at which the queue was empty, if every live worker has reported since."""
        try:
            now = lifecycle.database_now()
            if publisher.in_use().depth(queue):
                self.empty_since.pop(queue, None)
                return None
        except BrokerUnavailable:
            self.empty_since.pop(queue, None)
            return None
        since = self.empty_since.setdefault(queue, now)
        if since <= oldest:
            since = self.empty_since[queue] = now
        return since if _all_reported_since(since, now) else None


def _reserved_queues() -> list[tuple[str, datetime]]:
    """Queues with jobs that were sent long enough ago to be suspect, and when the first of them was sent."""
    suspect = lifecycle.database_now() - timedelta(seconds=settings().LOST_AFTER)
    rows = Job.objects.using(lifecycle.alias()).filter(
        state=State.RESERVED, finished_at__isnull=True, sent_at__lt=suspect
    )
    return list(rows.order_by().values_list("queue").annotate(Min("sent_at")))


def _all_reported_since(since: datetime, now: datetime) -> bool:
    live = Worker.objects.using(lifecycle.alias()).filter(seen_at__gt=now - timedelta(seconds=settings().LEASE))
    # A margin, because a report begins to be gathered before it is written.
    return not live.filter(seen_at__lte=since + timedelta(seconds=1)).exists() and now > since + timedelta(seconds=1)


def _send_again(queue: str, empty_at: datetime, limit: int) -> int:
    alive = lifecycle.database_now() - timedelta(seconds=settings().LEASE)
    holds = Worker.objects.using(lifecycle.alias()).filter(seen_at__gt=alive).values_list("holds", flat=True)
    held = {job_id for ids in holds for job_id in ids}
    rows = Job.objects.using(lifecycle.alias()).filter(
        state=State.RESERVED, finished_at__isnull=True, queue=queue, sent_at__lt=empty_at
    )
    lost = [job for job in rows.order_by("sent_at")[: limit + len(held)] if str(job.pk) not in held]
    return sum(_lost(job) for job in lost[:limit])


def _lost(job: Job) -> bool:
    """Make a lost job due again, later each time; one that was sent in vain too often becomes a dead letter."""
    return lifecycle.tried(job, lambda: _never_claimed(job) if job.sends >= settings().MAX_SENDS else _due_again(job))


def _never_claimed(job: Job) -> None:
    successors.finish(
        job, State.FAILED, f"sent {job.sends} times and never claimed", error_type="jobs.errors.NeverClaimed",
        error_message=f"Nobody claimed it. Does a worker of queue {job.queue!r} know {job.task}?",
    )  # fmt: skip


def _due_again(job: Job) -> None:
    wait = conclusion.declaration(job).retry_policy.backoff(job.sends) if job.sends > 1 else timedelta(0)
    lifecycle.move(job, State.PENDING, "its message was lost", due_at=Clock(wait))
