"""Giving jobs back whose runner is gone: a dead child, a dead worker, a lease that nobody renews."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from jobs import audit, chunks, conclusion, control, epoch, evidence, lifecycle, publisher, successors
from jobs.conclusion import Report
from jobs.conf import current as settings
from jobs.errors import Refused, WorkerLost
from jobs.failures import Failure, Kind, how_it_ended
from jobs.models import Job, Worker
from jobs.reconcile import Reconciler
from jobs.release import release
from jobs.states import State

logger = logging.getLogger("jobs.rescue")

# Until every live worker has told what it holds: they report every two seconds.
PATIENCE = 7.0


@dataclass(frozen=True, slots=True)
class Requeued:
    """How many jobs were taken back from dead workers, found to have lost their message, and sent."""

    rescued: int
    lost: int
    released: int


def requeue_stuck(*, by: str, reason: str = "") -> Requeued:
    """Do at once what the conductor does all the time: rescue, reconcile, release.

    Raises ``BrokerUnavailable`` when the broker cannot be reached; what was rescued by then stays so.
    """
    audit.record_act("requeue stuck", by, "all queues", reason=reason)
    rescued = _until_none(rescue)
    # Asked first, because the reconciler and the release keep quiet when the broker does.
    publisher.in_use().depth(publisher.in_use().app.conf.task_default_queue)
    return Requeued(rescued, _find_lost(), _until_none(release))


def _until_none(act: Callable[[], int]) -> int:
    total = 0
    while done := act():
        total += done
    return total


def _find_lost() -> int:
    """Look until the evidence is in: what the broker has, and what each live worker holds since."""
    reconciler, until, found = Reconciler(), time.monotonic() + PATIENCE, 0
    while time.monotonic() < until:
        epoch.tick()
        found += reconciler.tick()
        if not evidence.reserved().exists():
            break
        time.sleep(0.25)
    return found


def lost_child(job_id: str, worker: str, pid: int | None, why: str, given: UUID | None = None) -> bool:
    """The pool's child that ran a job, or all of its chunk, is dead: give back at once what it ran, without its lease.

    ``given`` is the token of the claim that was made for the child. The worker is asked for too: in containers,
    processes of several workers have the same pid.
    """
    if pid is None:
        return False
    job, reason = lifecycle.seen(UUID(job_id)), how_it_ended(why)
    running = [job] if job is not None and job.state == State.RUNNING else []
    held = [
        one for one in (*running, *chunks.mates(UUID(job_id), State.RUNNING))
        if (one.worker, one.pid) == (worker, pid) or (given is not None and one.token == given)
    ]  # fmt: skip
    found = [_lost(one, reason) for one in held]
    return any(found)


def revoked(job_id: str, why: str) -> None:
    """Celery's revoke reached a worker: cancel the job for good."""
    try:
        control.cancel(UUID(job_id), reason=f"revoked: {why}", by="celery")
    except (Refused, ValueError):
        return


def rescue(limit: int = 200) -> int:
    """Give back the jobs whose lease has ended; return how many."""
    running = Job.objects.using(lifecycle.alias()).filter(state=State.RUNNING, finished_at__isnull=True)
    ended = running.filter(lease_until__lt=lifecycle.database_now()).order_by("lease_until")[:limit]
    return sum(_lost(job, _why(job)) for job in ended)


def _why(job: Job) -> str:
    """Why a lease was not renewed: its worker is silent, or well, and gave up a body that hangs."""
    assert job.lease_until is not None
    limit, lease = job.time_limit, timedelta(seconds=settings().LEASE)
    late = limit and job.started_at and job.lease_until - job.started_at > timedelta(seconds=limit)
    awake = Worker.objects.using(lifecycle.alias()).filter(name=job.worker, seen_at__gt=job.lease_until - lease / 2)
    if late and awake.exists():
        return f"hung past its time limit of {limit:g} s"
    return f"{job.worker or 'its worker'} stopped answering"


def force_cancel(limit: int = 200) -> int:
    """Cancel jobs that were asked to stop: those that run after the grace, others at once; return how many."""
    late = lifecycle.database_now() - timedelta(seconds=settings().CANCEL_GRACE)
    asked = Job.objects.using(lifecycle.alias()).filter(finished_at__isnull=True, cancel_requested_at__isnull=False)
    running = asked.filter(state=State.RUNNING, cancel_requested_at__lt=late)
    others = asked.exclude(state=State.RUNNING)
    return sum(_cancelled(job) for job in (*running[:limit], *others[:limit]))


def _lost(job: Job, why: str) -> bool:
    if job.cancel_requested_at is not None:
        return _cancelled(job)
    report = Report.of(WorkerLost(why))
    found = lifecycle.tried(job, lambda: conclusion.conclude(job, Failure(Kind.LOST, why), report))
    if found:
        logger.warning("Job %s was rescued: %s", job.pk, why)
    return found


def _cancelled(job: Job) -> bool:
    if job.state != State.RUNNING:
        return lifecycle.tried(job, lambda: successors.finish(job, State.CANCELLED, job.cancel_reason))
    failure = Failure(Kind.CANCELLED, f"forced: {job.cancel_reason or 'cancelled'}")
    return lifecycle.tried(job, lambda: conclusion.conclude(job, failure, Report()))
