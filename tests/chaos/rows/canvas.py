"""Rows 160-163: a child, or its whole worker, killed before and after each statement of an attempt."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from project import processes
from tests.chaos.children import Process
from tests.chaos.matrix import row
from tests.chaos.stage import Stage

Work = Callable[[], list[int]]
NO_STATEMENTS = "plain Celery has no statements to die at"
BOTH = ("redis", "rabbitmq")
LAST = 60  # statements of one canvas, at most
# A worker that forks anew and a job that waits between its losses: what one death costs.
PATIENCE = 40.0


def die_at_seams(stage: Stage, work: dict[str, Work], sample: int, among: int) -> None:
    """Kill the child at each seam of each kind of work; at ``sample`` of the first ones when the row is short."""
    stage.start_conductor(ready=False)
    stage.start_worker(concurrency=1, die="armed")
    deaths = 0
    for name, begin in work.items():
        died = 0
        for number in seams(stage, sample, among):
            reached = [die_once(stage, begin, f"{number}:{when}") for when in ("before", "after")]
            died += sum(reached)
            if not any(reached) and not stage.quick:
                break
        stage.say(f"{name}: died {died} times")
        stage.require(died, f"somebody died in {name}")
        stage.require(stage.worker.running, "the worker lives on")
        deaths += died
    stage.measure(deaths=deaths)
    if stage.quick:
        stage.leave_out(f"{sample} statements of each kind instead of all")


def seams(stage: Stage, sample: int, among: int) -> Iterable[int]:
    """Which statements to die at: all of them in turn, or a few that the seed chooses."""
    return stage.random.sample(range(1, among + 1), sample) if stage.quick else range(1, LAST)


def die_once(stage: Stage, begin: Work, where: str) -> bool:
    """Give work while the fault is armed, wait until it is all final; whether the child died."""
    armed = stage.world.armed
    stage.arm(f"child MainThread {where}")
    numbers = begin()
    processes.wait_until(lambda: not armed.exists() or over(stage, numbers), PATIENCE)
    died = not armed.exists()
    armed.unlink(missing_ok=True)
    stage.wait(lambda: over(stage, numbers), f"all is final after a death at {where}", timeout=PATIENCE)
    return died


def over(stage: Stage, numbers: list[int]) -> bool:
    """Whether everything is final, and of these jobs at least the first is there."""
    return stage.settled() and stage.state(numbers[0]) != "absent"


@row(160, "child killed at each statement, with chains, chords and links", must="what follows happens, once",
     brokers=BOTH, celery=NO_STATEMENTS, limit=900)  # fmt: skip
def child_dies_in_canvases(stage: Stage) -> None:
    kinds = ("chain", "chord", "link", "errlink")
    die_at_seams(stage, {kind: _work(stage, kind) for kind in kinds}, sample=3, among=12)


@row(161, "child killed at each statement of a single job", must="one outcome each, transactional effects once",
     brokers=BOTH, celery=NO_STATEMENTS, limit=900)  # fmt: skip
def child_dies_in_single_jobs(stage: Stage) -> None:
    kinds = ("plain", "transactional", "retried", "failing", "idempotent")
    work = {kind: _work(stage, kind) for kind in kinds}
    work["failing transactional"] = lambda: stage.enqueue(
        1, "transactional", how="broken", expects="failed", effect="none"
    )
    die_at_seams(stage, work, sample=2, among=2)


@row(162, "worker host dies at each statement of an attempt", must="rescued within the lease",
     brokers=BOTH, celery=NO_STATEMENTS, limit=900)  # fmt: skip
def worker_dies_at_seams(stage: Stage) -> None:
    stage.start_conductor()
    recoveries, deaths = [], 0
    for number in stage.random.sample(range(1, 9), stage.scaled(8, 2)):
        for when in ("before", "after"):
            worker = stage.start_worker(concurrency=1, die="armed")
            deaths += lose_worker(stage, worker, f"{number}:{when}")
            armed_at = stage.struck
            stage.start_worker()
            stage.wait(stage.settled, f"all is final after a death at {number}:{when}", timeout=PATIENCE)
            if armed_at:
                recoveries.append(stage.recovery_s)
            stage.worker.stop()
    stage.measure(deaths=deaths)
    stage.require(deaths, "some worker died")
    stage.require(max(recoveries, default=0) <= stage.lease + 5, "runs again within the lease and five seconds")


def lose_worker(stage: Stage, worker: Process, where: str) -> bool:
    """Let the child die at a seam, and then its worker with it."""
    armed = stage.world.armed
    stage.struck = None
    stage.arm(f"child MainThread {where}")
    for kind in ("chord", "transactional", "plain", "chain"):
        stage.enqueue(1, kind)
    processes.wait_until(lambda: not armed.exists() or stage.settled(), PATIENCE)
    died = not armed.exists()
    armed.unlink(missing_ok=True)
    worker.kill()
    return died


@row(163, "child killed at each statement of jobs whose keys hold for a day", must="each key runs once",
     brokers=BOTH, celery="it has no keys", limit=600)  # fmt: skip
def child_dies_with_daily_keys(stage: Stage) -> None:
    asked: list[list[int]] = []

    def twice() -> list[int]:
        key = f"day-{len(asked)}"
        asked.append([stage.enqueue(1, "idempotent", task="daily", key=key)[0] for _ in range(2)])
        return asked[-1][:1]

    die_at_seams(stage, {"daily": twice}, sample=2, among=4)
    again = [stage.enqueue(1, "idempotent", task="daily", key=f"day-{n}")[0] for n in range(len(asked))]
    stage.settle()
    stage.require(stage.begun(again) == 0, "a key that holds for a day starts nothing new after its job is done")


def _work(stage: Stage, kind: str) -> Work:
    return lambda: stage.enqueue(1, kind)
