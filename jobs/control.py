"""What people and programs may do to jobs: cancel, retry, pause, resume; and what time does: expire."""

from __future__ import annotations

import functools
from datetime import timedelta
from uuid import UUID

from django.db import transaction

from jobs import audit, lanes, lifecycle, successors
from jobs.errors import JobNotFound, MoveRefused, Refused
from jobs.lifecycle import NOW
from jobs.models import Job, Pause, Worker
from jobs.states import WAITING, State


def cancel(job_id: UUID, *, reason: str, by: str) -> Job:
    """Cancel a job: one that waits never runs; of one that runs, it is a request that its runner obeys.

    Raises ``Refused`` when the job has finished.
    """
    for _ in range(5):
        job = _existing(job_id)
        if job.finished:
            raise Refused(f"Job {job_id} is {job.state} already; there is nothing to cancel.")
        try:
            return _cancel(job, reason or "cancelled", by)
        except MoveRefused:
            continue  # It moved between our look and our act: look again.
    raise Refused(f"Job {job_id} keeps moving. Try again.")


def _cancel(job: Job, reason: str, by: str) -> Job:
    with transaction.atomic(using=lifecycle.alias()):
        if job.state == State.RUNNING:
            if not lifecycle.amend(job, cancel_requested_at=NOW, cancel_reason=reason[:255]):
                raise MoveRefused("it ended meanwhile")
            cancelled = job
        else:
            cancelled = successors.finish(job, State.CANCELLED, reason)
        audit.record_act("cancel", by, str(job.pk), job_id=job.pk, reason=reason)
    return cancelled


def retry(job_id: UUID, *, by: str, reason: str = "") -> Job:
    """Make a waiting job due now.

    Raises ``Refused`` when it is not waiting, or waits for other jobs; a failed job is replayed from its dead letter.
    """
    job = _existing(job_id)
    if job.state == State.FAILED:
        raise Refused(f"Job {job_id} has failed: replay its dead letter (manage.py dlq replay, or in the admin).")
    if job.state not in WAITING:
        raise Refused(f"Job {job_id} is {job.state}; only a job that waits can be made due.")
    if job.due_at is None:
        raise Refused(f"Job {job_id} {job.reason or 'waits for other jobs'}; it cannot run before them.")
    try:
        with transaction.atomic(using=lifecycle.alias()):
            job = lifecycle.move(job, State(job.state), f"made due by {by}", due_at=NOW)
            audit.record_act("retry", by, str(job_id), job_id=job_id, reason=reason)
    except MoveRefused:
        raise Refused(f"Job {job_id} has just moved on by itself.") from None
    return job


def pause(*, queue: str | None = None, task: str | None = None, reason: str, by: str) -> Pause:
    """Stop starting jobs of a queue or a task; what waits in the broker is taken back. Running jobs go on."""
    kind, name = _one_of(queue, task)
    with transaction.atomic(using=lifecycle.alias()):
        pause = Pause(kind=kind, name=name, reason=reason, by=by, created_at=lifecycle.database_now())
        # One statement: between a look and an insert, somebody else may pause and resume.
        Pause.objects.using(lifecycle.alias()).bulk_create(
            [pause], update_conflicts=True, unique_fields=["kind", "name"], update_fields=["reason", "by", "created_at"]
        )
        lifecycle.move_all(
            [State.RESERVED],
            State.PENDING,
            f"finished_at IS NULL AND {kind} = %s",
            [name],
            "paused",
            due_at=NOW,
            sends=0,
        )
        audit.record_act("pause", by, f"{kind} {name}", reason=reason)
    return pause


def resume(*, queue: str | None = None, task: str | None = None, by: str) -> bool:
    """Let jobs of a queue or a task start again; False when it was not paused."""
    kind, name = _one_of(queue, task)
    with transaction.atomic(using=lifecycle.alias()):
        deleted, _ = Pause.objects.using(lifecycle.alias()).filter(kind=kind, name=name).delete()
        if deleted:
            lanes.reopen(lanes.PAUSED)
            audit.record_act("resume", by, f"{kind} {name}")
    return bool(deleted)


def expire(limit: int = 500) -> int:
    """Cancel waiting jobs whose time has run out; return how many."""
    rows = Job.objects.using(lifecycle.alias()).filter(
        finished_at__isnull=True,
        state__in=[*WAITING, State.RESERVED],
        expires_at__lte=lifecycle.database_now(),
    )
    return sum(
        lifecycle.tried(job, functools.partial(successors.finish, job, State.CANCELLED, "expired"))
        for job in rows[:limit]
    )


def forget_workers() -> int:
    """Drop the reports of workers that have been silent for an hour; return how many."""
    silent = lifecycle.database_now() - timedelta(hours=1)
    return Worker.objects.using(lifecycle.alias()).filter(seen_at__lt=silent).delete()[0]


def _existing(job_id: UUID) -> Job:
    job = lifecycle.seen(job_id)
    if job is None:
        raise JobNotFound(f"There is no job {job_id}.")
    return job


def _one_of(queue: str | None, task: str | None) -> tuple[str, str]:
    if bool(queue) == bool(task):
        raise Refused("Name either a queue or a task.")
    return (Pause.Kind.QUEUE, str(queue)) if queue else (Pause.Kind.TASK, str(task))
