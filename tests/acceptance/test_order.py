"""Order and limits with real workers and conductors, some of which are killed: exact for whoever looks from outside."""

import os
import signal
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from typing import Any

import pytest

from jobs import bulk
from jobs.models import Job, Slot, Worker
from jobs.states import State
from tests.children import Child, python
from tests.platform import Platform
from tests.sample.tasks import alone, for_user, guarded, nap, note, through_gateway

WaitUntil = Callable[..., Any]
Spawn = Callable[..., Child]


@pytest.fixture(scope="module")
def concurrency() -> int:
    """Enough hands to exceed a limit with."""
    return 4


def completed() -> int:
    """How many jobs have completed."""
    return Job.objects.filter(state=State.COMPLETED).count()


def reported(platform: Platform, wait_until: WaitUntil) -> None:
    """The worker has said how many hands it has."""
    wait_until(lambda: Worker.objects.filter(concurrency=platform.concurrency).exists())


def test_a_limit_is_not_exceeded_while_processes_are_killed(platform: Platform, wait_until: WaitUntil) -> None:
    reported(platform, wait_until)
    bulk.bulk(guarded, [(f"{n}", f"user{n % 3}") for n in range(90)])
    for kill in range(5):
        wait_until(lambda kill=kill: completed() > 10 * (kill + 1), timeout=30)
        assert platform.worker is not None
        with suppress(ProcessLookupError):
            os.kill(platform.worker.children()[kill % 2], signal.SIGKILL)
    wait_until(lambda: completed() == 90, timeout=60)
    assert [line for line in platform.witness.lines if line.startswith("exceeded")] == []
    wait_until(lambda: not Slot.objects.exists())


def test_another_conductor_goes_on_within_the_limits(platform: Platform, spawn: Spawn, wait_until: WaitUntil) -> None:
    reported(platform, wait_until)
    other = spawn("conductor", python("manage.py", "conductor"), platform.environ)
    bulk.bulk(guarded, [(f"{n}", f"user{n % 2}") for n in range(60)])
    wait_until(lambda: completed() > 10, timeout=30)
    assert platform.conductor is not None
    platform.conductor.kill()
    wait_until(lambda: completed() == 60, timeout=60)
    assert other.running
    assert [line for line in platform.witness.lines if line.startswith("exceeded")] == []


@pytest.mark.parametrize("whose", [{"tenant": "flood"}, {}], ids=["of a tenant", "of plain jobs"])
def test_the_lone_job_behind_a_flood_starts_within_two_seconds(
    platform: Platform, wait_until: WaitUntil, whose: dict[str, str]
) -> None:
    reported(platform, wait_until)
    bulk.bulk(nap, [(0.01, f"flood{n}") for n in range(3000)], **whose)
    wait_until(lambda: completed() > 100, timeout=30)
    began = time.monotonic()
    note.apply_async(("lone",), tenant="lone")
    wait_until(lambda: "lone" in platform.witness.lines, timeout=10)
    assert time.monotonic() - began < 2
    assert completed() < 2000


def test_the_next_job_starts_soon_after_one_has_ended(platform: Platform, wait_until: WaitUntil) -> None:
    reported(platform, wait_until)
    bulk.bulk(alone, [(str(n), 0.2) for n in range(12)])
    wait_until(lambda: completed() == 12, timeout=30)
    jobs = list(Job.objects.order_by("started_at").values_list("started_at", "finished_at"))
    assert list(Job.objects.filter(started_at=None).values()) == []
    waits = [(after - before).total_seconds() for (_, before), (after, _) in pairwise(jobs)]
    assert statistics.median(waits) < 0.15


def test_no_more_start_in_a_second_than_the_rate_and_the_burst(platform: Platform, wait_until: WaitUntil) -> None:
    reported(platform, wait_until)
    began = time.monotonic()
    bulk.bulk([through_gateway.s(str(n)) for n in range(23)])
    wait_until(lambda: completed() == 23, timeout=30)
    assert time.monotonic() - began > 2  # a burst of three, and ten in a second


def test_the_jobs_of_the_exercise_start_in_their_order(platform: Platform, wait_until: WaitUntil) -> None:
    reported(platform, wait_until)
    with_transaction()
    wait_until(lambda: completed() == 5, timeout=20)
    started = [line.removeprefix("start:") for line in platform.witness.lines if line.startswith("start:")]
    assert sorted(started[:4]) == ["A", "B", "C", "E"]  # four children write at the same time
    assert started[4:] == ["D"]


def with_transaction() -> None:
    """The five jobs of the exercise, at once."""
    from django.db import transaction

    with transaction.atomic():
        for letter, user, priority in (
            ("A", "user1", "high"), ("B", "user2", "normal"), ("C", "user1", "normal"), ("D", "user1", "normal"),
            ("E", "user2", "low"),
        ):  # fmt: skip
            for_user.apply_async((letter, user, 1.0), tenant=user, priority=priority)
