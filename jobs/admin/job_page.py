"""What the page of a job says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from django.utils import timezone
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from jobs import shown, standing, views
from jobs.admin import links, timeline
from jobs.admin.tracebacks import Traceback
from jobs.admin.why import Shown, limit_address, queue_address
from jobs.admin.why import shown as shown_parts
from jobs.admin.wording import (
    NEXT,
    address,
    badge,
    exactly,
    lasting,
    ran,
    short_id,
    short_task,
    waited,
    when,
)
from jobs.explain import explain
from jobs.limits import Kind, binds
from jobs.masking import mask
from jobs.models import Act, Checkpoint, Job
from jobs.states import MEANING, State

Fact = tuple[str, SafeString | str]

CHECKPOINTS_SHOWN: Final = 50


def content(job: Job, user: Any) -> dict[str, Any]:
    """The page of a job, for a user who may view it."""
    return {
        "title": f"{short_task(job.task)} {short_id(job.id)}",
        "job": job,
        "name": short_task(job.task),
        "badge": badge(job.state),
        "meaning": meaning(job),
        "parts": reasons(job),
        "line_address": queue_address(job.queue) if job.waiting else "",
        "facts": [fact for fact in facts(job) if fact[1]],
        "timing": [fact for fact in timing(job) if fact[1]],
        "progress": views.progress_of(job),
        "progress_address": address("admin:jobs_job_progress", job.pk),
        "payload": shown.payload(job.task, job.payload),
        "result": shown.masked(job.result),
        "traceback": Traceback(job.traceback),
        "attempts": timeline.of_job(job),
        "checkpoints": list(kept(job)),
        "relations": links.relations(job),
        "elsewhere": links.elsewhere(job),
        "replay_address": links.replay_address(job) if user.has_perm("dlq.replay_deadletter") else "",
        "companions": [(name, text) for name, text in companions(job) if text],
        "acts": Act.objects.filter(job_id=job.pk)[:20] if user.has_perm("jobs.view_act") else [],
    }


def meaning(job: Job) -> str:
    """One sentence about the state, and one about who acts next."""
    state = State(job.state)
    return f"{MEANING[state].capitalize()}. {NEXT[state]}"


def reasons(job: Job) -> list[Shown]:
    """What stands between this job and its end."""
    return [] if job.finished else shown_parts(explain(job.pk).parts)


def facts(job: Job) -> Iterator[Fact]:
    """What the job is."""
    yield "Id", format_html("<code>{}</code>", job.id)
    yield "Task", format_html("<code>{}</code>", job.task)
    yield "Queue", format_html("{}, priority {}", job.queue, job.get_priority_display())
    yield "Key", format_html("<code>{}</code>", job.key) if job.key else ""
    yield (
        "Tenant",
        format_html(
            '<a href="{}">{}</a>',
            address("admin:jobs_job_changelist", query=f"tenant={job.tenant}"),
            job.tenant,
        )
        if job.tenant
        else "",
    )
    yield (
        "Tags",
        format_html_join(" ", '<span class="jobs-tag">{}</span>', ((tag,) for tag in job.tags or ())),
    )
    yield "Correlation id", _correlation(job)
    yield "Payload version", str(job.version) if job.version != 1 else ""
    yield "Limits", _limits(job)
    keys = [
        (limit_address(b.kind, b.key), b.key)
        for b in (*binds(job.bound), *standing.of_job(job))
        if b.kind is not Kind.CIRCUIT
    ]
    yield "Counts under", format_html_join(", ", '<a href="{}">{}</a>', keys)


def _correlation(job: Job) -> SafeString | str:
    if not job.correlation_id:
        return ""
    at = address("admin:jobs_job_changelist", query=f"correlation={job.correlation_id}")
    return format_html('<a href="{}"><code>{}</code></a>', at, job.correlation_id)


def _limits(job: Job) -> str:
    limits = [("", job.time_limit), ("soft ", job.soft_time_limit)]
    return ", ".join(f"{name}time limit {limit:g} s" for name, limit in limits if limit)


def timing(job: Job) -> Iterator[Fact]:
    """When what happened, and how often."""
    now = timezone.now()
    yield "Created", _at(job.created_at)
    yield "Due", _at(job.due_at) if job.waiting else ""
    yield "Sent", _at(job.sent_at)
    yield "Started", _at(job.started_at)
    yield "Finished", _at(job.finished_at)
    yield "Expires", _at(job.expires_at) if not job.finished else ""
    yield "Waited", lasting(waited(job, now))
    yield "Running for" if job.state == State.RUNNING else "Ran", lasting(ran(job, now))
    yield (
        "Attempts",
        f"{job.attempt} of {job.max_attempts} allowed" if job.attempt else f"none yet of {job.max_attempts} allowed",
    )
    yield "Set back", _set_back(job)
    yield (
        "Worker",
        format_html("<code>{}</code>{}", job.worker, f", pid {job.pid}" if job.pid else "") if job.worker else "",
    )


def _set_back(job: Job) -> str:
    times = [("snoozed", job.snoozes), ("worker lost", job.losses)]
    return ", ".join(f"{name} {number} times" for name, number in times if number)


def _at(moment: Any) -> SafeString | str:
    return format_html('{} <span class="jobs-quiet">{}</span>', when(moment), exactly(moment)) if moment else ""


def kept(job: Job) -> Iterator[dict[str, Any]]:
    """The latest checkpoints, oldest first, secrets hidden."""
    rows = Checkpoint.objects.filter(job_id=job.pk).order_by("-written_at", "-id")[:CHECKPOINTS_SHOWN]
    for row in reversed(rows):
        value = mask({row.name: shown.loaded(row.value)})[row.name]
        by = f"in attempt {row.attempt}" if row.attempt else "by the job that this one repeats"
        kind, text = row.get_kind_display(), shown.pretty(value)
        yield {"name": row.name, "kind": kind, "value": text, "by": by, "at": row.written_at}


def companions(job: Job) -> Iterator[tuple[str, str]]:
    """What travels with the payload."""
    yield "Metadata", shown.pretty(mask(job.metadata)) if job.metadata else ""
    yield "Delivery: what the message carries beyond the payload", shown.masked(job.delivery)
    yield "Canvas: what follows", shown.masked(job.canvas)
