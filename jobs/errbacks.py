"""What an error callback is told of the job that failed."""

from __future__ import annotations

from typing import Any

from celery.app.task import Context

from jobs import declared, lifecycle, payload, publisher
from jobs.models import Job


def arguments(errback: Any, job: Job) -> tuple[Any, ...]:
    """Celery's two forms of an error callback: with the id of what failed, or with (request, exc, traceback)."""
    task = declared.task(errback.task)
    taken = (
        [p for p in payload.signature_of(task.run).parameters.values() if p.kind <= p.POSITIONAL_OR_KEYWORD]
        if task
        else []
    )
    if len(taken) - len(errback.args) < 3:
        return (str(job.pk),)
    mark = {payload.FAILED: str(job.pk)}
    return mark, mark, Job.objects.using(lifecycle.alias()).values_list("traceback", flat=True).get(pk=job.pk)


def with_failures(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Arguments in which marks of a failed job stand for its request and its error, with those put in."""
    if len(args) < 2 or not (isinstance(args[0], dict) and payload.FAILED in args[0]):
        return args
    job = Job.objects.using(lifecycle.alias()).get(pk=args[0][payload.FAILED])
    content = payload.decode(job.payload)
    request = Context(
        id=str(job.pk), task=job.task, args=list(content.args), kwargs=content.kwargs, root_id=str(job.root_id),
        parent_id=job.parent_id and str(job.parent_id), hostname=job.worker, retries=max(0, job.attempt - 1),
    )  # fmt: skip
    return request, error_of(job), *args[2:]


def error_of(job: Job) -> Any:
    """The error of a job as an exception again: of its own class where that can be found."""
    module, _, name = job.error_type.rpartition(".")
    described = {
        "exc_type": name or "Exception",
        "exc_module": module or "builtins",
        "exc_message": [job.error_message],
    }
    return publisher.in_use().app.backend.exception_to_python(described)
