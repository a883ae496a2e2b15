"""A worker that is stopped gives back what it has not begun, lets end what can, and hands the rest back at once."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import Group

from jobs.models import Job, Worker
from jobs.states import State
from project.servers import RedisServer
from tests.children import Child, outlived
from tests.platform import QUICK, Witness, fresh, messages
from tests.sample.tasks import EnrolSlowly, nap, note, patient

pytestmark = pytest.mark.one_database

WaitUntil = Callable[..., Any]
Start = Callable[..., Child]

# Long enough for a lease never to be what brings a job back.
PATIENT = QUICK | {"LEASE": 60, "LOST_AFTER": 60}


@pytest.fixture
def start(worker: Start, conductor: Start, witness: Witness) -> Start:
    """Start a worker with a window of some seconds, or another one; SIGTERM is soft as in a container."""
    env = {**witness.environ, "TEST_JOBS": json.dumps(PATIENT), "REMAP_SIGTERM": "SIGQUIT"}
    conductor(env=env)

    def begin(
        *, window: float = 1.5, pool: str = "prefork", remap: bool = True, prefetch: int = 1, **more: Any
    ) -> Child:
        chosen = env | {"TEST_WINDOW": str(window), "TEST_PREFETCH": str(prefetch)}
        if not remap:
            del chosen["REMAP_SIGTERM"]
        return worker(pool=pool, env=chosen, **more)

    return begin


def ended(child: Child, wait_until: WaitUntil, within: float = 12) -> float:
    """How long the process still lived."""
    since = time.monotonic()
    wait_until(lambda: not child.running, timeout=within)
    return time.monotonic() - since


POOLS = ["prefork", "threads", "solo", "gevent"]


@pytest.mark.parametrize("pool", POOLS)
def test_an_idle_worker_stops_at_once_and_signs_off(start: Start, wait_until: WaitUntil, pool: str) -> None:
    child = start(pool=pool, window=30)
    wait_until(Worker.objects.exists)
    child.signal(signal.SIGTERM)
    assert ended(child, wait_until) < 8
    assert not Worker.objects.exists()
    assert child.process.returncode == 0


@pytest.mark.parametrize("pool", POOLS)
def test_a_body_that_ends_within_the_window_completes_and_nobody_waits_longer(
    start: Start, wait_until: WaitUntil, witness: Witness, pool: str
) -> None:
    child = start(pool=pool, window=30)
    job = nap.delay(2)
    wait_until(lambda: witness.lines == ["start:nap"])
    child.signal(signal.SIGTERM)
    assert ended(child, wait_until) < 12
    assert (fresh(job).state, fresh(job).attempt, witness.lines) == (State.COMPLETED, 1, ["start:nap", "end:nap"])


@pytest.mark.parametrize("pool", POOLS)
def test_a_body_that_outlasts_the_window_is_over_and_handed_back_without_its_lease(
    start: Start, wait_until: WaitUntil, witness: Witness, pool: str, tmp_path: Path
) -> None:
    child = start(pool=pool, concurrency=1)
    gate = tmp_path / "gate"
    job = patient.delay(str(gate))
    wait_until(lambda: len(witness.lines) == 1)
    pids = [child.pid, *child.children()]
    child.signal(signal.SIGTERM)
    wait_until(lambda: fresh(job).state != State.RUNNING, timeout=8)
    handed = fresh(job)
    assert (handed.reason, handed.max_attempts - handed.attempt) in (
        ("handed back at shutdown", handed.max_attempts - 1), ("", handed.max_attempts - 1),
    )  # fmt: skip
    assert (handed.losses, handed.snoozes, handed.attempts.get().outcome) == (0, 1, "handed back")
    ended(child, wait_until)
    assert outlived(pids) == []
    assert not Worker.objects.exists()
    gate.touch()
    start(name="next")
    wait_until(lambda: fresh(job).state == State.COMPLETED)
    assert fresh(job).attempt == 2


@pytest.mark.parametrize("pool", ["threads", "solo"])
def test_a_body_that_cannot_be_interrupted_ends_with_its_process(
    start: Start, wait_until: WaitUntil, witness: Witness, pool: str
) -> None:
    child = start(pool=pool, concurrency=1)
    job = nap.delay(600)
    wait_until(lambda: witness.lines == ["start:nap"])
    child.signal(signal.SIGTERM)
    ended(child, wait_until, within=15)
    assert fresh(job).state in (State.PENDING, State.RESERVED)
    assert fresh(job).snoozes == 1


def test_a_second_signal_ends_the_window(start: Start, wait_until: WaitUntil, witness: Witness) -> None:
    child = start(window=300)
    job = nap.delay(600)
    wait_until(lambda: witness.lines == ["start:nap"])
    child.signal(signal.SIGTERM)
    child.expect("Cold shutdown")
    child.signal(signal.SIGTERM)
    wait_until(lambda: fresh(job).snoozes == 1, timeout=5)
    ended(child, wait_until)


def test_a_warm_shutdown_waits_for_the_body_and_a_cold_one_after_it_does_not(
    start: Start, wait_until: WaitUntil, witness: Witness
) -> None:
    child = start(remap=False, window=1)
    job = nap.delay(600)
    wait_until(lambda: witness.lines == ["start:nap"])
    child.signal(signal.SIGTERM)
    child.expect("Warm shutdown")
    time.sleep(3)  # longer than the window, which a warm shutdown has not
    assert (child.running, fresh(job).state) == (True, State.RUNNING)
    child.signal(signal.SIGQUIT)
    wait_until(lambda: fresh(job).snoozes == 1, timeout=6)
    ended(child, wait_until)


def test_a_cold_shutdown_without_a_window_hands_back_at_once(
    start: Start, wait_until: WaitUntil, witness: Witness
) -> None:
    child = start(window=0)
    job = nap.delay(600)
    wait_until(lambda: witness.lines == ["start:nap"])
    child.signal(signal.SIGQUIT)
    wait_until(lambda: fresh(job).snoozes == 1, timeout=3)
    ended(child, wait_until)


@pytest.mark.parametrize("remap", [True, False], ids=["soft", "warm"])
def test_what_was_reserved_runs_elsewhere_while_the_body_still_runs(
    start: Start, wait_until: WaitUntil, witness: Witness, broker: RedisServer, tmp_path: Path, remap: bool
) -> None:
    child = start(concurrency=1, prefetch=8, window=60, remap=remap)
    gate = tmp_path / "gate"
    first = patient.delay(str(gate))
    wait_until(lambda: len(witness.lines) == 1)
    rest = [note.delay(f"rest {n}") for n in range(7)]
    wait_until(lambda: messages(broker.url) == 0)
    start(name="other")
    assert not any(line.startswith("rest") for line in witness.lines)
    child.signal(signal.SIGTERM)
    wait_until(lambda: all(fresh(job).state == State.COMPLETED for job in rest), timeout=8)
    assert (child.running, fresh(first).state) == (True, State.RUNNING)
    gate.touch()
    wait_until(lambda: fresh(first).state == State.COMPLETED)
    ended(child, wait_until)
    assert sorted(line for line in witness.lines if line.startswith("rest")) == [f"rest {n}" for n in range(7)]


def test_a_worker_stops_also_while_the_broker_is_away(
    start: Start, wait_until: WaitUntil, witness: Witness, broker: RedisServer
) -> None:
    child = start(window=2)
    job = nap.delay(600)
    wait_until(lambda: witness.lines == ["start:nap"])
    broker.kill()
    child.signal(signal.SIGTERM)
    wait_until(lambda: fresh(job).snoozes == 1, timeout=12)
    ended(child, wait_until, within=20)


def test_rolling_restarts_under_load_lose_and_double_nothing(
    start: Start, wait_until: WaitUntil, witness: Witness, tmp_path: Path
) -> None:
    gate = tmp_path / "open"
    gate.touch()
    workers = [start(name=f"roll{n}", window=1, prefetch=4) for n in range(2)]
    jobs: list[Any] = []
    for round_ in range(6):
        jobs += [EnrolSlowly.delay(f"r{round_}n{n}", str(gate)) for n in range(20)]
        jobs += [nap.delay(0.2, f"nap{round_}.{n}") for n in range(6)]
        old = workers.pop(0)
        old.signal((signal.SIGTERM, signal.SIGQUIT)[round_ % 2])
        workers.append(start(name=f"roll{round_ + 2}", window=1, prefetch=4))
        ended(old, wait_until)
    wait_until(lambda: not Job.objects.filter(finished_at__isnull=True).exists(), timeout=30)
    assert {fresh(job).state for job in jobs} == {State.COMPLETED}
    assert Group.objects.count() == 120
    assert not Job.objects.filter(losses__gt=0).exists()


def test_a_process_group_that_is_told_to_stop_hands_its_jobs_back(
    start: Start, wait_until: WaitUntil, witness: Witness
) -> None:
    child = start(remap=False, window=5)
    job = nap.delay(600)
    wait_until(lambda: witness.lines == ["start:nap"])
    child.signal(signal.SIGTERM)
    child.expect("Warm shutdown")
    os.kill(fresh(job).pid, signal.SIGTERM)
    wait_until(lambda: fresh(job).snoozes == 1, timeout=5)
    assert fresh(job).losses == 0
    ended(child, wait_until)
