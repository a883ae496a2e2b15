"""Sending again what was lost: reserved jobs whose message is known to be gone.

What is sent and never claimed becomes a dead letter here.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from jobs import chunks, conclusion, evidence, lifecycle, publisher, successors
from jobs import epoch as epochs
from jobs.conf import current as settings
from jobs.errors import BrokerUnavailable
from jobs.evidence import Line, Reports
from jobs.lifecycle import Clock, Column
from jobs.models import Job, Worker
from jobs.states import State

SLICE = 2000  # rows that one statement moves
WATCHING = 5.0  # seconds in which each live worker reports at least once
RESTING = 10.0  # times as long as the last look at the lines took, where it found nothing
LONGEST_REST = 30.0
A_TURN = 2.0  # seconds after which a chore lets the others have their turn


@dataclass(slots=True)
class Reconciler:
    """Finds messages that are known to be lost, by what it saw from tick to tick; never by age alone.

    The evidence (and each look can only delay a send, never lose one):

    * the broker was set back: its marker is missing, or older than it should be (``jobs.epoch``);
    * a worker died that had reported to hold the job;
    * the job's line was seen empty after the job was sent, and each live worker has since reported not to hold it;
    * a job sent clearly later has left the same line, and the same reports.
    """

    empty_since: dict[Line, datetime] = field(default_factory=dict)
    reached: dict[Line, datetime] = field(default_factory=dict)
    reached_at: datetime | None = None
    watching_since: float = field(default_factory=time.monotonic)
    looked: float = field(default_factory=time.monotonic)
    resting_until: float = 0.0

    def tick(self, limit: int = 500) -> int:
        """Make pending again what is known to be lost; return how many."""
        reports = evidence.reports()
        found = _lost_with_the_broker(reports)
        if self._is_watching():
            found += _lost_with_workers(reports, limit)
        if time.monotonic() >= self.resting_until:
            found += self._looked_at_lines(reports, limit)
        return found

    def _looked_at_lines(self, reports: Reports, limit: int) -> int:
        began, found = time.monotonic(), 0
        try:
            found = self._lost_from_lines(reports, limit)
        except BrokerUnavailable:
            self.empty_since.clear()  # how long a broker does not answer says nothing of how long a look takes
        else:
            if not found:
                # A million reserved jobs take a while to look through, and need not be looked through all the time.
                took = time.monotonic() - began
                self.resting_until = time.monotonic() + min(RESTING * took, LONGEST_REST)
        return found

    def _is_watching(self) -> bool:
        """Whether the workers had time to report: after the database was away, all of them seem dead."""
        now = time.monotonic()
        if now - self.looked > WATCHING:
            self.watching_since = now
        self.looked = now
        return now - self.watching_since >= WATCHING

    def _lost_from_lines(self, reports: Reports, limit: int) -> int:
        suspects = evidence.suspect_lines(reports.now)
        found = 0
        for line, first in suspects.items():
            empty_at = self._empty_at(line, first, reports)
            if empty_at is not None:
                found += _send_again(line, empty_at, reports, limit)
        for line, left_at in self._left(reports).items() if suspects else ():
            if line in suspects and suspects[line] < left_at:
                found += _send_again(line, left_at, reports, limit)
        return found

    def _empty_at(self, line: Line, first: datetime, reports: Reports) -> datetime | None:
        """A moment after ``first`` at which the line was empty, if every live worker has reported since."""
        if publisher.in_use().depth(line.queue, line.priority):
            self.empty_since.pop(line, None)
            return None
        since = self.empty_since.setdefault(line, reports.now)
        if since <= first:
            since = self.empty_since[line] = reports.now
        return since if reports.since(since) else None

    def _left(self, reports: Reports) -> dict[Line, datetime]:
        """Until when each line's jobs have left it, of a look since which every live worker has reported."""
        if self.reached_at is None:
            self.reached, self.reached_at = evidence.progress(reports.held), reports.now
        if not reports.since(self.reached_at):
            return {}
        left = {line: newest - evidence.SENDING for line, newest in self.reached.items()}
        self.reached_at = None
        return left


def _lost_with_the_broker(reports: Reports) -> int:
    """Send again what a broker that was set back may have lost, in the order in which it was sent before."""
    epoch = epochs.lost()
    if epoch is None or epoch.lost_since is None or epoch.lost_until is None or not reports.since(epoch.lost_until):
        return 0
    span = [lifecycle.prepared("sent_at", moment) for moment in (epoch.lost_since, epoch.lost_until)]
    held = [lifecycle.prepared("id", job_id) for job_id in reports.held]
    others = f"AND id NOT IN ({', '.join(['%s'] * len(held))})" if held else ""
    found, until = 0, time.monotonic() + A_TURN
    while moved := lifecycle.move_slice(
        State.RESERVED, State.PENDING, f"sent_at >= %s AND sent_at <= %s {others}", [*span, *held],
        "its message was lost with the broker", SLICE, due_at=Column("sent_at"), sends=0,
    ):  # fmt: skip
        found += moved
        if time.monotonic() > until:
            return found  # the rest in the next tick: those that are due again are sent meanwhile
    epochs.made_good(epoch)
    return found


def _lost_with_workers(reports: Reports, limit: int) -> int:
    """Send again what dead workers held and had not begun; what they ran is the rescuer's."""
    found = 0
    for worker in reports.dead:
        found += give_up_hold(worker, reports.held, limit)
    return found


def give_up_hold(worker: Worker, held: frozenset[str] = frozenset(), limit: int = 500) -> int:
    """Make due again what a worker that is no more had received and not begun; return how many."""
    lost = evidence.reserved().filter(pk__in=set(worker.holds) - held, sent_at__lte=worker.seen_at)
    jobs = list(lost[:limit])
    found = sum(_lost(job) for job in jobs)
    if len(jobs) < limit:  # else the rest is looked at in the next tick
        Worker.objects.using(lifecycle.alias()).filter(pk=worker.pk, seen_at=worker.seen_at).update(holds=[])
    return found


def _send_again(line: Line, before: datetime, reports: Reports, limit: int) -> int:
    rows = evidence.reserved().filter(queue=line.queue, priority=line.priority, sent_at__lt=before)
    lost = [job for job in rows.order_by("sent_at")[: limit + len(reports.held)] if str(job.pk) not in reports.held]
    return sum(_lost(job) for job in lost[:limit])


def _lost(job: Job) -> bool:
    """Make a lost job due again, later each time; one that was sent in vain too often becomes a dead letter."""
    with_it = chunks.mates(job.pk, State.RESERVED) if job.lane else []
    found = [_tried_again(one) for one in (job, *with_it)]
    return found[0]


def _tried_again(job: Job) -> bool:
    return lifecycle.tried(job, lambda: _never_claimed(job) if job.sends >= settings().MAX_SENDS else _due_again(job))


def _never_claimed(job: Job) -> None:
    successors.finish(
        job, State.FAILED, f"sent {job.sends} times and never claimed", error_type="jobs.errors.NeverClaimed",
        error_message=f"Nobody claimed it. Does a worker of queue {job.queue!r} know {job.task}?",
    )  # fmt: skip


def _due_again(job: Job) -> None:
    wait = conclusion.declaration(job).retry_policy.backoff(job.sends) if job.sends > 1 else timedelta(0)
    lifecycle.move(job, State.PENDING, "its message was lost", due_at=Clock(wait))
