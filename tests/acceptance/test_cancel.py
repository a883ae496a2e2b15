"""A job that is cancelled stops, whatever its body and its worker do."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs import control
from jobs.states import State
from tests.children import Child, alive
from tests.platform import QUICK, Platform, fresh
from tests.sample.tasks import deaf, note, obedient, patient

WaitUntil = Callable[..., Any]


def cancel(job: Any) -> None:
    """Cancel as somebody does."""
    control.cancel(fresh(job).pk, reason="not wanted", by="ann")


def begun(platform: Platform, wait_until: WaitUntil, start: str) -> None:
    """Wait until a body has begun."""
    wait_until(lambda: any(line.startswith(start) for line in platform.witness.lines), timeout=20)


@pytest.mark.parametrize("how", ["swallow", "in C", "holding the interpreter"])
def test_a_body_that_does_not_stop_is_cancelled_after_the_grace_and_its_process_ends(
    platform: Platform, wait_until: WaitUntil, how: str
) -> None:
    job = deaf.delay(how)
    begun(platform, wait_until, f"start:{how}")
    pid = fresh(job).pid
    cancel(job)
    wait_until(lambda: fresh(job).state == State.CANCELLED, timeout=QUICK["CANCEL_GRACE"] + 5)
    wait_until(lambda: not alive([pid]), timeout=QUICK["LEASE"] + 3)
    after = note.delay("after")
    wait_until(lambda: fresh(after).state == State.COMPLETED, timeout=15)
    assert (fresh(job).state, fresh(job).attempt) == (State.CANCELLED, 1)
    assert f"end:{how}" not in platform.witness.lines
    assert platform.worker is not None
    assert platform.worker.running


def test_a_body_that_does_not_stop_is_cancelled_without_a_conductor(platform: Platform, wait_until: WaitUntil) -> None:
    job = deaf.delay("swallow")
    begun(platform, wait_until, "start:swallow")
    assert platform.conductor is not None
    platform.conductor.kill()
    cancel(job)
    wait_until(lambda: fresh(job).state == State.CANCELLED, timeout=QUICK["CANCEL_GRACE"] + 6)


@pytest.mark.parametrize("how", ["dead", "frozen"])
def test_a_job_of_a_worker_that_cannot_obey_is_cancelled_all_the_same(
    platform: Platform, worker: Callable[..., Child], wait_until: WaitUntil, tmp_path: Path, how: str
) -> None:
    gate = tmp_path / "gate"
    job = patient.delay(str(gate))
    begun(platform, wait_until, f"start:{gate}")
    assert platform.worker is not None
    stopped = [fresh(job).pid, platform.worker.pid]
    if how == "dead":
        platform.worker.kill()
    for pid in stopped if how == "frozen" else ():
        os.kill(pid, signal.SIGSTOP)
    try:
        cancel(job)
        wait_until(lambda: fresh(job).state == State.CANCELLED, timeout=QUICK["LEASE"] + 5)
    finally:
        for pid in stopped if how == "frozen" else ():
            os.kill(pid, signal.SIGCONT)
    gate.touch()
    worker(name="other", env=platform.environ)
    after = note.delay("after")
    wait_until(lambda: fresh(after).state == State.COMPLETED, timeout=20)
    assert (fresh(job).state, fresh(job).attempt) == (State.CANCELLED, 1)


def test_a_running_body_is_stopped_within_seconds(platform: Platform, wait_until: WaitUntil) -> None:
    job = obedient.delay()
    begun(platform, wait_until, "start:obedient")
    cancel(job)
    wait_until(lambda: fresh(job).state == State.CANCELLED, timeout=3)
    assert fresh(job).reason == "not wanted"
