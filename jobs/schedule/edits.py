"""What follows when a person or a program saves or deletes a schedule: it begins anew, by the database's clock.

Without it a schedule that was created while beat is down would not know from when on its fires count as missed.
What does not pass through here (bulk updates, raw SQL) is noticed by beat when it looks next.
"""

from __future__ import annotations

import logging
from typing import Any

from django.db import Error, transaction
from django.db.models import signals
from django_celery_beat.models import (
    ClockedSchedule,
    CrontabSchedule,
    IntervalSchedule,
    PeriodicTask,
    SolarSchedule,
)

from jobs import lifecycle
from jobs.schedule import ledger
from jobs.schedule.rules import Unschedulable

logger = logging.getLogger("jobs.schedule")


def watch() -> None:
    """Listen to what is saved and deleted."""
    signals.post_save.connect(_task_saved, sender=PeriodicTask, dispatch_uid="mainstay")
    signals.post_delete.connect(_task_deleted, sender=PeriodicTask, dispatch_uid="mainstay")
    for model in (ClockedSchedule, CrontabSchedule, IntervalSchedule, SolarSchedule):
        signals.post_save.connect(_schedule_saved, sender=model, dispatch_uid="mainstay")


def noted(task: Any) -> None:
    """Note what a periodic task says now. Beat does the same when it looks; here it is done in time."""
    try:
        with transaction.atomic(using=lifecycle.alias()):
            if task.enabled:
                ledger.noted(task, saved=True)
            else:
                ledger.stopped([task.name])
    except Unschedulable:
        pass  # the pages and the checks say so
    except Error:
        # The tables may not be there yet, in the middle of a migration, say.
        logger.warning("The schedule %s could not be noted; beat will.", task.name, exc_info=True)


def _task_saved(instance: Any, raw: bool = False, **_: Any) -> None:
    if not raw:
        noted(instance)


def _task_deleted(instance: Any, **_: Any) -> None:
    try:
        with transaction.atomic(using=lifecycle.alias()):
            ledger.rows().filter(name=instance.name).delete()
    except Error:
        logger.warning("The schedule %s could not be forgotten.", instance.name, exc_info=True)


def _schedule_saved(instance: Any, created: bool = False, raw: bool = False, **_: Any) -> None:
    if raw or created:
        return
    for task in instance.periodictask_set.all():
        noted(task)
