"""Processes die at the worst moment, and the jobs go on."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from celery import chain, chord, group

from jobs.lifecycle import database_now
from jobs.models import Job, Worker
from jobs.states import State
from project.servers import RedisServer
from tests.children import Child
from tests.platform import QUICK, Platform, Witness, fresh
from tests.sample.tasks import add, collect, misbehave, note, patient, plain, total

WaitUntil = Callable[..., Any]


def test_a_job_whose_pool_child_is_killed_is_retried_at_once(platform: Platform, wait_until: WaitUntil) -> None:
    job = misbehave.delay("hang", until=2, name="victim")
    wait_until(lambda: "start:victim:1" in platform.witness.lines)
    killed = time.monotonic()
    os.kill(wait_until(lambda: fresh(job).pid), signal.SIGKILL)
    wait_until(lambda: "start:victim:2" in platform.witness.lines, timeout=2)
    assert time.monotonic() - killed < 2
    wait_until(lambda: fresh(job).state == State.COMPLETED)
    assert fresh(job).losses == 1


def test_a_death_is_noticed_at_once_also_after_the_broker_was_away(
    platform: Platform, broker: RedisServer, wait_until: WaitUntil
) -> None:
    broker.restart()
    back = note.delay("back")
    wait_until(lambda: fresh(back).state == State.COMPLETED, timeout=30)
    for round_ in range(3):
        job = misbehave.delay("hang", until=2, name=f"victim {round_}")
        wait_until(lambda n=round_: f"start:victim {n}:1" in platform.witness.lines)
        os.kill(wait_until(lambda job=job: fresh(job).pid), signal.SIGKILL)
        wait_until(lambda n=round_: f"start:victim {n}:2" in platform.witness.lines, timeout=2)


def test_a_job_that_always_kills_its_process_ends_as_a_dead_letter(platform: Platform, wait_until: WaitUntil) -> None:
    poison = misbehave.delay("kill")
    bystander = note.delay("bystander")
    wait_until(lambda: fresh(poison).state == State.FAILED, timeout=30)
    assert fresh(poison).reason.startswith("poison")
    assert fresh(poison).dead_letter.is_open
    wait_until(lambda: fresh(bystander).state == State.COMPLETED)


def test_a_job_of_a_killed_worker_runs_elsewhere_within_its_lease_and_five_seconds(
    platform: Platform, worker: Callable[..., Child], wait_until: WaitUntil, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    job = patient.delay(str(gate))
    wait_until(lambda: fresh(job).state == State.RUNNING)
    first = fresh(job).worker
    assert platform.worker is not None
    worker(name="other", env=platform.environ)
    platform.worker.kill()
    killed = time.monotonic()
    wait_until(lambda: fresh(job).attempt == 2 and fresh(job).state == State.RUNNING, timeout=QUICK["LEASE"] + 5)
    assert time.monotonic() - killed < QUICK["LEASE"] + 5
    assert fresh(job).worker != first
    gate.touch()
    wait_until(lambda: fresh(job).state == State.COMPLETED)


def test_a_frozen_worker_that_comes_back_cannot_overwrite_its_rescuer(
    platform: Platform, worker: Callable[..., Child], wait_until: WaitUntil, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    job = patient.delay(str(gate))
    wait_until(lambda: fresh(job).state == State.RUNNING)
    child = fresh(job).pid
    assert platform.worker is not None
    frozen = [child, platform.worker.pid]
    for pid in frozen:
        os.kill(pid, signal.SIGSTOP)
    try:
        worker(name="other", env=platform.environ)
        wait_until(lambda: fresh(job).attempt == 2, timeout=QUICK["LEASE"] + 10)
        gate.touch()
        wait_until(lambda: fresh(job).state == State.COMPLETED)
    finally:
        for pid in frozen:
            os.kill(pid, signal.SIGCONT)
    recorded, thawed = fresh(job), database_now()
    wait_until(lambda: Worker.objects.filter(name__startswith="platform", seen_at__gt=thawed, holds=[]).exists())
    after = fresh(job)
    assert (after.attempt, after.worker, after.finished_at) == (2, recorded.worker, recorded.finished_at)


@pytest.fixture
def doomed(platform: Platform, worker: Callable[..., Child], tmp_path: Path) -> Callable[[str], Witness]:
    """A worker whose child dies once, after the commit and before it sends the named task."""
    flag = tmp_path / "die"
    assert platform.worker is not None
    platform.worker.stop()
    worker(name="doomed", env={**platform.environ, "DIE_BEFORE_SENDING": str(flag)})

    def arm(task: str) -> Witness:
        flag.write_text(task)
        return platform.witness

    return arm


@pytest.mark.parametrize(
    ("canvas", "successor", "ends_with"),
    [
        (chain(collect.s([1, 2]), total.s()), total.name, 3),
        (chord([add.s(1, 1), add.s(2, 2)], total.s()), total.name, 6),
        (group(add.s(1, 1), add.s(2, 2)) | total.s() | plain.s(), plain.name, 12),
    ],
    ids=["chain", "chord", "chord in a chain"],
)
def test_a_crash_between_completion_and_the_successors_sending_loses_nothing(
    doomed: Callable[[str], Witness], wait_until: WaitUntil, canvas: Any, successor: str, ends_with: int
) -> None:
    witness = doomed(successor)
    result = canvas.apply_async()
    last = wait_until(lambda: Job.objects.filter(pk=result.id, state=State.COMPLETED).first(), timeout=30)
    assert f"died before sending {successor}" in witness.lines
    assert last.result == str(ends_with)
    assert {job.state for job in Job.objects.all()} == {State.COMPLETED}


def test_a_caller_that_dies_after_its_commit_leaves_a_job_that_runs(
    platform: Platform, spawn: Callable[..., Child], wait_until: WaitUntil, tmp_path: Path
) -> None:
    from tests.children import python

    flag = tmp_path / "die"
    flag.write_text(note.name)
    code = "import django; django.setup(); from tests.sample.tasks import note; note.delay('last words')"
    caller = spawn("caller", python("-c", code), {"DIE_BEFORE_SENDING": str(flag)})
    assert caller.process.wait(20) == -signal.SIGKILL
    wait_until(lambda: "last words" in platform.witness.lines, timeout=20)
