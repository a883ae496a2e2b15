"""Random schedules of faults: drawn from the seed, printed, played over a steady load, then everything is healed."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from redis.exceptions import RedisError

from project.servers import ServerUnavailable
from tests.chaos import checker, ledger
from tests.chaos.children import Process
from tests.chaos.proxy import Proxy
from tests.chaos.stage import OutOfTime, Stage

SPAN = 10.0  # seconds over which the faults of a schedule are spread
LEAST, MOST = 3, 6


@dataclass(frozen=True, slots=True, order=True)
class Fault:
    """One fault: when, what, to whom (a share of those there are), for how long."""

    at: float
    what: str
    whom: float
    lasts: float

    def __str__(self) -> str:
        return f"{self.at:.1f}s {self.what}({self.whom:.2f}) for {self.lasts:.1f}s"


def draw(dice: random.Random, kinds: list[str], lease: float) -> list[Fault]:
    """A few faults at random moments.

    >>> print(draw(random.Random(1), ["a", "b"], 6.0)[0])
    0.5s b(0.27) for 6.5s
    """
    count = dice.randint(LEAST, MOST)
    faults = [
        Fault(
            round(dice.uniform(0.5, SPAN), 2), dice.choice(kinds), round(dice.random(), 2),
            round(dice.uniform(0.3, lease + 2), 2),
        )
        for _ in range(count)
    ]  # fmt: skip
    return sorted(faults)


def play(stage: Stage, index: int) -> None:
    """Draw a schedule and play it under load; then heal everything and wait until all is final."""
    dice = random.Random(f"{stage.world.options.seed}:{stage.world.row.number}:{index}")
    faults = draw(dice, sorted(KINDS if stage.database.own else set(KINDS) - OWN_DATABASE), stage.lease)
    told = f"schedule {index}: {'; '.join(map(str, faults))}"
    stage.say(told)
    scene = Scene(stage, dice)
    try:
        scene.play(faults)
        scene.heal()
        stage.wait(stage.settled, "all jobs are final", timeout=60 + 3 * stage.lease)
    except (OutOfTime, ServerUnavailable) as late:
        stage.problems.append(f"{told}: {late}")
    else:
        evidence = checker.gather(stage.database.url, stage.world.ledger, stage.world.intake)
        found = checker.judge(evidence, may_refuse=True).problems
        stage.problems.extend([told, *(f"schedule {index}: {problem}" for problem in found)] if found else [])
    finally:
        scene.close()


@dataclass(slots=True)
class Scene:
    """The processes and the load over which a schedule is played."""

    stage: Stage
    dice: random.Random
    proxy: Proxy | None = None
    frozen: list[Process] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    _order: itertools.count[int] = field(default_factory=itertools.count)

    def play(self, faults: list[Fault]) -> None:
        """Start everything, then let each fault begin and end at its moment."""
        stage = self.stage
        self.proxy = stage.proxy_broker()
        stage.start_conductor(ready=False)
        stage.start_worker(via=[self.proxy], ready=False)
        stage.start_worker()
        stage.start_conductor()
        load = stage.steady_mixed(stage.scaled(90, 54), 6, seconds=0.15)
        self.numbers = load.numbers
        began = time.monotonic()
        events = [(fault.at, next(self._order), KINDS[fault.what], fault) for fault in faults]
        heapq.heapify(events)
        while events:
            at, _, act, fault = heapq.heappop(events)
            stage.sleep(began + at - time.monotonic())
            stage.say(f"{time.monotonic() - began:.1f} s: {act.__name__.strip('_')} ({fault})")
            undo = act(self, fault)
            if undo is not None:
                heapq.heappush(events, (at + fault.lasts, next(self._order), _undoing(undo), fault))
        stage.wait(lambda: load.done, "the last call has returned", timeout=90)

    def heal(self) -> None:
        """Let everything go on that stands still, and start what is not there."""
        stage = self.stage
        for process in self.frozen:
            process.thaw()
        stage.broker.thaw()
        stage.broker.start()
        if stage.database.own is not None:
            stage.database.server.start()
        if self.proxy is not None:
            self.proxy.heal()
        stage.fault()
        stage.start_conductor(ready=False)
        stage.start_worker()

    def close(self) -> None:
        """End the processes, so that the next schedule begins as this one did."""
        for process in [*self.stage.workers, *self.stage.conductors]:
            process.end()

    def choose(self, among: list[Process], fault: Fault) -> Process | None:
        """One of those that live and do not stand still."""
        able = [process for process in among if process.running and process not in self.frozen]
        return able[min(int(fault.whom * len(able)), len(able) - 1)] if able else None


Undo = Callable[[Scene], None]
Begin = Callable[[Scene, Fault], Undo | None]


def _undoing(undo: Undo) -> Begin:
    def end(scene: Scene, fault: Fault) -> None:
        undo(scene)

    end.__name__ = f"end of {undo.__name__}"
    return end


# --- The faults -----------------------------------------------------------------------------------------------


def _kill_child(scene: Scene, fault: Fault) -> None:
    worker = scene.choose(scene.stage.workers, fault)
    children = worker.children() if worker else []
    if worker and children:
        with contextlib.suppress(ProcessLookupError):
            worker.kill_child(children[-1])


def _kill_worker(scene: Scene, fault: Fault) -> Undo | None:
    worker = scene.choose(scene.stage.workers, fault)
    if worker is None:
        return None
    worker.kill_main() if fault.whom < 0.5 else worker.kill()
    return _start_worker


def _start_worker(scene: Scene) -> None:
    scene.stage.start_worker(ready=False)


def _roll_worker(scene: Scene, fault: Fault) -> Undo | None:
    worker = scene.choose(scene.stage.workers, fault)
    if worker is None:
        return None
    worker.signal(signal.SIGTERM)
    return _start_worker


def _freeze(among: Callable[[Stage], list[Process]]) -> Begin:
    def freeze(scene: Scene, fault: Fault) -> Undo | None:
        process = scene.choose(among(scene.stage), fault)
        if process is None:
            return None
        process.freeze()
        scene.frozen.append(process)

        def thaw(scene: Scene) -> None:
            process.thaw()
            scene.frozen.remove(process)

        return thaw

    return freeze


def _kill_conductor(scene: Scene, fault: Fault) -> Undo | None:
    conductor = scene.choose(scene.stage.conductors, fault)
    if conductor is None:
        return None
    conductor.kill()
    return lambda scene: scene.stage.start_conductor(ready=False)


def _kill_broker(scene: Scene, fault: Fault) -> Undo:
    scene.stage.fault()
    scene.stage.broker.kill()
    return _start_broker


def _restart_broker(scene: Scene, fault: Fault) -> None:
    scene.stage.fault()
    scene.stage.broker.stop()
    scene.stage.broker.start()


def _start_broker(scene: Scene) -> None:
    scene.stage.broker.start()


def _freeze_broker(scene: Scene, fault: Fault) -> Undo | None:
    if not scene.stage.broker.running:
        return None
    scene.stage.fault()
    scene.stage.broker.freeze()
    return lambda scene: scene.stage.broker.thaw()


def _flush_broker(scene: Scene, fault: Fault) -> None:
    scene.stage.fault()
    with contextlib.suppress(RedisError, OSError), scene.stage.redis as client:
        client.flushall()


def _kill_clients(scene: Scene, fault: Fault) -> None:
    scene.stage.fault()
    with contextlib.suppress(RedisError, OSError), scene.stage.redis as client:
        client.client_kill_filter(_type="normal")


def _drop(scene: Scene, fault: Fault) -> Undo | None:
    if scene.proxy is None:
        return None
    scene.stage.fault()
    scene.proxy.drop() if fault.whom < 0.5 else scene.proxy.half_open()
    return lambda scene: scene.proxy.heal() if scene.proxy else None


def _reset(scene: Scene, fault: Fault) -> None:
    if scene.proxy is not None:
        scene.stage.fault()
        scene.proxy.reset()


def _restart_database(scene: Scene, fault: Fault) -> None:
    scene.stage.fault()
    scene.stage.database.server.restart("immediate" if fault.whom < 0.5 else "fast")


def _stop_database(scene: Scene, fault: Fault) -> Undo:
    scene.stage.fault()
    scene.stage.database.server.stop("immediate")
    return lambda scene: scene.stage.database.server.start() and None


def _cancel(scene: Scene, fault: Fault) -> None:
    """Cancel some single jobs: those in front of which and after which nothing comes."""
    asked = ledger.read_intake(scene.stage.world.intake).asked
    bound = {number for one in asked.values() for number in one.after} | {n for n, one in asked.items() if one.after}
    known = [n for n in scene.numbers if n in asked and n not in bound and asked[n].accepted]
    for number in scene.dice.sample(known, min(4, len(known))):
        with contextlib.suppress(OutOfTime, OSError):
            scene.stage.cancel([number])


KINDS: dict[str, Begin] = {
    "kill a child": _kill_child,
    "kill a worker": _kill_worker,
    "roll a worker": _roll_worker,
    "freeze a worker": _freeze(lambda stage: stage.workers),
    "kill a conductor": _kill_conductor,
    "freeze a conductor": _freeze(lambda stage: stage.conductors),
    "kill the broker": _kill_broker,
    "restart the broker": _restart_broker,
    "freeze the broker": _freeze_broker,
    "flush the broker": _flush_broker,
    "kill the broker's clients": _kill_clients,
    "cut a worker from the broker": _drop,
    "reset a worker's connections": _reset,
    "restart the database": _restart_database,
    "stop the database": _stop_database,
    "cancel some jobs": _cancel,
}
OWN_DATABASE = {"restart the database", "stop the database"}
