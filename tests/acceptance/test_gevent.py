"""Fifty bodies share one thread under gevent: they wait side by side, and what stops one does not touch the others."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection

from jobs import control
from jobs.models import Job, Worker
from jobs.states import State
from tests.environment import DATABASE
from tests.platform import Platform, fresh
from tests.sample.tasks import deaf, nap, spawn

WaitUntil = Callable[..., Any]
AT_ONCE = 50

pytestmark = pytest.mark.skipif(
    DATABASE == "sqlite", reason="fifty writers at once are not for a file, as its worker says"
)


@pytest.fixture(scope="module")
def pool() -> str:
    """The pool of greenlets."""
    return "gevent"


@pytest.fixture(scope="module")
def concurrency() -> int:
    """What such a pool is for."""
    return AT_ONCE


def all_completed(count: int) -> bool:
    return Job.objects.filter(state=State.COMPLETED).count() == count


def test_fifty_bodies_wait_side_by_side(platform: Platform, wait_until: WaitUntil) -> None:
    for _ in range(AT_ONCE):
        nap.delay(6)
    wait_until(lambda: len(platform.witness.lines) == AT_ONCE)
    assert set(platform.witness.lines) == {"start:nap"}
    wait_until(lambda: [(w.pool, len(w.holds)) for w in Worker.objects.all()] == [("gevent", AT_ONCE)])
    wait_until(lambda: all_completed(AT_ONCE))
    assert set(Job.objects.values_list("attempt", flat=True)) == {1}


def test_a_cancelled_body_is_stopped_and_its_neighbours_go_on(platform: Platform, wait_until: WaitUntil) -> None:
    unwanted, others = nap.delay(300), [nap.delay(5, "other") for _ in range(20)]
    wait_until(lambda: len(platform.witness.lines) == 21)
    control.cancel(fresh(unwanted).pk, reason="not wanted", by="ann")
    wait_until(lambda: fresh(unwanted).state == State.CANCELLED)
    assert fresh(unwanted).reason == "not wanted"  # not forced: the body itself has ended
    wait_until(lambda: all_completed(20))
    assert {fresh(other).attempt for other in others} == {1}


@pytest.mark.slow
@pytest.mark.one_database
def test_a_body_that_computes_costs_its_neighbours_no_lease(platform: Platform, wait_until: WaitUntil) -> None:
    """They stand still, but so does nobody who keeps their leases."""
    others = [nap.delay(3, "other") for _ in range(5)]
    computing = deaf.delay("computing", 9)
    wait_until(lambda: all_completed(6), timeout=60)
    assert {(fresh(job).attempt, fresh(job).losses) for job in [*others, computing]} == {(1, 0)}


@pytest.mark.slow
@pytest.mark.one_database
def test_a_body_that_computes_past_its_limit_ends_its_worker(platform: Platform, wait_until: WaitUntil) -> None:
    stuck = platform.worker
    assert stuck is not None
    bystander = nap.delay(4)
    computing = deaf.apply_async(("computing", 200), time_limit=2, soft_time_limit=1)
    wait_until(lambda: not stuck.running, timeout=40)
    assert f"Job {computing.id} does not stop (hung past its time limit of 2 s)" in stuck.log
    wait_until(lambda: fresh(computing).losses == 1)
    control.cancel(fresh(computing).pk, reason="it would end the next worker too", by="test")
    platform.start()
    wait_until(lambda: fresh(bystander).state == State.COMPLETED, timeout=30)


def test_jobs_share_connections(platform: Platform, wait_until: WaitUntil) -> None:
    """Each job has a greenlet of its own, and would have connections of its own."""
    for _ in range(40):
        spawn.delay(3)
    wait_until(lambda: all_completed(160), timeout=60)
    if connection.vendor == "postgresql":
        others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        with connection.cursor() as cursor:
            cursor.execute(others)
            assert cursor.fetchone()[0] <= AT_ONCE + 10
    assert platform.worker is not None
    assert not re.search("ResourceWarning|Traceback", platform.worker.log)


@pytest.mark.one_database
def test_a_killed_worker_loses_nothing(platform: Platform, wait_until: WaitUntil) -> None:
    for _ in range(AT_ONCE):
        nap.delay(3)
    wait_until(lambda: len(platform.witness.lines) == AT_ONCE)
    assert platform.worker is not None
    platform.worker.kill()
    platform.start()
    wait_until(lambda: all_completed(AT_ONCE), timeout=40)
    assert set(Job.objects.values_list("attempt", "losses")) == {(2, 1)}
