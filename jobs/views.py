"""Jobs over HTTP as JSON: one job, and its progress. Refusals are JSON too, never a redirect."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any
from uuid import UUID

from django.http import HttpRequest, JsonResponse
from django.http.response import HttpResponseBase
from django.utils.cache import patch_cache_control
from django.views.decorators.http import conditional_page, require_safe

from jobs import shown
from jobs.masking import mask
from jobs.models import Job
from jobs.states import Priority

PROGRESS_COLUMNS = ("id", "state", "progress", "attempt", "started_at", "finished_at")
FAT_COLUMNS = ("traceback", "canvas", "delivery", "token")

View = Callable[[HttpRequest, UUID], HttpResponseBase]


def for_viewers(view: Callable[[UUID], dict[str, Any] | None]) -> View:
    """Serve what ``view`` finds to users who may view jobs: 401, 403 and 404 say why in JSON."""

    @wraps(view)
    def answer(request: HttpRequest, job_id: UUID) -> HttpResponseBase:
        if not request.user.is_authenticated:
            return refusal(401, "Log in first.")
        if not request.user.has_perm("jobs.view_job"):
            return refusal(403, "This needs the permission jobs.view_job.")
        found = view(job_id)
        return private(JsonResponse(found)) if found is not None else refusal(404, f"There is no job {job_id}.")

    return require_safe(conditional_page(answer))


def refusal(status: int, sentence: str) -> JsonResponse:
    """A refusal that says why."""
    return private(JsonResponse({"error": sentence}, status=status))


def private(response: JsonResponse) -> JsonResponse:
    """A response that only its user's browser may keep, asking each time whether it still holds."""
    patch_cache_control(response, private=True, no_cache=True)
    return response


@for_viewers
def progress(job_id: UUID) -> dict[str, Any] | None:
    """How far a job is."""
    job = Job.objects.only(*PROGRESS_COLUMNS).filter(pk=job_id).first()
    return progress_of(job) if job else None


@for_viewers
def job(job_id: UUID) -> dict[str, Any] | None:
    """A job with all that may be shown of it."""
    found = Job.objects.defer(*FAT_COLUMNS).filter(pk=job_id).first()
    return job_of(found) if found else None


def progress_of(job: Job) -> dict[str, Any]:
    """A job's progress as JSON values; ``percent`` is None where no total is known."""
    kept = _kept(job.progress)
    return {
        "id": str(job.id),
        "state": job.state,
        "attempt": job.attempt,
        "done": kept.get("done"),
        "total": kept.get("total"),
        "unit": kept.get("unit") or "",
        "message": kept.get("message") or "",
        "percent": percent(kept.get("done"), kept.get("total")),
        "updated": kept.get("at") or kept.get("updated") or _iso(job.finished_at or job.started_at),
    }


def _kept(progress: Any) -> Mapping[str, Any]:
    """A progress as ours; Celery's custom states say ``current`` and ``total`` in their meta."""
    if not isinstance(progress, dict):
        return {}
    meta = progress.get("meta")
    if "celery_state" not in progress or not isinstance(meta, dict):
        return progress
    return {"done": meta.get("current"), "total": meta.get("total"), "message": progress["celery_state"]}


def percent(done: Any, total: Any) -> int | None:
    """How much is done, in whole percent; 100 only when all is.

    >>> percent(999, 1000), percent(1000, 1000), percent(5, None)
    (99, 100, None)
    """
    if not isinstance(done, int | float) or not isinstance(total, int | float) or total <= 0:
        return None
    return max(0, min(100, int(done * 100 // total)))


def job_of(job: Job) -> dict[str, Any]:
    """A job as JSON values, secrets hidden."""
    texts = (
        "task",
        "queue",
        "state",
        "reason",
        "key",
        "tenant",
        "correlation_id",
        "schedule",
        "worker",
        "error_type",
        "error_message",
    )
    ids = ("parent_id", "root_id", "group_id", "replay_of_id")
    times = ("created_at", "due_at", "expires_at", "started_at", "finished_at")
    return {
        "id": str(job.id),
        **{name: getattr(job, name) for name in texts},
        **{name: _text(getattr(job, name)) for name in ids},
        **{name: _iso(getattr(job, name)) for name in times},
        "priority": Priority(job.priority).name.lower(),
        "attempt": job.attempt,
        "max_attempts": job.max_attempts,
        "tags": job.tags,
        "metadata": mask(job.metadata),
        "payload": shown.masked_payload(job.payload, shown.parameters(job.task)),
        "result": mask(shown.loaded(job.result)) if job.result else None,
        "final": job.finished,
        "progress": progress_of(job) if job.progress else None,
    }


def _iso(moment: Any) -> str | None:
    return moment.isoformat() if moment else None


def _text(value: Any) -> str | None:
    return str(value) if value else None
