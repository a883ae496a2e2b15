"""Flood: how long the single job of one tenant waits behind the many of another, with ours and by the peers' means."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from tests.bench.actors import Producer, Workers
from tests.bench.measures.base import Bench, Case, Sample
from tests.bench.options import Options
from tests.bench.peers.witness import PICKUPS
from tests.bench.systems import System
from tests.bench.world import Failed, World

ROUNDS = {"quick": 1, "full": 1}
SECONDS = {"quick": 7.0, "full": 44.0}
QUICK, FULL = 2_000, 100_000
LESS = f"a flood of {QUICK:,} instead of {FULL:,}"
LONE = 5
PATIENCE, QUICK_PATIENCE, WHOLE = 20.0, 5.0, 600.0
FIRST_BODY = 60.0
SOME, ENQUEUEING = 5_000, 45.0  # jobs in one order; seconds after which the flood is as large as it is
BRIEF = ("mainstay", "celery")
# What a worker is told so that it takes the jobs of a queue of their own too. Dramatiq's takes those of all actors.
OWN_QUEUE: Mapping[str, tuple[str, str]] = {
    "celery": ("--pool prefork", "--pool prefork --queues celery,lone"),
    "rq-simple": ("worker-pool default", "worker-pool lone default"),
    "dramatiq": ("", ""),
}
ABOUT = (
    f"One tenant enqueues {FULL:,} jobs that do nothing (in a quick run {QUICK:,}), and the workers begin with them. "
    "Then another tenant enqueues one, and its wait is measured until its body begins. Ours is called with tenant=…, "
    f"and of {LONE} lone tenants the slowest counts. Peers have no tenants: their job waits in the queue of the flood. "
    "Beside it one is measured by what they document, a queue of its own, of which the workers were told at their "
    f"start. A flood is smaller where enqueueing it would take more than {ENQUEUEING:g} s, and a wait is cut off "
    f"after {PATIENCE:g} s; MEASURE=flood alone waits for {WHOLE:g} s."
)


def cases(options: Options, systems: Sequence[System]) -> list[Case]:
    """Ours, stock Celery, RQ and Dramatiq; a quick run takes ours, stock Celery and whom somebody named."""
    part = [system for system in systems if system.name in ("mainstay", *OWN_QUEUE)]
    return [Case("flood", "", s) for s in part if not options.quick or s.name in BRIEF or options.peers]


def take(bench: Bench, case: Case, number: int) -> Sample:
    """One flood, and who comes behind it."""
    system, world = case.system, bench.world
    world.reset(system)
    producer = bench.producers.of(system)
    with Workers(world, system, system.aides):
        count = enqueued(bench, producer, QUICK if bench.options.quick else FULL)
        world.settle(system)
        world.witness.flushall()
        with Workers(world, system, [command(system)], system.copies) as workers:
            await_first_body(world, workers)
            lone = [waited(world, producer, workers, FIRST_BODY, lone=True) for _ in range(LONE)]
            if world.witness.dbsize() >= count:
                raise Failed(f"the flood of {count} was over before the {LONE} lone jobs had begun")
            slowest = max(lone, key=lambda found: found["waited_s"])
            if not system.ours:
                shared = waited(world, producer, workers, patience(bench.options))
                slowest = {**shared, "own_s": slowest["waited_s"]}
    return Sample("flood", "", system.name, number, {"flood": count, **slowest}, {"lone": lone})


def enqueued(bench: Bench, producer: Producer, wanted: int) -> int:
    """Enqueue the flood; return how many there are, fewer than wanted where that takes too long."""
    began, count = time.monotonic(), 0
    while count < wanted and (alone(bench.options) or time.monotonic() - began < ENQUEUEING):
        some = min(SOME, wanted - count)
        producer.ask("flood", first=bench.numbers(some), count=some)
        count += some
    return count


def alone(options: Options) -> bool:
    """Whether nothing else is measured, so that there is time."""
    return options.measures == ("flood",)


def patience(options: Options) -> float:
    """How long to wait for the end of a peer's flood."""
    if alone(options):
        return WHOLE
    return QUICK_PATIENCE if options.quick else PATIENCE


def command(system: System) -> str:
    """The worker's command, which for a peer names the other queue too."""
    old, new = OWN_QUEUE.get(system.name, ("", ""))
    return system.pools["prefork"].replace(old, new) if old else system.pools["prefork"]


def await_first_body(world: World, workers: Workers) -> None:
    """Wait until the flood is being worked at."""
    until = time.monotonic() + FIRST_BODY
    while not world.witness.dbsize():
        workers.check()
        if time.monotonic() > until:
            raise Failed(f"no body of the flood began within {FIRST_BODY:g} s")
        time.sleep(0.01)


def waited(
    world: World, producer: Producer, workers: Workers, seconds: float, *, lone: bool = False
) -> dict[str, float]:
    """Seconds until the body of one job began, and how many of the flood ran meanwhile; or that it did not begin."""
    before = world.witness.dbsize()
    if lone:
        producer.ask("lone")
    else:
        producer.ask("ping", until_sent=False)
    until, told = time.monotonic() + seconds, None
    while told is None and time.monotonic() < until:  # a look at a time, shorter than the timeout of the client
        told = world.witness.blpop([PICKUPS], timeout=1)
    ran = world.witness.dbsize() - before
    if told is not None:
        return {"waited_s": int(told[1].split()[-1]) / 1e9, "before": ran}
    workers.check()
    if lone:
        raise Failed(f"a job was enqueued behind the flood, and its body did not begin within {seconds:g} s")
    return {"more_than_s": seconds, "before": ran}
