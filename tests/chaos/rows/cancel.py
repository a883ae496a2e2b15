"""Rows about cancelling: with nobody there to obey, with the broker away, on a dead worker, and in races."""

from __future__ import annotations

import contextlib
import time

from tests.chaos.matrix import row
from tests.chaos.stage import OutOfTime, Stage

REVOKE = "plain Celery's revoke reaches running workers only"
BOTH = ("redis", "rabbitmq")


@row(39, "cancel with no worker up, then restart", must="never runs", brokers=BOTH, celery=REVOKE)
def cancel_without_worker(stage: Stage) -> None:
    stage.start_conductor()
    unwanted = [
        *stage.enqueue(5),
        *stage.enqueue(5, options={"countdown": 2}),
        *stage.enqueue(3, "transactional"),
    ]
    wanted = stage.enqueue(5)
    stage.fault()
    stage.cancel(unwanted)
    stage.expect(unwanted, "cancelled")
    stage.wait_state(unwanted, "cancelled", timeout=5)
    stage.broker.restart()
    stage.conductor.kill()
    stage.start()
    stage.wait_begun(wanted)
    stage.sleep(3)
    stage.settle()
    stage.require(stage.begun(unwanted) == 0, "a job that was cancelled before it ran never runs")


@row(195, "cancel while the broker is down", must="cancelled at once; running bodies stop", celery=REVOKE, brokers=BOTH)
def cancel_without_broker(stage: Stage) -> None:
    stage.start()
    running = stage.enqueue(2, seconds=60)
    stage.wait_begun(running)
    waiting = stage.enqueue(5)
    stage.fault()
    stage.broker.stop()
    asked = time.monotonic()
    stage.cancel([*waiting, *running])
    stage.expect([*waiting, *running], "cancelled")
    stage.wait_state(waiting, "cancelled", timeout=5)
    stage.wait_state(running, "cancelled", timeout=10)
    stopped = time.monotonic() - asked
    stage.broker.start()
    after = stage.enqueue(2)
    stage.wait_begun(after)
    stage.measure(stopped_s=round(stopped, 1))
    stage.require(stopped < 4, "running bodies stop within seconds")
    stage.require(stage.begun(waiting) == 0, "a cancelled job never runs, also when the broker is back")


@row(196, "cancel of a job on a dead worker, and on a frozen one", must="cancelled, never run again", celery=REVOKE,
     brokers=BOTH)  # fmt: skip
def cancel_on_dead_worker(stage: Stage) -> None:
    stage.start(concurrency=1)
    dead = stage.enqueue(1, seconds=60)
    stage.wait_begun(dead)
    frozen_worker = stage.start_worker(concurrency=1)
    frozen = stage.enqueue(1, seconds=60)
    stage.wait_begun(frozen)
    stage.workers[0].kill()
    frozen_worker.freeze()
    stage.fault()
    asked = time.monotonic()
    stage.cancel([*dead, *frozen])
    stage.expect([*dead, *frozen], "cancelled")
    stage.wait_state([*dead, *frozen], "cancelled", timeout=60)
    took = time.monotonic() - asked
    frozen_worker.thaw()
    stage.start_worker()
    stage.enqueue(5)
    stage.settle()
    stage.measure(cancelled_s=round(took, 1))
    stage.require(took <= stage.lease + 5, "it ends with its lease, or after the grace")
    stage.require(stage.begun([*dead, *frozen]) == 2, "neither runs again")


@row(197, "cancel races with claim, completion, retry and rescue", must="completed or cancelled, never both",
     celery=REVOKE)  # fmt: skip
def cancel_races(stage: Stage) -> None:
    stage.start(concurrency=3)
    numbers = [
        *stage.enqueue(stage.scaled(60, 30), seconds=0.05),
        *stage.enqueue(stage.scaled(30, 15), "retried"),
        *stage.enqueue(stage.scaled(30, 15), "transactional", seconds=0.05),
    ]
    stage.expect(numbers, "any")
    chosen = stage.random.sample(numbers, len(numbers) * 2 // 3)
    stage.fault()
    for turn, number in enumerate(chosen):
        with contextlib.suppress(OutOfTime):  # it has finished: there is nothing to cancel
            stage.cancel([number])
        if turn % 15 == 0 and stage.worker.children():
            stage.worker.kill_child()
    cancelled = [number for number in numbers if stage.state(number) == "cancelled"]
    begun = stage.begun(cancelled)
    stage.settle()
    stage.require(stage.begun(cancelled) == begun, "a cancelled job is not run after it was cancelled")
    stage.require(
        set(stage.states(numbers)) <= {"completed", "cancelled"}, "each ends in exactly one of completed and cancelled"
    )
    stage.measure(of=len(chosen), cancelled_jobs=len(cancelled))
