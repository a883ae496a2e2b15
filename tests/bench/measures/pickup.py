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
STARTED, ANSWERED = 60, 20
WARM = 5
PAUSE = (0.02, 0.06)
BRIEF = ("mainstay", "celery")


def cases(options: Options, systems: Sequence[System]) -> list[Case]:
    """Everybody, with processes; a quick run takes ours, stock Celery and whom somebody named."""
    return [Case("pickup", "", s) for s in systems if not options.quick or options.peers or s.name in BRIEF]


def take(bench: Bench, case: Case, number: int) -> Sample:
    """Start the workers, and enqueue one job after the other for some seconds."""
    system, world = case.system, bench.world
    world.reset(system)
    producer = bench.producers.of(system)
    with (
        Workers(world, system, system.aides),
        Workers(world, system, [system.pools["prefork"]], system.copies) as workers,
    ):
        took, began = [on_its_way(world, producer, workers, STARTED)], 0.0
        while not began or time.monotonic() - began < bench.options.idle_seconds:
            time.sleep(random.uniform(*PAUSE))
            took.append(on_its_way(world, producer, workers, ANSWERED))
            began = began or (time.monotonic() if len(took) > WARM else 0.0)
    counted = took[WARM + 1 :]
    found = {"p50_ms": figures.quantile(counted, 0.5), "p99_ms": figures.quantile(counted, 0.99)}
    return Sample("pickup", "", system.name, number, found, {"took_ms": [round(value, 3) for value in counted]})


def on_its_way(world: World, producer: Producer, workers: Workers, patience: int) -> float:
    """Milliseconds that one job takes to its body."""
    producer.ask("ping")
    told = world.witness.blpop([PICKUPS], timeout=patience)
    if told is None:
        workers.check()
        raise Failed(f"a job was enqueued, and its body did not begin within {patience} s")
    return int(told[1]) / 1e6
