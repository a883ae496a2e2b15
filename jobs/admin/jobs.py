"""The list of jobs and the page of one."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.contrib.admin.views.main import ChangeList
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.urls import URLPattern, path
from django.utils import timezone
from django.utils.html import format_html, format_html_join
from django.utils.http import urlencode
from django.utils.safestring import SafeString

from jobs import bursts, control, views
from jobs.admin import job_page, search
from jobs.admin.base import Rows
from jobs.admin.buttons import ActingAdmin, Question, Verb
from jobs.admin.filters import ByAge, ByCorrelation, ByPriority, ByQueue, ByState, ByTask, linked
from jobs.admin.health import warnings
from jobs.admin.wording import badge, lasting, ran, short_id, short_task, waited, when
from jobs.horizon import Course, course, of_state
from jobs.management import ages
from jobs.models import Job
from jobs.states import FINAL, MOVES, Priority, State

LIST_COLUMNS = (
    "id", "task", "state", "reason", "queue", "priority", "attempt", "max_attempts", "created_at", "started_at",
    "finished_at", "progress", "tenant", "cancel_requested_at",
)  # fmt: skip

# Filters that lead nowhere by themselves, and those that lead to few jobs.
_UNLED = ("priority", "root", "schedule", "origin", "within")
_FEW = ("parent", "group", "original", "correlation", "q")


def cancellable(job: Job) -> bool:
    """Whether a cancel has something left to do."""
    return State.CANCELLED in MOVES[State(job.state)] and job.cancel_requested_at is None


def hastenable(job: Job) -> bool:
    """Whether a job waits, so that it can be made due."""
    return job.waiting and (job.due_at is not None or bursts.gathers(job))


def snoozable(job: Job) -> bool:
    """Whether a job has a time, and has not started."""
    return (job.waiting or job.state == State.RESERVED) and job.due_at is not None


RETRY = Verb(
    name="retry", label="Run now", permission="jobs.retry_job", question="Run now?",
    effect="A waiting job becomes due at once, ahead of its delay. Limits and pauses still hold.",
    done="will run now", perform=lambda job_id, by, reason: control.retry(job_id, by=by, reason=reason),
    possible=hastenable,
)  # fmt: skip
SNOOZE = Verb(
    name="snooze", label="Snooze", permission="jobs.retry_job", question="Snooze?",
    effect="A job that has not started is put off. It uses no attempt.", done="put off",
    perform=lambda job_id, by, reason, length: control.snooze(job_id, length, by=by, reason=reason),
    possible=snoozable, asks=Question("For how long", "From now: 30m, 2h, 1d12h.", ages.age),
)  # fmt: skip
CANCEL = Verb(
    name="cancel", label="Cancel", permission="jobs.cancel_job", question="Cancel?",
    effect="A waiting job will never run. A running one is asked to stop, and is stopped if it does not.",
    done="cancelled or asked to stop", perform=lambda job_id, by, reason: control.cancel(job_id, by=by, reason=reason),
    possible=cancellable, needs_reason=True, dangerous=True,
)  # fmt: skip


class JobChangeList(Rows):
    """The list of jobs; where no index serves the filters, it looks at the newest only, and says so."""

    narrowed = False

    def get_queryset(self, request: HttpRequest, exclude_parameters: Any = None) -> QuerySet[Any]:
        """The filtered jobs."""
        rows = super().get_queryset(request, exclude_parameters)
        if any(request.GET.get(name) for name in _FEW):
            return rows
        chosen = course_of(request)
        since = chosen.horizon(self.root_queryset)
        self.narrowed = since is not None
        return chosen.nearest(rows, Job.objects.order_by(), since)


def course_of(request: HttpRequest) -> Course:
    """What leads the list that is asked for."""
    given = {name: str(value) for name, value in request.GET.items() if value}
    leaders: dict[str, Q] = {name: Q(**{name: given[name]}) for name in ("task", "queue", "tenant") if name in given}
    state = given.get("state")
    if state in FINAL:
        leaders["state"] = of_state(str(state))
    others = [name for name in _UNLED if name in given]
    if "state" not in leaders and others == ["within"] and len(leaders) <= 1:
        others = []  # a time is a part of the index that leads
    return course(leaders, state, others)


@admin.register(Job)
class JobAdmin(ActingAdmin):
    """Jobs, newest first."""

    list_display = ("job", "state_badge", "place", "attempts", "age", "took")
    list_display_links = ("job",)
    list_filter = (
        ByState, ByTask, ByQueue, ByPriority, ByAge, linked("tenant"), linked("parent", "parent_id"),
        linked("group", "group_id"), linked("root", "root_id"), linked("original", "replay_of_id", "replays of"),
        linked("origin", "origin_id", "line of replays"), linked("schedule"), ByCorrelation,
    )  # fmt: skip
    ordering = ("-created_at", "-id")
    search_fields = ("id",)
    search_help_text = "An id or its end, a key, a correlation id, or the beginning of a task's name."
    verbs = (RETRY, SNOOZE, CANCEL)
    page_template = "jobs/job.html"
    empty_template = "jobs/no_jobs.html"

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """All jobs; a list needs only its columns."""
        rows = super().get_queryset(request)
        match = request.resolver_match
        return rows.only(*LIST_COLUMNS) if match and (match.url_name or "").endswith("_changelist") else rows

    def get_ordering(self, request: HttpRequest) -> tuple[str, ...]:
        """Newest first; of jobs in a final state, those that ended last."""
        few = any(request.GET.get(name) for name in _FEW)
        return ("-created_at", "-id") if few else course_of(request).order

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        """The list that bounds what it looks at."""
        return JobChangeList

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        """The jobs that the term means."""
        term = search_term.strip()
        return (queryset.filter(search.found(term)) if term else queryset), False

    def get_urls(self) -> list[URLPattern]:
        """The progress of a job as JSON, for its own page."""
        return [
            path("<uuid:job_id>/progress/", views.progress, name="jobs_job_progress"),
            *super().get_urls(),
        ]

    def page(self, request: HttpRequest, row: Job) -> dict[str, Any]:
        """What a job's page shows."""
        return {**job_page.content(row, request.user), "buttons": self.buttons(request, row)}

    def notices(self, request: HttpRequest) -> list[str]:
        """What an operator should know before reading the list."""
        return warnings()

    @admin.display(description="job")
    def job(self, job: Job) -> SafeString:
        """The last part of the task's name, over the end of the id."""
        shown = '<span title="{}">{}</span><br><code title="{}">{}</code>'
        return format_html(shown, job.task, short_task(job.task), job.id, short_id(job.id))

    @admin.display(description="state")
    def state_badge(self, job: Job) -> SafeString:
        """The state; under it the progress and the reason."""
        shown = '{}{}<div class="jobs-quiet jobs-clip" title="{}">{}</div>'
        return format_html(shown, badge(job.state), bar(job), job.reason, job.reason)

    @admin.display(description="queue")
    def place(self, job: Job) -> SafeString:
        """The queue; under it the priority where it is not the usual one, and the tenant."""
        priority = "" if job.priority == Priority.NORMAL else f"{job.get_priority_display()} "
        return format_html('{}<div class="jobs-quiet">{}{}</div>', job.queue, priority, tenant(job))

    @admin.display(description="attempt")
    def attempts(self, job: Job) -> str:
        """The last attempt, of how many."""
        return f"{job.attempt}/{job.max_attempts}"

    @admin.display(description="created")
    def age(self, job: Job) -> SafeString | str:
        """How long ago it was created."""
        return when(job.created_at, units=1)

    @admin.display(description="took")
    def took(self, job: Job) -> SafeString | str:
        """How long its last attempt ran; under it how long it waited."""
        now = timezone.now()
        times = [("ran", lasting(ran(job, now))), ("waited", lasting(waited(job, now), 1))]
        return format_html_join("", '<div><span class="jobs-quiet">{}</span> {}</div>', ((n, t) for n, t in times if t))


def bar(job: Job) -> SafeString | str:
    """The progress of an unfinished job as a bar."""
    shown = views.progress_of(job)
    if job.finished or shown["percent"] is None:
        return ""
    title = f"{shown['done']} of {shown['total']} {shown['unit']}"
    html = ' <progress class="jobs-progress" max="100" value="{}" title="{}">{} %</progress>'
    return format_html(html, shown["percent"], title, shown["percent"])


def tenant(job: Job) -> SafeString | str:
    """The tenant, leading to its jobs."""
    query = urlencode({"tenant": job.tenant})
    return format_html('<a href="?{}">{}</a>', query, job.tenant) if job.tenant else ""
