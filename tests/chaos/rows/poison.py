"""Rows about bodies that take their process down, hang, or are killed between their checkpoints."""

from __future__ import annotations

from contextlib import suppress

from tests.chaos.bodies import CHECKPOINTED_ROWS
from tests.chaos.matrix import row
from tests.chaos.stage import Stage

MOST = 3  # MAX_LOSSES: how many processes one job may take down
HUNG_SLOT = "plain Celery has no limit in a thread: the slot and its job are lost until somebody restarts the worker"


def pills(stage: Stage, *hows: str, kind: str = "plain") -> list[int]:
    """Jobs that misbehave each time, one of each sort."""
    return [number for how in hows for number in stage.enqueue(1, kind, how=how, expects="failed", effect="none")]


def once(stage: Stage, *hows: str, kind: str = "plain", limit: float | None = None) -> list[int]:
    """Jobs that misbehave in their first attempt only, one of each sort."""
    options = {"time_limit": limit} if limit else {}
    return [number for how in hows for number in stage.enqueue(1, kind, how=how, until=2, options=options)]


def bystanders_flow(stage: Stage, poison: list[int]) -> None:
    """The worker lives on, its other jobs too, and a pill runs no more often than it may."""
    others = stage.enqueue(20, seconds=0.1)
    stage.wait_begun(others)
    stage.settle(60 if stage.celery else None)
    stage.measure(executions_of_poison=stage.begun(poison))
    stage.require(stage.begun(poison) <= MOST * len(poison), "a poison pill runs no more often than MAX_LOSSES says")
    stage.require(stage.worker.running, "the worker lives on")


@row(31, "hard time limit", must="killed at its limit, retried, one dead letter in the end")
def hard_limit(stage: Stage) -> None:
    stage.start()
    poison = pills(stage, "in C", kind="limited")
    stage.fault()
    once(stage, "in C", kind="limited")
    bystanders_flow(stage, poison)


@row(32, "hung child: no heartbeat, no signal heard", must="ended at its limit, retried")
def hung_child(stage: Stage) -> None:
    stage.start()
    hung = once(stage, "stuck", "in C", limit=4)
    stage.wait_begun(hung)
    stage.fault()
    stage.wait_begun(hung, times=2)
    stage.enqueue(10, seconds=0.1)
    stage.settle()
    stage.require(stage.recovery_s <= 8, "runs again soon after its limit")
    stage.require(stage.worker.running, "the worker lives on")


@row(145, "stack overflow, abort, exit: poison pills of every sort", must="dead letters after the cap, others flow")
def every_sort(stage: Stage) -> None:
    stage.start()
    poison = pills(stage, "stack", "abort", "vanish", "exit")
    stage.fault()
    once(stage, "stack", "abort", "vanish", "exit")
    bystanders_flow(stage, poison)


@row(146, "C-level hang in a pool of threads", must="handled as hung; the last slot ends the worker", celery=HUNG_SLOT,
     limit=200)  # fmt: skip
def hung_threads(stage: Stage) -> None:
    stage.start(pool="threads")
    first = stage.worker
    hung = once(stage, "in C", limit=3)
    stage.wait_begun(hung, times=2, timeout=60)
    stage.wait_state(hung, "completed")
    flowing = stage.enqueue(5)
    stage.wait_state(flowing, "completed")
    hung += once(stage, "in C", limit=3)
    stage.wait(lambda: not first.running, "the worker without a slot ends", 60)
    stage.start_worker(pool="threads")
    stage.settle()
    stage.require("1 of 2 slots are held" in first.printed, "the worker tells of the slot that it lost")
    stage.require(stage.begun(hung) == 2 * len(hung), "each runs once in vain and once to its end")


def at_work(stage: Stage) -> list[int]:
    """The children of the worker in which a body runs."""
    children = set(stage.worker.children())
    return sorted({run.pid for run in stage.runs if run.ended is None and run.pid in children})


@row(147, "child killed between checkpoints, again and again", must="every row written once, no step left out",
     celery="plain Celery has no checkpoints", jobs={"MAX_LOSSES": 50}, limit=200)  # fmt: skip
def killed_between_checkpoints(stage: Stage) -> None:
    stage.start()
    numbers = stage.enqueue(stage.scaled(12, 6), "checkpointed", seconds=1.5)
    for _ in range(stage.scaled(16, 8)):
        stage.wait(lambda: stage.settled() or at_work(stage), "a body runs")
        stage.sleep(stage.random.uniform(0.1, 0.6))
        if pids := at_work(stage):
            with suppress(ProcessLookupError):
                stage.worker.kill_child(stage.random.choice(pids))
    stage.settle()
    written = stage.database.rows("SELECT count(*), count(DISTINCT number) FROM chaos_effect")[0]
    owed = len(numbers) * (CHECKPOINTED_ROWS + 1)
    stage.measure(rows=written[0], executions=stage.begun(numbers))
    stage.require(tuple(written) == (owed, owed), f"each of {owed} rows is written, and once")
    stage.require(stage.begun(numbers) > len(numbers), "some bodies were killed")
