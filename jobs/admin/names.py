"""The names that filters offer."""

from __future__ import annotations

from collections.abc import Iterable

from django.conf import settings

from jobs.conf import current
from jobs.leap import occurring
from jobs.models import Job, Worker


def queues() -> list[str]:
    """The queues that are declared, that workers read, or in which jobs wait."""
    waiting = occurring(Job, "queue", "finished_at IS NULL")
    return sorted({*current().QUEUES, *_declared(), *_read(), *waiting})


def _declared() -> Iterable[str]:
    return (getattr(queue, "name", str(queue)) for queue in getattr(settings, "CELERY_TASK_QUEUES", None) or ())


def _read() -> Iterable[str]:
    return (str(queue) for queues in Worker.objects.values_list("queues", flat=True) for queue in queues)
