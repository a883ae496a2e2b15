"""The attempts of a job in order: the recorded ones, and the last one as the job itself tells it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from django.utils.dateparse import parse_datetime

from jobs.admin.tracebacks import Traceback
from jobs.models import Attempt, Job
from jobs.states import State

MOST_SHOWN: Final = 50


@dataclass(frozen=True, slots=True)
class Entry:
    """One attempt, as the timeline shows it."""

    number: int
    outcome: str
    worker: str = ""
    pid: int | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    error_type: str = ""
    error_message: str = ""
    traceback: str = ""
    decision: str = ""
    reason: str = ""
    delay: timedelta | None = None

    @property
    def duration(self) -> timedelta | None:
        """How long it ran."""
        return self.finished_at - self.started_at if self.started_at and self.finished_at else None

    @property
    def tone(self) -> str:
        """The state whose colour suits the outcome."""
        if self.decision:
            return self.decision
        return self.outcome if self.outcome in State.values else State.FAILED.value

    @property
    def frames(self) -> Traceback:
        """The traceback in its two readings."""
        return Traceback(self.traceback)


def of_job(job: Job) -> list[Entry]:
    """The latest attempts of a job, oldest first."""
    rows = Attempt.objects.filter(job_id=job.pk).order_by("-number")[:MOST_SHOWN]
    recorded = [from_row(row) for row in rows][::-1]
    if job.attempt and (not recorded or recorded[-1].number < job.attempt):
        recorded.append(last_of(job))
    return recorded


def from_row(row: Attempt) -> Entry:
    """The entry of a recorded attempt."""
    return Entry(
        number=row.number, outcome=row.outcome, worker=row.worker, pid=row.pid, started_at=row.started_at,
        finished_at=row.finished_at, error_type=row.error_type, error_message=row.error_message,
        traceback=row.traceback, decision=row.decision, reason=row.reason, delay=_seconds(row.delay),
    )  # fmt: skip


def last_of(job: Job) -> Entry:
    """The entry of the attempt that only the job's own row tells of."""
    running = job.state == State.RUNNING
    return Entry(
        number=job.attempt, outcome=str(job.state), worker=job.worker, pid=job.pid, started_at=job.started_at,
        finished_at=None if running else job.finished_at, error_type=job.error_type,
        error_message=job.error_message, traceback=job.traceback, reason=job.reason,
    )  # fmt: skip


def of_records(records: Iterable[Mapping[str, Any]]) -> list[Entry]:
    """The entries of attempts that a dead letter keeps as JSON."""
    return [_of_record(record) for record in list(records)[-MOST_SHOWN:]]


def _of_record(record: Mapping[str, Any]) -> Entry:
    texts = ("worker", "error_type", "error_message", "traceback", "decision", "reason")
    return Entry(
        number=int(record.get("number") or 0),
        outcome=str(record.get("outcome") or "failed"),
        pid=record.get("pid"),
        started_at=_moment(record.get("started_at")),
        finished_at=_moment(record.get("finished_at")),
        delay=_seconds(record.get("delay")),
        **{name: str(record.get(name) or "") for name in texts},
    )


def _moment(value: Any) -> datetime | None:
    return value if isinstance(value, datetime) else parse_datetime(value) if isinstance(value, str) else None


def _seconds(value: Any) -> timedelta | None:
    return timedelta(seconds=float(value)) if value else None
