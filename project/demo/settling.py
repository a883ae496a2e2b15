"""Bringing a running demo to its end: chores, each done when its moment has come, and the last job."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from django.db.models import Count
from django.utils import timezone
from django_celery_beat.models import PeriodicTask, PeriodicTasks

from dlq.models import DeadLetter, Status
from dlq.replay import replay_many
from jobs import control
from jobs.models import Job, Pause
from jobs.states import FINAL, State
from project.demo import tasks
from project.demo.expected import NIGHTLY, Ends
from project.demo.models import ImportRun, TaxRate, remember
from project.demo.round import RATELESS_COUNTRY
from project.demo.seeding import BY, SUPPLIERS, TAX_PERCENT

REPORTS_WANTED = 2
REPORTS_PATIENCE = 30.0
# A beat that has just read its schedule may fire once more, at most its longest sleep (5 s) later.
LAST_FIRE = 6.0


@dataclass(slots=True)
class Settlement:
    """The chores still to do, and how far the jobs have come. ``clock`` counts seconds."""

    clock: Callable[[], float] = time.monotonic
    began: float = field(init=False)
    stopped: float | None = field(init=False, default=None)
    chores: list[Callable[[], bool]] = field(init=False)

    def __post_init__(self) -> None:
        self.began = self.clock()
        self.chores = [self.stop_schedules, mend_taxes, stop_export, end_sale, reopen_suppliers]

    @property
    def waited(self) -> float:
        """Seconds since this began."""
        return self.clock() - self.began

    def advance(self) -> bool:
        """Do the chores whose moment has come; return whether every job has settled."""
        self.chores = [chore for chore in self.chores if not chore()]
        return not self.chores and self.quiet() and not unfinished()

    def quiet(self) -> bool:
        """Whether no schedule can fire any more."""
        return self.stopped is not None and self.waited > self.stopped + LAST_FIRE

    def stop_schedules(self) -> bool:
        """Turn the schedules off, once they have been seen to fire or have had the time to."""
        if self.waited < REPORTS_PATIENCE and Job.objects.filter(task=NIGHTLY).count() < REPORTS_WANTED:
            return False
        if PeriodicTask.objects.filter(enabled=True).update(enabled=False):
            PeriodicTasks.update_changed()
        self.stopped = self.waited
        return True


def mend_taxes() -> bool:
    """Enter the missing tax rate and replay the letters that it caused, once the last of them has come in."""
    mine = Job.objects.filter(task=tasks.book_tax.name)
    if not mine.exists() or mine.exclude(state__in=FINAL).exists():
        return False
    country, percent = RATELESS_COUNTRY, TAX_PERCENT[RATELESS_COUNTRY]
    TaxRate.objects.get_or_create(country=country, defaults={"percent": percent})
    letters = DeadLetter.objects.filter(task=tasks.book_tax.name, status=Status.OPEN)
    again, _ = replay_many(
        [letter.pk for letter in letters], by=BY, reason=f"the tax rate of {country} has been entered"
    )
    remember([job.pk for job in again], "replayed tax entry")
    return True


def stop_export() -> bool:
    """Cancel the long export while it runs."""
    exports = Job.objects.filter(task=tasks.ExportCatalogue.name)
    for export in exports.filter(state=State.RUNNING, cancel_requested_at=None):
        control.cancel(export.pk, reason="the warehouse has closed", by=BY)
    return not exports.exclude(state__in=FINAL).exists()


def end_sale() -> bool:
    """Let announcements start again, once the sale is over."""
    waiting = Job.objects.filter(task=tasks.announce_sale.name).exclude(state__in=FINAL)
    if waiting.filter(expires_at__gt=timezone.now()).exists():
        return False
    if Pause.objects.filter(kind=Pause.Kind.TASK, name=tasks.announce_sale.name).exists():
        control.resume(task=tasks.announce_sale.name, by=BY)
    return True


def reopen_suppliers() -> bool:
    """Let the orders of supplies go: the supplier has counted his stock."""
    if Pause.objects.filter(kind=Pause.Kind.QUEUE, name=SUPPLIERS).exists():
        control.resume(queue=SUPPLIERS, by=BY)
    return True


def unfinished() -> int:
    """How many jobs have not settled."""
    return Job.objects.exclude(state__in=FINAL).count()


def counts() -> dict[str, int]:
    """How many jobs are in each state."""
    return dict(Job.objects.order_by().values_list("state").annotate(count=Count("pk")))


def ends() -> dict[str, Ends]:
    """How many jobs of each task ended how."""
    found: dict[str, Ends] = {}
    rows = Job.objects.order_by().filter(state__in=FINAL).values_list("task", "state").annotate(count=Count("pk"))
    for task, state, count in rows:
        found[task] = found.get(task, Ends()) + Ends(**{state: count})
    return found


def stragglers(limit: int = 20) -> list[str]:
    """The jobs that have not settled, a sentence each."""
    waiting = Job.objects.exclude(state__in=FINAL).order_by("created_at")[:limit]
    return [
        f"{job.task} {job.pk} is {job.state} ({job.reason or 'no reason'}), attempt {job.attempt}" for job in waiting
    ]


def import_progress() -> str:
    """How far the imports are, as a phrase."""
    runs = [f"{run.file} {run.cursor:,}/{run.rows:,}" for run in ImportRun.objects.order_by("pk")]
    return ", ".join(runs) or "no import yet"
