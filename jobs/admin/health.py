"""What an operator must know before trusting a list: does the conductor tick, does a worker listen."""

from __future__ import annotations

from datetime import datetime, timedelta

from jobs import epoch, lifecycle, roll
from jobs.conf import current
from jobs.models import Job, Leader, Worker

NO_WORKER = "No worker has reported itself lately: jobs are accepted and wait. Start one: celery -A <project> worker"
NO_CONDUCTOR = (
    "No conductor is ticking: delayed jobs, retries and rescues wait. It runs inside beat (celery -A <project> beat), "
    "or alone (manage.py conductor)."
)


def warnings() -> list[str]:
    """Sentences about what is shared by mistake, and about what does not run although jobs wait for it."""
    mistaken = [*filter(None, [epoch.shared()]), *roll.named_alike(stale_before())]
    if not Job.objects.filter(finished_at__isnull=True).exists():
        return mistaken
    found = mistaken if conductor_ticks() else [*mistaken, NO_CONDUCTOR]
    return found if worker_listens() else [*found, NO_WORKER]


def conductor_ticks() -> bool:
    """Whether a conductor has ticked within its lease, with some grace."""
    since = lifecycle.database_now() - timedelta(seconds=current().LEADER_LEASE * 3)
    return Leader.objects.filter(ticked_at__gte=since).exists()


def worker_listens() -> bool:
    """Whether any worker has reported itself within a lease."""
    return Worker.objects.filter(seen_at__gte=stale_before()).exists()


def stale_before() -> datetime:
    """A worker that was last seen before this is taken for dead."""
    now: datetime = lifecycle.database_now()
    return now - timedelta(seconds=current().LEASE)
