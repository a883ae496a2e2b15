"""What is to be fired when: every enabled schedule with its next fire, read again when something may have changed."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from django_celery_beat.models import PeriodicTask, PeriodicTasks

from jobs.models import Schedule
from jobs.schedule import ledger, rules
from jobs.schedule.preview import NEVER
from jobs.schedule.rules import Timetable, Unschedulable

logger = logging.getLogger("jobs.schedule")


@dataclass(slots=True)
class Agenda:
    """The next fire of each schedule, by the id of its periodic task."""

    due: dict[int, datetime] = field(default_factory=dict)
    _marker: Any = None
    _known: dict[int, tuple[Any, datetime | None]] = field(default_factory=dict)
    _problems: dict[int, str] = field(default_factory=dict)

    def changed(self) -> bool:
        """Whether somebody has edited a schedule since the last look."""
        marker = PeriodicTasks.last_change()
        changed, self._marker = bool(marker != self._marker), marker
        return changed

    def read(self) -> None:
        """Look at all schedules; one that cannot be read is reported, and keeps nobody from their turn."""
        found = {row.name: row for row in ledger.rows()}
        enabled = list(ledger.enabled())
        self.due = {}
        for task in enabled:
            next_at = self._next_of(task, found.get(task.name))
            if next_at is not None:
                self.due[task.pk] = next_at
        names = {task.name for task in enabled}
        gone = [name for name, row in found.items() if name not in names and row.decided_until is not None]
        if gone:
            ledger.stopped(gone)
        self._forget(set(self.due))

    def put(self, task_id: int, next_at: datetime | None) -> None:
        """Note when a schedule is to be looked at next."""
        if next_at is None:
            self.due.pop(task_id, None)
        else:
            self.due[task_id] = next_at

    def report(self, task: Any, problem: str) -> None:
        """Say what is wrong with a schedule, once."""
        if self._problems.get(task.pk) != problem:
            logger.error("The schedule %s is enabled and cannot fire: %s", task.name, problem)
            self._problems[task.pk] = problem

    def _next_of(self, task: Any, row: Schedule | None) -> datetime | None:
        try:
            if _never_again(task, row):
                return None
            if row is None or ledger.unnoted(row, task):
                row = ledger.noted(task)
            seen = (row.says, row.anchor, row.decided_until, task.start_time, task.expires)
            known = self._known.get(task.pk)
            if known is None or known[0] != seen:
                table = _timetable(task, row)
                known = self._known[task.pk] = (seen, table.first(_decided(row)) or table.end)
            if known[1] is None:
                self.report(task, NEVER)
            return known[1]
        except Unschedulable as problem:
            self.report(task, str(problem))
            return None

    def _forget(self, kept: set[int]) -> None:
        self._known = {pk: known for pk, known in self._known.items() if pk in kept}


def _never_again(task: Any, row: Schedule | None) -> bool:
    """Disable what another scheduler has fired as its one time, and has not come to disable."""
    if row is not None or not task.one_off or not task.total_run_count:
        return False
    PeriodicTask.objects.filter(pk=task.pk, one_off=True).update(enabled=False)
    return True


def _timetable(task: Any, row: Schedule) -> Timetable:
    return rules.timetable(task, row.anchor or _decided(row))


def _decided(row: Schedule) -> datetime:
    assert row.decided_until is not None
    decided: datetime = row.decided_until
    return decided
