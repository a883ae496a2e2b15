"""Jobs that take their process down each time: told apart, tried again after a wait, then a dead letter."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.models import Attempt, Worker
from jobs.states import State
from tests.platform import Platform, fresh
from tests.sample.tasks import deaf, misbehave, note, patient

pytestmark = pytest.mark.one_database

WaitUntil = Callable[..., Any]

# How a body takes its process down, and what is said of it.
POISON = {
    "kill": "killed by signal 9 (SIGKILL)",
    "stack": "killed by signal 11 (SIGSEGV)",
    "abort": "killed by signal 6 (SIGABRT)",
    "exit at once": "its process ended with exit code 3",
    "exit at once as if all were well": "its process ended with exit code 0",
    "exit": "the body raised SystemExit(3)",
    "memory": "out of memory: full",
    "no memory": "out of memory",
}
HANGS = ("swallow", "in C")  # what the soft limit does not stop


def test_a_job_that_takes_its_process_down_each_time_ends_as_a_letter_that_says_how(
    platform: Platform, wait_until: WaitUntil, tmp_path: Path
) -> None:
    assert platform.worker is not None
    gate, worker = tmp_path / "gate", platform.worker.pid
    beside = patient.delay(str(gate))
    wait_until(lambda: fresh(beside).state == State.RUNNING)
    jobs = {how: misbehave.delay(how) for how in POISON}
    wait_until(lambda: all(fresh(job).finished for job in jobs.values()), timeout=90)
    gate.touch()
    after = note.delay("after")
    wait_until(lambda: fresh(after).state == State.COMPLETED and fresh(beside).state == State.COMPLETED)

    found = {how: fresh(job) for how, job in jobs.items()}
    assert {how: job.reason for how, job in found.items()} == {
        how: f"poison: lost 3 times, last: {said}" for how, said in POISON.items()
    }
    assert {(job.state, job.attempt, job.losses, job.dead_letter.is_open) for job in found.values()} == {
        (State.FAILED, 3, 3, True)
    }
    for how, job in found.items():
        attempts = Attempt.objects.filter(job=job)
        assert [a.reason for a in attempts][:2] == [f"lost: {POISON[how]}"] * 2
        assert [a.delay > 0 for a in attempts] == [False, True, False]
        assert 0.5 <= attempts[1].delay <= 1.0
    assert (platform.worker.pid, platform.worker.running) == (worker, True)
    assert (fresh(beside).attempt, fresh(beside).losses) == (1, 0)


def test_a_body_that_hangs_in_any_way_is_ended_at_its_time_limit(platform: Platform, wait_until: WaitUntil) -> None:
    jobs = {how: deaf.apply_async((how,), time_limit=2, soft_time_limit=1) for how in HANGS}
    wait_until(lambda: all(fresh(job).finished for job in jobs.values()), timeout=90)
    reasons = {how: fresh(job).reason for how, job in jobs.items()}
    assert reasons == dict.fromkeys(HANGS, "poison: lost 3 times, last: hung past its time limit of 2 s")
    assert Worker.objects.get().stuck == 0


def test_a_recursion_without_end_is_a_mistake_for_a_person(platform: Platform, wait_until: WaitUntil) -> None:
    job = misbehave.delay("recursion")
    wait_until(lambda: fresh(job).state == State.FAILED)
    assert (fresh(job).reason, fresh(job).attempt, fresh(job).losses) == ("unclassified: RecursionError", 1, 0)
