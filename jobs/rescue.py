"""Giving jobs back whose runner is gone: a dead child, a dead worker, a lease that nobody renews."""

from __future__ import annotations

import logging
from datetime import timedelta
from uuid import UUID

from jobs import conclusion, control, lifecycle
from jobs.conclusion import Report
from jobs.conf import current as settings
from jobs.errors import MoveRefused, Refused, WorkerLost
from jobs.models import Job
from jobs.retry import Failure, Kind
from jobs.states import State

logger = logging.getLogger("jobs.rescue")


def lost_child(job_id: str, pid: int | None, why: str) -> bool:
    """The pool's child that ran a job is dead: give the job back at once, without waiting for its lease."""
    job = lifecycle.seen(UUID(job_id))
    if job is None or job.state != State.RUNNING or pid is None or job.pid != pid:
        return False
    return _lost(job, f"its process died: {why}")


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
    return sum(_lost(job, f"{job.worker or 'its worker'} stopped answering") for job in ended)


def force_cancel(limit: int = 200) -> int:
    """Cancel running jobs that were asked to stop and have not done so within the grace; return how many."""
    grace = timedelta(seconds=settings().CANCEL_GRACE)
    asked = Job.objects.using(lifecycle.alias()).filter(
        state=State.RUNNING,
        finished_at__isnull=True,
        cancel_requested_at__lt=lifecycle.database_now() - grace,
    )
    return sum(_cancelled(job) for job in asked[:limit])


def _lost(job: Job, why: str) -> bool:
    if job.cancel_requested_at is not None:
        return _cancelled(job)
    error = WorkerLost(why)
    try:
        conclusion.conclude(job, Failure(Kind.LOST, why), Report.of(error))
    except MoveRefused:
        return False
    logger.warning("Job %s was rescued: %s", job.pk, why)
    return True


def _cancelled(job: Job) -> bool:
    failure = Failure(Kind.CANCELLED, f"forced: {job.cancel_reason or 'cancelled'}")
    try:
        conclusion.conclude(job, failure, Report())
    except MoveRefused:
        return False
    return True
