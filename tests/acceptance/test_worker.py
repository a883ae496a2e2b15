"""What a real worker makes of the bodies and canvases that the other tests run by hand."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from celery import chain, chord, group
from django.contrib.auth.models import Group

from dlq import replay
from dlq.models import DeadLetter
from jobs import control
from jobs.models import Attempt, Job
from jobs.states import State
from project.celery import app
from tests.platform import Platform, fresh
from tests.sample.tasks import (
    Charge,
    Count,
    Enrol,
    add,
    boom,
    celery_retry,
    collect,
    enrol_and_tell,
    fail_unless,
    hard_limited,
    misbehave,
    nap,
    note,
    obedient,
    patient,
    remember_failure,
    replaced,
    soft_limited,
    total,
)

WaitUntil = Callable[..., Any]

CANVASES: dict[str, tuple[Callable[[], Any], str]] = {
    "chain": (lambda: chain(add.s(1, 2), add.s(10), add.s(100)), "113"),
    "chord": (lambda: chord([add.s(n, n) for n in range(10)], total.s()), "90"),
    "chord in a chain": (lambda: chain(add.s(1, 1), chord([add.s(1), add.s(2)], total.s()), add.s(100)), "107"),
    "chord in a header": (
        lambda: chord([chord([add.s(1, 1), add.s(2, 2)], total.s()), add.s(5, 5)], collect.s()),
        "[6,10]",
    ),
    "group in a chain": (lambda: add.s(1, 1) | group(add.s(1), add.s(2)) | total.s(), "7"),
    "replaced": (lambda: chain(replaced.s(1), add.s(1000)), "1111"),
    "taken key": (lambda: chord([Charge.s(7), Charge.s(7), add.s(1, 1)], collect.s()), '["7:1.0","7:1.0",2]'),
}


@pytest.mark.parametrize("name", CANVASES)
def test_a_canvas_ends_with_what_it_computes_and_each_job_runs_once(
    platform: Platform, wait_until: WaitUntil, name: str
) -> None:
    canvas, result = CANVASES[name]
    end = canvas().apply_async()
    wait_until(lambda: fresh(end).finished_at if Job.objects.filter(pk=end.id).exists() else None)
    assert (fresh(end).state, fresh(end).result) == (State.COMPLETED, result)
    assert not Job.objects.filter(attempt__gt=1).exists()


def test_celery_dispatches_nothing_by_itself(platform: Platform, wait_until: WaitUntil) -> None:
    chain(note.si("first"), note.si("second")).apply_async(link=note.si("linked"))
    wait_until(lambda: Job.objects.filter(state=State.COMPLETED).count() == 3)
    last = note.delay("last")
    wait_until(lambda: fresh(last).state == State.COMPLETED)
    assert platform.witness.lines == ["first", "second", "linked", "last"]


def test_a_failed_member_fails_the_chord_and_its_replay_completes_it(platform: Platform, wait_until: WaitUntil) -> None:
    body = chord([add.s(1, 1), fail_unless.s("open", 5)], total.s()).apply_async()
    wait_until(lambda: fresh(body).state == State.FAILED)
    Group.objects.create(name="open")
    replay.replay(DeadLetter.objects.get(task=fail_unless.name).pk, by="ann")
    again = wait_until(lambda: Job.objects.filter(replay_of_id=body.id, state=State.COMPLETED).first())
    assert again.result == "7"


def test_an_error_link_runs_once(platform: Platform, wait_until: WaitUntil) -> None:
    failed = boom.apply_async(link_error=remember_failure.s())
    wait_until(lambda: Job.objects.filter(task=remember_failure.name, state=State.COMPLETED).exists())
    assert platform.witness.lines == [f"errback:{failed.id}"]


# --- Time limits --------------------------------------------------------------------------------------


def test_a_soft_time_limit_fails_a_task_that_is_not_idempotent(platform: Platform, wait_until: WaitUntil) -> None:
    job = soft_limited.delay()
    wait_until(lambda: fresh(job).state == State.FAILED)
    assert fresh(job).error_type == "billiard.exceptions.SoftTimeLimitExceeded"
    assert platform.witness.lines == ["start:soft"]


def test_a_hard_time_limit_counts_as_a_lost_attempt_and_is_bounded(platform: Platform, wait_until: WaitUntil) -> None:
    job = hard_limited.delay()
    wait_until(lambda: fresh(job).state == State.FAILED, timeout=20)
    assert platform.witness.lines == ["start:hard", "start:hard"]
    assert [a.outcome for a in Attempt.objects.all()] == ["lost", "lost"]
    assert DeadLetter.objects.filter(job_id=job.id).count() == 1


def test_a_worker_lives_on_after_what_kills_others(platform: Platform, wait_until: WaitUntil) -> None:
    assert platform.worker is not None
    pid = platform.worker.pid
    for how in ("memory", "exit", "kill"):
        misbehave.delay(how, until=2)
    wait_until(lambda: Job.objects.filter(state=State.COMPLETED).count() == 3, timeout=20)
    assert (platform.worker.pid, platform.worker.running) == (pid, True)


def test_celerys_retry_runs_as_often_as_it_says(platform: Platform, wait_until: WaitUntil) -> None:
    job = celery_retry.delay("x")
    wait_until(lambda: fresh(job).state == State.FAILED)
    assert platform.witness.lines == ["try:x"] * 3


# --- Cancel and progress of running jobs ----------------------------------------------------------------


def test_a_running_job_that_looks_is_stopped_at_once(platform: Platform, wait_until: WaitUntil) -> None:
    job = obedient.delay()
    wait_until(lambda: "start:obedient" in platform.witness.lines)
    control.cancel(fresh(job).pk, reason="not wanted", by="ann")
    wait_until(lambda: fresh(job).state == State.CANCELLED, timeout=5)
    assert fresh(job).reason == "not wanted"


def test_a_running_job_that_does_not_look_is_interrupted(platform: Platform, wait_until: WaitUntil) -> None:
    job = nap.delay(600)
    wait_until(lambda: "start:nap" in platform.witness.lines)
    control.cancel(fresh(job).pk, reason="not wanted", by="ann")
    wait_until(lambda: fresh(job).state == State.CANCELLED, timeout=8)
    assert "end:nap" not in platform.witness.lines


def test_progress_is_written_while_a_body_runs(platform: Platform, wait_until: WaitUntil) -> None:
    job = Count.delay(80)
    wait_until(lambda: (fresh(job).progress or {}).get("total") == 80)
    assert fresh(job).state == State.RUNNING


def test_a_long_body_keeps_its_lease(platform: Platform, wait_until: WaitUntil, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    job = patient.delay(str(gate))
    wait_until(lambda: fresh(job).state == State.RUNNING)
    first = fresh(job).lease_until
    wait_until(lambda: fresh(job).lease_until > first)
    gate.touch()
    wait_until(lambda: fresh(job).state == State.COMPLETED)
    assert fresh(job).attempt == 1


# --- Transactional bodies -------------------------------------------------------------------------------


def test_a_transactional_body_whose_process_dies_leaves_nothing_and_is_run_again(
    platform: Platform, wait_until: WaitUntil
) -> None:
    job = enrol_and_tell.delay("x", "kill")
    wait_until(lambda: fresh(job).state == State.FAILED, timeout=30)
    assert not Group.objects.exists()
    assert not Job.objects.filter(task=note.name).exists()


def test_an_overtaken_transactional_attempt_rolls_back(
    platform: Platform, wait_until: WaitUntil, tmp_path: Path
) -> None:
    """A frozen child is rescued from; when it goes on, its body must not be committed a second time."""
    if not _many_writers():
        pytest.skip("on SQLite a transactional body holds the write lock: nobody can overtake it")
    gate = tmp_path / "gate"
    job = app.tasks["tests.sample.tasks.EnrolSlowly"].delay("x", str(gate))
    wait_until(lambda: "start:x" in platform.witness.lines)
    frozen = fresh(job).pid
    os.kill(frozen, signal.SIGSTOP)
    try:
        wait_until(lambda: fresh(job).attempt == 2, timeout=20)
        gate.touch()
        wait_until(lambda: fresh(job).state == State.COMPLETED, timeout=20)
    finally:
        os.kill(frozen, signal.SIGCONT)
    wait_until(lambda: platform.witness.lines.count("end:x") == 2 or platform.witness.lines.count("start:x") == 2)
    assert Group.objects.filter(name__startswith="x").count() == 1
    assert fresh(job).attempt == 2


def _many_writers() -> bool:
    from django.db import connection

    return connection.vendor != "sqlite"


def test_a_transactional_body_completes_with_what_it_wrote(platform: Platform, wait_until: WaitUntil) -> None:
    job = Enrol.delay("x")
    wait_until(lambda: fresh(job).state == State.COMPLETED)
    assert Group.objects.filter(name="x").exists()
