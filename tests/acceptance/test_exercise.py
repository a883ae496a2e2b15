"""A classic exercise: who starts when, whatever the workers; how often; who is parked; and what becomes of failures."""

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import transaction
from django.db.models import F

from dlq.models import DeadLetter
from jobs import stats
from jobs.models import Circuit, Job
from jobs.states import Priority, State
from tests.children import Child
from tests.platform import QUICK, Witness, fresh
from tests.sample.tasks import exercise

WaitUntil = Callable[..., Any]
Platform = Callable[..., None]

JOBS = (
    ("A", "user1", "high"), ("B", "user2", "normal"), ("C", "user1", "normal"), ("D", "user1", "normal"),
    ("E", "user2", "low"),
)  # fmt: skip


@pytest.fixture
def platform(worker: Callable[..., Child], conductor: Callable[..., Child], witness: Witness) -> Platform:
    """Start a worker with so many slots, and a conductor."""

    def start(slots: int, pool: str = "prefork") -> None:
        environ = {**witness.environ, "TEST_JOBS": json.dumps(QUICK)}
        worker(concurrency=slots, pool=pool, env=environ)
        conductor(env=environ)

    return start


def enqueue(seconds: float) -> None:
    with transaction.atomic():
        for letter, user, priority in JOBS:
            exercise.apply_async((letter, seconds), tenant=user, priority=priority)


def starts(witness: Witness) -> list[str]:
    """Who started, in order."""
    return [line.removeprefix("start:") for line in witness.lines if line.startswith("start:")]


def all_done() -> bool:
    return Job.objects.filter(state=State.COMPLETED).count() == len(JOBS)


def test_with_one_slot_they_start_in_their_order(platform: Platform, witness: Witness, wait_until: WaitUntil) -> None:
    enqueue(0.05)
    platform(1)
    wait_until(all_done, timeout=30)
    assert starts(witness) == ["A", "B", "C", "D", "E"]


def test_with_four_slots_the_last_of_a_user_who_has_two_waits(
    platform: Platform, witness: Witness, wait_until: WaitUntil
) -> None:
    platform(4)
    enqueue(1.0)
    wait_until(all_done, timeout=30)
    assert sorted(starts(witness)[:4]) == ["A", "B", "C", "E"]  # four children write at the same time
    assert starts(witness)[4:] == ["D"]
    d = witness.lines.index("start:D")
    assert {"end:A", "end:C"} & set(witness.lines[:d])


def test_the_statistics_are_right(platform: Platform, wait_until: WaitUntil) -> None:
    enqueue(0.0)
    before = {name: counts["pending"] for name, counts in stats.breakdown("priority")["counts"].items()}
    assert before == {"high": 1, "normal": 3, "low": 1}
    platform(2)
    wait_until(all_done, timeout=30)
    per_user = {name: counts["completed"] for name, counts in stats.breakdown("tenant")["counts"].items()}
    assert per_user == {"user1": 3, "user2": 2}
    per_priority = {name: counts["completed"] for name, counts in stats.breakdown("priority")["counts"].items()}
    assert per_priority == {"high": 1, "normal": 3, "low": 1}


@pytest.mark.parametrize("pool", ["prefork", "solo", "threads"])
def test_a_user_who_fails_five_times_in_a_row_is_parked_for_five_minutes_while_others_run(
    platform: Platform, witness: Witness, wait_until: WaitUntil, pool: str
) -> None:
    bad = [exercise.apply_async((f"bad{n}", 0.0, "permanent"), tenant="user1") for n in range(2)]
    failing = [exercise.apply_async((f"fails{n}", 0.0, "unclassified"), tenant="user1") for n in range(5)]
    good = [exercise.apply_async((f"waits{n}",), tenant="user1", priority="low") for n in range(3)]
    platform(1, pool)
    circuit = wait_until(lambda: Circuit.objects.exclude(open_until=None).first(), timeout=20)
    assert circuit.open_until - circuit.opened_at == timedelta(minutes=5)
    others = [exercise.apply_async((f"other{n}",), tenant="user2") for n in range(3)]
    wait_until(lambda: all(fresh(job).state == State.COMPLETED for job in others))
    assert {fresh(job).state for job in (*bad, *failing)} == {State.FAILED}
    assert [(fresh(job).state, fresh(job).attempt) for job in good] == [(State.PENDING, 0)] * 3
    five = timedelta(minutes=5)
    Circuit.objects.update(open_until=F("open_until") - five, wake_at=F("wake_at") - five)
    wait_until(lambda: all(fresh(job).state == State.COMPLETED for job in good))
    assert starts(witness)[:7] == ["bad0", "bad1", *(f"fails{n}" for n in range(5))]


def test_a_job_that_fails_at_high_comes_back_at_normal_then_low_and_then_is_dead(
    platform: Platform, witness: Witness, wait_until: WaitUntil
) -> None:
    job = exercise.apply_async(("X", 0.0, "transient"), tenant="user1", priority="high")
    platform(1)
    wait_until(lambda: DeadLetter.objects.filter(job_id=job.id).exists(), timeout=20)
    assert starts(witness) == ["X", "X", "X"]
    tried_at = fresh(job).attempts.values_list("priority", flat=True)
    assert list(tried_at) == [Priority.HIGH, Priority.NORMAL, Priority.LOW]
