"""Results of tracked tasks are read off their jobs; everything else is left to the backend below.

Celery needs these classes before Django's apps are ready, so what knows the models is imported when it is first needed.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any
from uuid import UUID

from celery.app import backends
from celery.app.control import Control as CeleryControl
from celery.backends.base import BaseBackend
from celery.exceptions import TaskRevokedError
from django.apps import apps

from jobs import payload, ready
from jobs.errors import Refused
from jobs.publisher import HEADER, UNTRACKED
from jobs.states import CELERY_STATE, State

if TYPE_CHECKING:
    from jobs.models import Job


class Control(CeleryControl):
    """Celery's remote control, of which ``AsyncResult.revoke()`` is a part: what it revokes is cancelled for good."""

    def revoke(  # type: ignore[override]
        self, task_id: Any, destination: Any = None, terminate: bool = False, **kwargs: Any
    ) -> Any:
        """Cancel jobs in the database; tell the workers only what the database cannot."""
        ids = [task_id] if isinstance(task_id, str | UUID) else list(task_id or ())
        told = [str(one) for one in ids if not _cancelled(one) or terminate]
        return super().revoke(told, destination=destination, terminate=terminate, **kwargs) if told else None


def _cancelled(task_id: Any) -> bool:
    """Cancel a job, where there is one; whether there is."""
    job = _job(task_id)
    if job is not None:
        from jobs import control

        with suppress(Refused):
            control.cancel(job.pk, reason="revoked", by="celery")
    return job is not None


class JobBackend(BaseBackend):
    """``AsyncResult`` over the job row. Nothing is written for a tracked task: its row says it all.

    Untracked tasks and group results use django-celery-results when it is installed, else the project's own backend.
    """

    app: Any
    persistent = True
    supports_autoexpire = False

    def __init__(self, app: Any, url: str | None = None, **kwargs: Any) -> None:
        super().__init__(app=app, **kwargs)
        self._url = url
        self._untracked: Any = None

    @property
    def untracked(self) -> Any:
        """The backend of what is not tracked."""
        if self._untracked is None:
            configured = getattr(self.app, "mainstay_untracked_backend", None) or self.app.conf.result_backend
            if not configured and apps.is_installed("django_celery_results"):
                configured = "django_celery_results.backends.database:DatabaseBackend"
            found: Any = backends.by_url(configured or "disabled", self.app.loader)
            backend, url = found
            self._untracked = backend(app=self.app, url=url)
        return self._untracked

    def store_result(
        self, task_id: str, result: Any, state: str, traceback: Any = None, request: Any = None, **kwargs: Any
    ) -> Any:
        """Keep the result of an untracked task; of a tracked one, its attempt recorded it already."""
        if self._is_tracked(task_id, request):
            return result
        return self.untracked.store_result(task_id, result, state, traceback=traceback, request=request, **kwargs)

    def get_task_meta(self, task_id: str, cache: bool = True) -> dict[str, Any]:
        """State and result of a task, as Celery names them."""
        job = _job(task_id)
        if job is not None:
            return self._meta(job)
        return dict(self.untracked.get_task_meta(task_id, cache=cache))

    def apply_chord(self, header_result_args: Any, body: Any, **kwargs: Any) -> None:
        """Begin a chord: recorded, held and counted by us."""
        from jobs import successors

        group_id, results = header_result_args
        successors.open_fanin(UUID(str(group_id)), max(1, len(list(results))), body)

    def set_chord_size(self, group_id: Any, chord_size: int) -> None:
        """The number of members, once Celery has counted them."""
        from jobs import successors

        successors.resize_fanin(UUID(str(group_id)), chord_size)

    def on_chord_part_return(self, request: Any, state: str, result: Any, **kwargs: Any) -> None:
        """A member has returned: our own count has moved with its job already."""
        if not self._is_tracked(request.id, request):
            self.untracked.on_chord_part_return(request, state, result, **kwargs)

    def mark_as_failure(self, task_id: str, exc: Any, *args: Any, **kwargs: Any) -> None:
        """Celery's view of a failure; a tracked job's own record is made elsewhere, once."""
        if not self._is_tracked(task_id, kwargs.get("request")):
            self.untracked.mark_as_failure(task_id, exc, *args, **kwargs)

    def ensure_chords_allowed(self) -> None:
        """Chords need no result backend here."""

    def save_group(self, group_id: str, result: Any) -> Any:
        """Keep a group result."""
        return self.untracked.save_group(group_id, result)

    def restore_group(self, group_id: str, cache: bool = True) -> Any:
        """Find a group result again."""
        return self.untracked.restore_group(group_id, cache=cache)

    def delete_group(self, group_id: str) -> Any:
        """Forget a group result."""
        return self.untracked.delete_group(group_id)

    def forget(self, task_id: str) -> None:
        """Forget the result of an untracked task; a job is pruned, not forgotten."""
        if _job(task_id) is None:
            self.untracked.forget(task_id)

    def cleanup(self) -> None:
        """Clean up results of untracked tasks."""
        self.untracked.cleanup()

    def process_cleanup(self) -> None:
        """After each task: nothing to do."""

    def reload_task_result(self, task_id: str) -> None:
        """Nothing is cached."""

    def _is_tracked(self, task_id: str, request: Any) -> bool:
        if request is not None:
            # Of an unknown task Celery gives no more than a bunch of attributes.
            header = getattr(request, HEADER, None)
            if header is None and getattr(request, "chord", None):
                return False  # a chord that began before we were installed: its own backend counts it
            if header not in (None, UNTRACKED):
                return True
        return _job(task_id) is not None

    def _meta(self, job: Job) -> dict[str, Any]:
        state = CELERY_STATE[State(job.state)]
        progress = job.progress or {}
        if job.state == State.RUNNING and progress:
            state = progress.get("celery_state") or state
        return {
            "task_id": str(job.pk), "status": state, "result": self._result(job), "traceback": job.traceback or None,
            "date_done": job.finished_at, "children": [], "name": job.task,
            "parent_id": job.parent_id and str(job.parent_id),
        }  # fmt: skip

    def _result(self, job: Job) -> Any:
        if job.state == State.COMPLETED:
            return None if job.result is None else payload.from_json(job.result)
        if job.state == State.CANCELLED:
            return TaskRevokedError(job.reason)
        if job.state in (State.FAILED, State.RETRYING):
            from jobs import errbacks

            return errbacks.error_of(job)
        progress = job.progress or {}
        return progress.get("meta", progress)


def _job(task_id: Any) -> Job | None:
    try:
        job_id = UUID(str(task_id))
    except ValueError:
        return None
    ready.ensure()
    from jobs import lifecycle
    from jobs.models import Job

    return Job.objects.using(lifecycle.alias()).filter(pk=job_id).first()
