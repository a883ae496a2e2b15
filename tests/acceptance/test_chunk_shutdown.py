"""A worker that is stopped in the call of a chunk: warmly it ends the call, coldly it hands all jobs back."""

import json
import signal
from collections.abc import Callable
from typing import Any

import pytest

from jobs.models import Job
from jobs.states import State
from project.servers import RedisServer
from tests.acceptance.test_chunks import at_once
from tests.platform import QUICK, Witness, fresh

pytestmark = pytest.mark.one_database

WaitUntil = Callable[..., Any]


def begun(witness: Witness) -> int:
    """How many calls have begun."""
    return len([line for line in witness.lines if line.startswith("begin:")])


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_a_worker_that_is_stopped_coldly_hands_all_jobs_back_at_no_cost(
    worker: Any, conductor: Any, witness: Witness, wait_until: WaitUntil, committed: None, broker: RedisServer,
    pool: str,
) -> None:  # fmt: skip
    env = {
        **witness.environ, "TEST_JOBS": json.dumps(QUICK | {"LEASE": 60, "LOST_AFTER": 60}), "TEST_WINDOW": "0.5",
        "REMAP_SIGTERM": "SIGQUIT",
    }  # fmt: skip
    conductor(env=env)
    child = worker(pool=pool, env=env, concurrency=1)
    jobs = at_once("a", *["all nap"] * 20)
    wait_until(lambda: begun(witness) == 1)
    child.signal(signal.SIGTERM)
    wait_until(lambda: not Job.objects.filter(state=State.RUNNING).exists(), timeout=10)
    assert {(fresh(job).losses, fresh(job).snoozes, fresh(job).attempt) for job in jobs} == {(0, 1, 1)}
    wait_until(lambda: not child.running, timeout=15)


def test_a_worker_that_is_stopped_warmly_lets_the_call_end(
    worker: Any, conductor: Any, witness: Witness, wait_until: WaitUntil, committed: None, broker: RedisServer
) -> None:
    env = {**witness.environ, "TEST_JOBS": json.dumps(QUICK)}
    conductor(env=env)
    child = worker(env=env, concurrency=1)
    jobs = at_once("a", *["all nap"] * 4)
    wait_until(lambda: begun(witness) == 1)
    child.signal(signal.SIGTERM)
    wait_until(lambda: not child.running, timeout=15)
    assert {(fresh(job).state, fresh(job).attempt) for job in jobs} == {(State.COMPLETED, 1)}
