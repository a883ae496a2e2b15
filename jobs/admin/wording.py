"""How the admin says things: names, durations, times, states."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.urls import NoReverseMatch, reverse
from django.utils import timezone
from django.utils.formats import date_format
from django.utils.html import format_html
from django.utils.safestring import SafeString

from jobs.models import Job
from jobs.states import MEANING, State

NEXT: dict[State, str] = {
    State.PENDING: "The conductor sends it when it is due and nothing holds it back.",
    State.RESERVED: "A worker starts it next; if its message is lost, the conductor sends it again.",
    State.RUNNING: "The worker records the outcome; if the worker dies, the conductor gives the job to another.",
    State.RETRYING: "The conductor sends it again when it is due.",
    State.COMPLETED: "Nobody has to do anything.",
    State.FAILED: "A person decides: replay its dead letter, resolve it or discard it.",
    State.CANCELLED: "Nobody has to do anything.",
}


def short_task(task: str) -> str:
    """The last part of a task's name."""
    return task.rsplit(".", 1)[-1]


def short_id(job_id: UUID | str) -> str:
    """The end of an id: the part in which the ids of one moment differ."""
    return str(job_id)[-12:]


def lasting(duration: timedelta | None, units: int = 2) -> str:
    """A duration in at most so many units.

    >>> [lasting(timedelta(seconds=s)) for s in (0.0421, 3.25, 47, 125, 7260, 90000)]
    ['42 ms', '3.2 s', '47 s', '2 min 5 s', '2 h 1 min', '1 d 1 h']
    """
    if duration is None:
        return ""
    seconds = max(duration.total_seconds(), 0.0)
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    return _in_units(round(seconds), units)


def _in_units(seconds: int, units: int) -> str:
    parts = []
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        amount, seconds = divmod(seconds, size)
        if amount:
            parts.append(f"{amount} {unit}")
        elif parts:
            break
    return " ".join(parts[:units])


def since(moment: datetime | None, now: datetime | None = None, units: int = 2) -> str:
    """How long ago a moment was, or how far ahead it is."""
    if moment is None:
        return ""
    passed = (now or timezone.now()) - moment
    if abs(passed) < timedelta(seconds=1):
        return "now"
    return f"{lasting(passed, units)} ago" if passed > timedelta(0) else f"in {lasting(-passed, units)}"


def when(moment: datetime | None, units: int = 2) -> SafeString | str:
    """A moment relative to now; the exact time stands in the title."""
    if moment is None:
        return ""
    shown = '<time datetime="{}" title="{}">{}</time>'
    return format_html(shown, moment.isoformat(), exactly(moment), since(moment, units=units))


def exactly(moment: datetime | None) -> str:
    """A moment in the time zone in force, to the second."""
    return date_format(timezone.localtime(moment), "j M Y, H:i:s") if moment else ""


def badge(state: str) -> SafeString:
    """A state as a coloured badge that also says it."""
    meaning = MEANING.get(State(state), "") if state in State.values else ""
    return label(state, state, meaning)


def label(text: str, tone: str, title: str = "") -> SafeString:
    """A word as a badge in one of the stylesheet's tones."""
    return format_html('<span class="jobs-badge jobs-{}" title="{}">{}</span>', tone, title, text)


def address(name: str, *args: Any, query: str = "") -> str:
    """A page's address, or nothing where the site does not have the page."""
    try:
        return reverse(name, args=args) + (f"?{query}" if query else "")
    except NoReverseMatch:
        return ""


def job_address(job_id: UUID | str) -> str:
    """The address of a job's page."""
    return address("admin:jobs_job_change", job_id)


def waited(job: Job, now: datetime) -> timedelta | None:
    """How long the job waited for its first attempt, or has been waiting; unknown once there was a second."""
    if job.attempt > 1:
        return None
    until = job.started_at or (None if job.finished_at else now)
    return until - job.created_at if until else None


def ran(job: Job, now: datetime) -> timedelta | None:
    """How long the last attempt ran, or has been running."""
    if job.started_at is None or (job.state != State.RUNNING and job.finished_at is None):
        return None
    return (job.finished_at or now) - job.started_at
