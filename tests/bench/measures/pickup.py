"""Pickup: how long a job is on its way to its body when nothing else is there to do."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

from tests.bench import figures
from tests.bench.actors import Producer, Workers
from tests.bench.measures.base import Bench, Case, Sample
from tests.bench.options import Options
from tests.bench.peers.witness import PICKUPS
from tests.bench.systems import System
from tests.bench.world import Failed, World

ABOUT = (
    "From just before the call that enqueues to the first line of the body, one job at a time, with pauses in which "
    "the system falls idle. Systems that poll wait for their next look."
)
ROUNDS = {"quick": 2, "full": 3}
SECONDS = {"quick": 9.0, "full": 11.0}
STARTED, ANSWERED = 60, 20
WARM = 5
PAUSE = (0.02, 0.06)
BRIEF = ("mainstay", "celery")


def cases(options: Options, systems: Sequence[System]) -> list[Case]:
    """Everybody, with processes; a quick run takes ours, stock Celery and whom somebody named."""
    return [Case("pickup", "", s) for s in systems if not options.quick or options.peers or s.name in BRIEF]


def take(bench: Bench, case: Case, number: int) -> Sample:
    """Start the workers, and enqueue one job after the other, as many as a p99 needs if there is time."""
    system, world, options = case.system, bench.world, bench.options
    world.reset(system)
    producer = bench.producers.of(system)
    with (
        Workers(world, system, system.aides),
        Workers(world, system, [system.pools["prefork"]], system.copies) as workers,
    ):
        on_its_way(world, producer, workers, STARTED)
        for _ in range(WARM):
            after_a_pause(world, producer, workers)
        counted, enough = [after_a_pause(world, producer, workers)], time.monotonic() + options.idle_seconds
        while len(counted) < options.pickups and time.monotonic() < enough:
            counted.append(after_a_pause(world, producer, workers))
    found = {"p50_ms": figures.quantile(counted, 0.5), "p99_ms": figures.quantile(counted, 0.99)}
    return Sample("pickup", "", system.name, number, found, {"took_ms": [round(value, 3) for value in counted]})


def after_a_pause(world: World, producer: Producer, workers: Workers) -> float:
    """The same once the system has had nothing to do for a moment."""
    time.sleep(random.uniform(*PAUSE))
    return on_its_way(world, producer, workers, ANSWERED)


def on_its_way(world: World, producer: Producer, workers: Workers, patience: int) -> float:
    """Milliseconds that one job takes to its body."""
    producer.ask("ping")
    told = world.witness.blpop([PICKUPS], timeout=patience)
    if told is None:
        workers.check()
        raise Failed(f"a job was enqueued, and its body did not begin within {patience} s")
    return int(told[1]) / 1e6
