"""Rows about workers that die, hang, stop and go on."""

from __future__ import annotations

import signal
from typing import Any

from tests.chaos.matrix import row
from tests.chaos.stage import Stage

BOTH = ("redis", "rabbitmq")
AT_ONCE = 2.0


@row(15, "child SIGKILL once", must="running again within two seconds", brokers=BOTH)
def child_killed(stage: Stage) -> None:
    stage.start()
    stage.enqueue(10, seconds=0.1)
    victim = stage.enqueue(1, how="hang", until=2)
    stage.wait_begun(victim)
    stage.worker.kill_child(stage.pid_of(victim[0]))
    stage.wait_begun(victim, times=2)
    stage.enqueue(5)
    stage.settle()
    stage.require(stage.recovery_s <= AT_ONCE, "it runs again within two seconds")
    stage.require(stage.worker.running, "the worker lives on")


@row(16, "child SIGKILL always: a poison pill", must="dead letter after the cap, others flow", brokers=BOTH)
def poison(stage: Stage) -> None:
    stage.start()
    pills = stage.enqueue(2, how="kill", expects="failed", effect="none")
    stage.fault()
    others = stage.enqueue(20, seconds=0.1)
    stage.wait_begun(others)
    stage.settle(30 if stage.celery else None)
    stage.measure(executions_of_poison=stage.begun(pills))
    stage.require(stage.begun(pills) <= 3 * len(pills), "a poison pill runs no more often than MAX_LOSSES says")
    stage.require(stage.worker.running, "the worker lives on")


@row(17, "worker main SIGKILL", must="rescued within the lease", brokers=BOTH)
def main_killed(stage: Stage) -> None:
    stage.start()
    # A deep backlog: what is rescued must not queue behind it.
    stage.enqueue(stage.scaled(60, 30), seconds=0.5)
    stage.enqueue(stage.scaled(20, 10), "transactional", seconds=0.5)
    stage.wait_running(2)
    stage.worker.kill_main()
    stage.start_worker()
    stage.settle()
    stage.require(stage.recovery_s <= stage.lease + 5, "runs again within the lease and five seconds")


@row(198, "worker with gevent SIGKILL, its bodies all waiting", must="rescued within the lease", brokers=BOTH)
def greenlets_killed(stage: Stage) -> None:
    stage.start(pool="gevent", concurrency=20)
    stage.enqueue(stage.scaled(60, 40), seconds=1.5)
    stage.wait_running(20)
    stage.worker.kill_main()
    stage.start_worker(pool="gevent", concurrency=20)
    stage.settle()
    stage.require(stage.recovery_s <= stage.lease + 5, "runs again within the lease and five seconds")


@row(199, "worker with gevent SIGSTOP past its lease, then SIGCONT", must="late result fenced off", brokers=BOTH)
def greenlets_frozen(stage: Stage) -> None:
    stage.start(pool="gevent", concurrency=20)
    numbers = stage.enqueue(20, seconds=6, how="deaf", until=2)
    stage.wait_running(20)
    frozen = stage.worker
    frozen.freeze()
    stage.start_worker(pool="gevent", concurrency=20)
    stage.wait_begun(numbers, times=2)
    frozen.thaw()
    stage.settle()
    stage.wait(lambda: stage.idle_since(2), "the thawed bodies are over", 30)


@row(18, "whole host dies", must="rescued within the lease by another host", brokers=BOTH)
def host_dies(stage: Stage) -> None:
    stage.start()
    stage.enqueue(stage.scaled(20, 6), seconds=0.5)
    stage.mixed(stage.scaled(20, 9))
    stage.wait_running(2)
    if not stage.celery:
        stage.conductor.kill()
    stage.worker.kill()
    stage.start()
    stage.settle()
    stage.require(stage.recovery_s <= stage.lease + 5, "runs again within the lease and five seconds")


@row(19, "worker SIGSTOP past its lease, then SIGCONT", must="another runs; late result fenced off", brokers=BOTH)
def worker_frozen(stage: Stage) -> None:
    stage.start(concurrency=4)
    # On SQLite a frozen transaction holds the only write lock: nobody can overtake it.
    kind = "plain" if stage.database.vendor == "sqlite" else "transactional"
    # The deaf do not hear that they have lost their lease; the stopped go on at their last line, and record.
    numbers = []
    for how, seconds in (("deaf", 6), ("stop", 0.5)):
        ways: Any = {"seconds": seconds, "how": how, "until": 2}
        numbers += [*stage.enqueue(1, **ways), *stage.enqueue(1, kind, **ways)]
    stage.wait_running(4)
    frozen = stage.worker
    stage.wait(lambda: frozen.stopped() >= 2, "two bodies have stopped themselves")
    frozen.freeze()
    stage.start_worker(concurrency=4)
    stage.wait_begun(numbers, times=2)
    frozen.thaw()
    stage.settle()
    stage.wait(lambda: stage.idle_since(2), "the thawed bodies are over", 30)
    stage.require(stage.begun(numbers) == 2 * len(numbers), "each job runs twice")


@row(50, "worker with threads SIGSTOP past its lease, then SIGCONT", must="late result fenced off", brokers=BOTH)
def threads_frozen(stage: Stage) -> None:
    """A thread cannot be killed when its lease is over: a deaf body goes on to its end, and only the fence is left."""
    stage.start(pool="threads", concurrency=2)
    kind = "plain" if stage.database.vendor == "sqlite" else "transactional"
    ways: Any = {"seconds": 6, "how": "deaf", "until": 2}
    numbers = [*stage.enqueue(1, **ways), *stage.enqueue(1, kind, **ways)]
    stage.wait_running(2)
    frozen = stage.worker
    frozen.freeze()
    stage.start_worker(pool="threads", concurrency=2)
    stage.wait_begun(numbers, times=2)
    frozen.thaw()
    stage.settle()
    stage.wait(lambda: stage.idle_since(2), "the thawed bodies are over", 30)
    ends = sum(line.what == "end" and line.number in numbers for line in stage.lines)
    stage.require(ends == 2 * len(numbers), "each body comes to its end twice, and one of them too late")


@row(23, "SIGTERM with running and queued jobs", must="finish what runs, keep what is queued", brokers=BOTH)
def warm_shutdown(stage: Stage) -> None:
    stage.start()
    numbers = [*stage.enqueue(8, seconds=1), *stage.enqueue(4, "transactional", seconds=1)]
    stage.wait_running(2)
    stage.worker.signal(signal.SIGTERM)
    stage.wait(lambda: not stage.worker.running, "the worker ends", 60)
    cut = [run for run in stage.runs if run.ended is None]
    stage.require(not cut, "what ran has ended")
    stage.start_worker()
    stage.settle()
    stage.require(stage.begun(numbers) == len(numbers), "each job runs once")
