"""Workers: who listens, since when, and what each one holds."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.http import HttpRequest
from django.utils.safestring import SafeString

from jobs.admin.base import ReadOnlyAdmin
from jobs.admin.health import stale_before
from jobs.admin.wording import label, when
from jobs.models import Job, Worker

MOST_HELD = 200


@admin.register(Worker)
class WorkerAdmin(ReadOnlyAdmin):
    """Worker processes as they last reported themselves."""

    list_display = ("name", "status", "listens", "slots", "held", "started", "seen")
    ordering = ("name",)
    page_template = "jobs/worker.html"
    empty_template = "jobs/no_workers.html"

    def page(self, request: HttpRequest, row: Worker) -> dict[str, Any]:
        """A worker and the jobs that it holds."""
        ids = [str(held) for held in row.holds or []]
        jobs = Job.objects.only("id", "task", "state", "created_at", "queue").filter(pk__in=ids[:MOST_HELD])
        return {
            "title": row.name,
            "worker": row,
            "status": self.status(row),
            "jobs": list(jobs),
            "held": len(ids),
        }

    @admin.display(description="status")
    def status(self, worker: Worker) -> SafeString:
        """Whether it has reported itself lately."""
        if worker.seen_at >= stale_before():
            return label("live", "completed", "it reported itself within a lease")
        return label("stale", "failed", "it has not reported itself for longer than a lease: taken for dead")

    @admin.display(description="queues")
    def listens(self, worker: Worker) -> str:
        """The queues that it reads."""
        return ", ".join(map(str, worker.queues or ()))

    @admin.display(description="pool")
    def slots(self, worker: Worker) -> str:
        """Its pool and how many jobs run at once."""
        stuck = f", {worker.stuck} held by bodies that cannot be stopped" if worker.stuck else ""
        return f"{worker.pool or 'pool'} of {worker.concurrency}{stuck}"

    @admin.display(description="holds")
    def held(self, worker: Worker) -> str:
        """How many jobs it has received and not finished."""
        return str(len(worker.holds or ()))

    @admin.display(description="started")
    def started(self, worker: Worker) -> SafeString | str:
        """Since when it runs."""
        return when(worker.started_at)

    @admin.display(description="last seen")
    def seen(self, worker: Worker) -> SafeString | str:
        """When it last reported itself."""
        return when(worker.seen_at)
