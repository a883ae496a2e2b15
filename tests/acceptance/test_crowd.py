"""A crowd of tenants with one job each behind one tenant with very many: nobody waits for all of the flood.

``TEST_CROWD=10000,100000`` makes both as large as that: so many tenants, behind a flood of so many jobs.
"""

import os
from collections.abc import Callable
from datetime import datetime
from itertools import pairwise
from typing import Any

import pytest

from jobs import bulk, lifecycle
from jobs.models import Job, Worker
from jobs.states import State
from tests.platform import Platform
from tests.sample.tasks import nap, note

WaitUntil = Callable[..., Any]
Figure = Callable[[str, object], None]

CROWD, FLOOD = map(int, os.environ.get("TEST_CROWD", "1000,10000").split(","))
SOON = 2.0  # seconds within which a free hand is given a job
PER_SECOND = 30  # jobs that a busy machine ends at least

pytestmark = pytest.mark.slow


def started(**of: Any) -> list[datetime]:
    """When the jobs with these columns have started, in order."""
    rows = Job.objects.filter(started_at__isnull=False, **of).order_by("started_at")
    return list(rows.values_list("started_at", flat=True))


@pytest.mark.timeout(120 + CROWD // PER_SECOND)
def test_nobody_of_a_crowd_waits_for_a_flood_and_no_hand_waits_for_the_crowd(
    platform: Platform, wait_until: WaitUntil, record_property: Figure
) -> None:
    wait_until(lambda: Worker.objects.filter(concurrency=platform.concurrency).exists())
    bulk.bulk(nap, ((0.0, "flood") for _ in range(FLOOD)), tenant="flood")
    wait_until(lambda: len(started(tenant="flood")) > 100, timeout=60)
    asked = lifecycle.database_now()
    bulk.bulk(note.s(f"{n}").set(tenant=f"t{n}") for n in range(CROWD))
    last = note.apply_async(("last",), tenant="last")
    came = lifecycle.database_now()
    wait_until(lambda: Job.objects.get(pk=last.id).state == State.COMPLETED, timeout=60 + CROWD / PER_SECOND)
    (went,) = started(tenant="last")
    crowd, flood = started(tenant__startswith="t"), started(tenant="flood", started_at__gte=came, started_at__lt=went)
    assert len(crowd) == CROWD  # who came before it has started
    assert len(flood) < CROWD  # turns of the flood, while the crowd came in
    idle = max((later - sooner).total_seconds() for sooner, later in pairwise(started(started_at__range=(asked, went))))
    assert idle < SOON
    lone = note.apply_async(("lone",), tenant="lone")
    wait_until(lambda: Job.objects.get(pk=lone.id).state == State.COMPLETED, timeout=30)
    waited = (started(tenant="lone")[0] - Job.objects.get(pk=lone.id).created_at).total_seconds()
    assert waited < SOON
    assert Job.objects.filter(tenant="flood", finished_at=None).exists()
    figures = {
        "enqueued_s": (came - asked).total_seconds(), "first_s": (crowd[0] - asked).total_seconds(),
        "last_s": (went - came).total_seconds(), "flood_between": len(flood), "idle_s": idle, "lone_s": waited,
    }  # fmt: skip
    for name, figure in figures.items():
        record_property(name, figure)
