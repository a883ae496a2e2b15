"""Which job a message stands for; a message of a foreign producer becomes a job first."""

from __future__ import annotations

from typing import Any
from uuid import NAMESPACE_OID, UUID, uuid5

from jobs import attempt, epoch, intake, lifecycle
from jobs.errors import JobNotFound
from jobs.publisher import HEADER, UNTRACKED

FORGOTTEN = (
    "A message came for this job, and the database does not know it: it was set back, as by restoring a backup. "
    "The job may have run already. What was to follow it is not known. Look whether it took effect, then replay or "
    "resolve it."
)


def job_of(task: Any, request: Any) -> UUID | None:
    """The id of the job that a worker's request stands for; None where the call is not to be tracked."""
    header = request.get(HEADER)
    if header == UNTRACKED or (header is None and not task.tracked):
        return None
    job_id = UUID(as_uuid(request.id))
    if header is None:
        attempt.patiently(lambda: _adopt(task, request, job_id))
        # From here on what follows is the row's business; Celery would publish it a second time.
        request.callbacks = request.errbacks = request.chain = None
        request.id = str(job_id)
    return job_id


def _adopt(task: Any, request: Any, job_id: UUID) -> None:
    if lifecycle.seen(job_id) is not None:
        return
    options = {
        "task_id": str(job_id), "root_id": as_uuid(request.root_id), "parent_id": as_uuid(request.parent_id),
        "link": request.callbacks, "link_error": request.errbacks, "chain": request.chain,
        "queue": _queue(task, request),
    }  # fmt: skip
    given = {name: value for name, value in options.items() if value}
    intake.adopt(task.name, task, request.args, request.kwargs, given)


def keep_forgotten(task: Any, request: Any) -> None:
    """Keep a refused message as a failed job, where its row is gone because the database was set back.

    Where the job was pruned, its message is only a late duplicate.
    """
    job_id: UUID = request.mainstay_job
    attempt.patiently(lambda: _keep_forgotten(task, request, job_id))


def _keep_forgotten(task: Any, request: Any, job_id: UUID) -> None:
    if lifecycle.seen(job_id) is not None or not epoch.is_forgotten(job_id):
        return
    carried = {"task_id": str(job_id), "root_id": request.root_id, "parent_id": request.parent_id}
    given = {name: value for name, value in carried.items() if value}
    intake.bury(task.name, request.args, request.kwargs, given, JobNotFound(FORGOTTEN))


def _queue(task: Any, request: Any) -> str | None:
    """The queue that a message came by, where its routing key names one."""
    key = (request.delivery_info or {}).get("routing_key")
    return key if key in task.app.amqp.queues else None


def as_uuid(value: Any) -> str:
    """Celery's id as a UUID; one of another form is turned into a UUID, always the same."""
    if not value:
        return ""
    try:
        return str(UUID(str(value)))
    except ValueError:
        return str(uuid5(NAMESPACE_OID, str(value)))
