"""``manage.py jobs``: look at jobs and act on them."""

from __future__ import annotations

from django.apps import apps

from jobs.management.acting import (
    Cancel,
    PauseVerb,
    Prune,
    Recount,
    RequeueStuck,
    ResetBreaker,
    Resume,
    Retry,
    Snooze,
)  # fmt: skip
from jobs.management.enqueuing import Enqueue
from jobs.management.limiting import Allot, Limits, Withdraw
from jobs.management.looking import Breakers, Explain, List, Show, Stats
from jobs.management.verbs import Verb, VerbCommand

SCHEDULES: tuple[type[Verb], ...] = ()
if apps.is_installed("django_celery_beat"):
    from jobs.management.schedules import Schedules

    SCHEDULES = (Schedules,)


class Command(VerbCommand):
    """The verbs on jobs."""

    help = "Look at jobs and act on them. Each verb explains itself: manage.py jobs VERB --help."
    looking = (List, Show, Explain, Stats, Limits, Breakers)
    acting = (
        Cancel, Retry, Snooze, Prune, Recount, RequeueStuck, PauseVerb, Resume, Allot, Withdraw, ResetBreaker, Enqueue,
    )  # fmt: skip
    verbs = (*looking, *acting, *SCHEDULES)
    examples = (
        "jobs stats",
        "jobs list --state failed --since 2h",
        "jobs cancel ID --reason TEXT",
        "jobs prune --older-than 30d",
    )
