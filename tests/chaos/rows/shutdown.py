"""Rows about workers that are stopped: what runs gets its time, the rest is handed back and runs elsewhere at once."""

from __future__ import annotations

import signal

from tests.chaos.matrix import row
from tests.chaos.stage import Stage

BOTH = ("redis", "rabbitmq")
WINDOW = 3.0
SOFT = {"REMAP_SIGTERM": "SIGQUIT", "TEST_WINDOW": str(WINDOW)}
COLD = {"TEST_WINDOW": "0"}
LONG_LEASE = {"LEASE": 60}


@row(24, "soft shutdown: SIGTERM with REMAP_SIGTERM", must="short jobs end, long ones run again at once", brokers=BOTH,
     jobs=LONG_LEASE, limit=200)  # fmt: skip
def soft_shutdown(stage: Stage) -> None:
    stage.start(environ=SOFT, concurrency=3)
    gate = stage.gate()
    short = stage.enqueue(1, seconds=1.5)
    long = [*stage.enqueue(1, gate=gate.path), *stage.enqueue(1, "transactional", gate=gate.path)]
    stage.wait_running(3)
    queued = stage.enqueue(10, seconds=0.05)
    old = stage.worker
    stage.start_worker(environ=SOFT)
    stage.fault()
    old.signal(signal.SIGTERM)
    stage.wait_begun(queued, timeout=WINDOW + 5)
    stage.wait_begun(long, times=2, timeout=WINDOW + 10)
    gate.open()
    stage.wait(lambda: not old.running, "the worker ends", WINDOW + 12)
    stage.settle()
    stage.require(stage.begun(short) == 1, "a short job ends within the window")
    stage.require(stage.begun(long) == 2 * len(long), "a long one runs again once")


@row(25, "cold shutdown: SIGQUIT", must="handed back, runs again at once, once", brokers=BOTH, jobs=LONG_LEASE)
def cold_shutdown(stage: Stage) -> None:
    stage.start(environ=COLD)
    gate = stage.gate()
    long = [*stage.enqueue(1, gate=gate.path), *stage.enqueue(1, "transactional", gate=gate.path)]
    stage.wait_running(2)
    old = stage.worker
    stage.start_worker(environ=COLD)
    stage.fault()
    old.signal(signal.SIGQUIT)
    stage.wait_begun(long, times=2, timeout=10)
    gate.open()
    stage.wait(lambda: not old.running, "the worker ends", 12)
    stage.settle()
    stage.require(stage.begun(long) == 2 * len(long), "each runs again once")


@row(26, "ten rolling deploys under a stream of jobs", must="all accounted for, none waits for its lease",
     brokers=BOTH, jobs=LONG_LEASE, limit=300)  # fmt: skip
def rolling_deploys(stage: Stage) -> None:
    rounds = stage.scaled(10, 5)
    workers = [stage.start(environ=SOFT), stage.start_worker(environ=SOFT)]
    stage.steady_mixed(30 * rounds, rate=8, seconds=0.1)
    long = stage.enqueue(rounds, seconds=WINDOW / 2)
    for number in range(rounds):
        old = workers.pop(0)
        stage.fault()
        old.signal((signal.SIGTERM, signal.SIGQUIT)[number % 2])
        workers.append(stage.start_worker(environ=SOFT))
        stage.wait(lambda old=old: not old.running, "the old worker ends", WINDOW + 15)  # type: ignore[misc]
    stage.wait_begun(long)
    stage.settle(50)
    lost = stage.database.rows("SELECT count(*) FROM jobs_job WHERE losses > 0")[0][0] if not stage.celery else 0
    stage.require(lost == 0, "no job is counted as lost")
    stage.require(stage.settled(), "none waits for its lease")
