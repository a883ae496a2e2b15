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
    "How long a job is on its way to the first line of its body, one at a time, with pauses in which the system falls "
    "idle; systems that poll wait for their next look. From the broker: from the return of a call that returns once "
    "the job is with the broker (of ours, with `SEND_IN_THREAD` off). From the call: from just before `delay()` or "
    "what the system has for it; of a durable job this has its commit in it, before which it must not be sent."
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
        from_broker, from_call = counted = ([], [])
        enough = time.monotonic() + options.idle_seconds
        while not from_call or (len(from_call) < options.pickups and time.monotonic() < enough):
            from_broker.append(after_a_pause(world, producer, workers, until_sent=True))
            from_call.append(after_a_pause(world, producer, workers))
    found, more = {}, {}
    for since, values in zip(("broker", "call"), counted, strict=True):
        found[f"{since}_p50_ms"] = figures.quantile(values, 0.5)
        found[f"{since}_p99_ms"] = figures.quantile(values, 0.99)
        more[f"{since}_took_ms"] = [round(value, 3) for value in values]
    return Sample("pickup", "", system.name, number, found, more)


def after_a_pause(world: World, producer: Producer, workers: Workers, *, until_sent: bool = False) -> float:
    """The same once the system has had nothing to do for a moment."""
    time.sleep(random.uniform(*PAUSE))
    return on_its_way(world, producer, workers, ANSWERED, until_sent=until_sent)


def on_its_way(world: World, producer: Producer, workers: Workers, patience: int, *, until_sent: bool = False) -> float:
    """Milliseconds that one job takes to its body: from its call, or from when it is with the broker."""
    answer = producer.ask("ping", until_sent=until_sent)
    told = world.witness.blpop([PICKUPS], timeout=patience)
    if told is None:
        workers.check()
        raise Failed(f"a job was enqueued, and its body did not begin within {patience} s")
    return int(told[1]) / 1e6 - (answer["took_ms"] if until_sent else 0.0)
