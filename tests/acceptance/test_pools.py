"""Pools without child processes keep the same promises."""

from collections.abc import Callable
from typing import Any

import pytest

from jobs import control
from jobs.models import Job
from jobs.states import State
from tests.platform import Platform, fresh
from tests.sample.tasks import add, chain_of, enlighten, misbehave, nap, obedient

pytestmark = pytest.mark.one_database

WaitUntil = Callable[..., Any]


@pytest.fixture(scope="module", params=["threads", "solo", "gevent"])
def pool(request: pytest.FixtureRequest) -> str:
    """A pool without child processes."""
    return str(request.param)


def test_jobs_and_canvases_complete(platform: Platform, wait_until: WaitUntil) -> None:
    end, parent = chain_of(3).apply_async(), enlighten.delay("x")
    wait_until(lambda: Job.objects.filter(state=State.COMPLETED).count() == 5)
    assert fresh(end).result == "4"
    assert str(Job.objects.get(parent_id=parent.id).pk) == fresh(parent).result.strip('"')


@pytest.mark.parametrize("how", ["transient", "memory", "exit"])
def test_a_body_that_misbehaves_is_run_again(platform: Platform, wait_until: WaitUntil, how: str) -> None:
    job = misbehave.delay(how, until=2)
    wait_until(lambda: fresh(job).state == State.COMPLETED)
    assert fresh(job).attempt == 2


def test_a_running_job_can_be_cancelled(platform: Platform, wait_until: WaitUntil) -> None:
    job = obedient.delay()
    wait_until(lambda: "start:obedient" in platform.witness.lines)
    control.cancel(fresh(job).pk, reason="not wanted", by="ann")
    wait_until(lambda: fresh(job).state == State.CANCELLED)
    after = add.delay(1, 2)
    wait_until(lambda: fresh(after).state == State.COMPLETED)


def test_a_body_that_outlives_its_time_limit_is_handled_as_hung(platform: Platform, wait_until: WaitUntil) -> None:
    job = nap.apply_async((12,), time_limit=2, soft_time_limit=1)
    wait_until(lambda: fresh(job).losses == 1, timeout=25)
