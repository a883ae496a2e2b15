"""A body in a thread cannot be ended: its job goes on elsewhere, its slot is lost, and a worker without slots ends."""

from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest

from jobs import control, slots
from jobs.models import Worker
from jobs.states import State
from tests.platform import QUICK, Platform, fresh
from tests.sample.tasks import deaf, nap, note

pytestmark = pytest.mark.one_database

WaitUntil = Callable[..., Any]
HUNG = "hung past its time limit of 2 s"


@pytest.fixture(scope="module")
def pool() -> str:
    """A pool without child processes, of two threads."""
    return "threads"


@pytest.mark.slow
def test_a_hung_body_costs_its_worker_a_slot_and_the_last_slot_ends_the_worker(
    platform: Platform, wait_until: WaitUntil
) -> None:
    first = platform.worker
    assert first is not None
    job = nap.apply_async((300,), time_limit=2, soft_time_limit=1)  # a sleep is C, too
    wait_until(lambda: fresh(job).losses == 1, timeout=30)
    assert fresh(job).attempts.get(number=1).reason == f"lost: {HUNG}"
    wait_until(lambda: Worker.objects.filter(stuck=1).exists())
    first.expect("1 of 2 slots are held by bodies that cannot be stopped")
    bystander = note.delay("in the other slot")
    wait_until(lambda: fresh(bystander).state == State.COMPLETED or fresh(job).losses == 2, timeout=30)

    wait_until(lambda: not first.running, timeout=30)
    assert first.process.returncode == slots.EXIT
    assert "All 2 slots are held" in first.log
    platform.start()
    wait_until(lambda: fresh(job).state == State.FAILED, timeout=30)
    assert fresh(job).reason == f"poison: lost 3 times, last: {HUNG}"
    wait_until(lambda: fresh(bystander).state == State.COMPLETED)
    assert platform.worker is not None
    platform.worker.kill()  # its slot is lost, too: the next test has a new one


def test_a_body_that_can_be_interrupted_is_stopped_at_its_limit_and_costs_no_slot(
    platform: Platform, wait_until: WaitUntil
) -> None:
    job = nap.apply_async((4,), time_limit=1, soft_time_limit=0.5)
    wait_until(lambda: fresh(job).losses == 1, timeout=20)
    assert fresh(job).attempts.get(number=1).reason == "lost: hung past its time limit of 1 s"


@pytest.mark.slow
def test_a_process_whose_interpreter_hangs_ends_and_its_other_jobs_go_on(
    platform: Platform, wait_until: WaitUntil
) -> None:
    hung = platform.worker
    assert hung is not None
    bystander = nap.delay(3)
    deafened = deaf.apply_async(("holding the interpreter in the end", 120))
    wait_until(lambda: not hung.running, timeout=3 * QUICK["LEASE"] + 5)
    assert "Timeout" in hung.log
    control.cancel(UUID(deafened.id), reason="it would end the next worker too", by="test")
    platform.start()
    wait_until(lambda: fresh(bystander).state == State.COMPLETED, timeout=30)
