"""Drain: a backlog of jobs that do nothing, until each has run and its outcome is recorded; and what that cost."""

from __future__ import annotations

import time
from collections.abc import Sequence

from tests.bench import figures, footprint
from tests.bench.actors import Workers
from tests.bench.measures.base import Bench, Case, Sample
from tests.bench.meter import SHOWN, Clockwork, Meter
from tests.bench.options import Options
from tests.bench.systems import System
from tests.bench.world import Failed, World

ABOUT = (
    "Jobs per second of a backlog of no-op jobs, from when a fifth of it is done (start and warm-up are discarded) "
    "until each body has run and each outcome is recorded where it is recorded. A body is one Redis INCR of its "
    "own number, so a server of its own says that each ran exactly once; rows are counted by SQL."
)
ROUNDS = {"quick": 2, "full": 5}
SECONDS = {"quick": 4.5, "full": 7.0}
WARM = 0.2
FIRST_BODY, SILENCE, RECORDED = 60.0, 30.0, 20.0
LEAST, MOST = 200, 12_000


def cases(options: Options, systems: Sequence[System]) -> list[Case]:
    """Every pool of everybody; a quick run takes processes only, and not everybody whom nobody named."""
    found = [Case("drain", pool, system) for system in systems for pool in system.pools]
    if not options.quick:
        return found
    return [case for case in found if case.case == "prefork" and (case.system.brief or options.peers)]


def take(bench: Bench, case: Case, number: int) -> Sample:
    """Drain one backlog."""
    system, world = case.system, bench.world
    count = size(bench.expected(case), bench.options.seconds)
    world.reset(system)
    with Workers(world, system, system.aides) as aides:
        producer = bench.producers.of(system)
        producer.ask("many", first=bench.numbers(count), count=count, size=1000)
        producer.ask("rest")
        world.settle(system)
        meter = Meter(world, system)
        meter.start()
        world.witness.flushall()
        world.witness.config_resetstat()
        with Workers(world, system, [system.pools[case.case]], system.copies) as workers:
            points, ticked = watched(world, workers, aides, count)
            await_recorded(world, system, workers, count)
            end = time.monotonic()
            rate, began = figures.rate_after_warm_up(points, count, end, WARM)
            cost = ticked.per_job(round(count * (1 - WARM))) if ticked else {}
            memory = {"memory_mb": footprint.memory_mb(workers.pids), "aide_mb": footprint.memory_mb(aides.pids)}
            verify(world, system, count)
        # PostgreSQL counts a client's syncs when that is idle for long, or has gone.
        per_job, statements, commands = meter.per_job(count), meter.statements()[:SHOWN], meter.commands()
    bench.saw(case, rate)
    more = {"jobs": count, "took": end - began, "statements": statements, "commands": commands}
    return Sample("drain", case.case, system.name, number, {"jobs_s": rate, **cost, **memory, **per_job}, more)


def size(pace: float, seconds: float) -> int:
    """How many jobs keep a system of this pace busy for as long.

    >>> size(430, 4), size(10, 4), size(1e6, 4)
    (2150, 200, 12000)
    """
    return max(LEAST, min(MOST, int(pace * seconds / (1 - WARM) / 50) * 50))


def watched(
    world: World, workers: Workers, aides: Workers, count: int
) -> tuple[list[tuple[float, int]], Clockwork | None]:
    """Look on until all bodies have run; return what was seen, and the processors' clocks since the warm-up."""
    points: list[tuple[float, int]] = []
    clocks: Clockwork | None = None
    done, heard = 0, time.monotonic() + FIRST_BODY - SILENCE
    while done < count:
        seen, now = world.witness.dbsize(), time.monotonic()
        if seen != done:
            done, heard = seen, now
            points.append((now, done))
        if clocks is None and done >= WARM * count:
            clocks = Clockwork(world, workers.pids, aides.pids)
        if now - heard > SILENCE:
            workers.check()
            raise Failed(f"{done} of {count} bodies ran, then none for {SILENCE:.0f} s")
        time.sleep(0.004)
    return points, clocks


def await_recorded(world: World, system: System, workers: Workers, count: int) -> None:
    """Wait until the system has recorded as many outcomes, if it does so."""
    began = time.monotonic()
    while (kept := recorded(world, system)) is not None and kept < count:
        if time.monotonic() - began > RECORDED:
            workers.check()
            raise Failed(f"all {count} bodies ran, and {kept} outcomes were recorded {RECORDED:.0f} s later")
        time.sleep(0.004)


def recorded(world: World, system: System) -> int | None:
    """How many outcomes the system has recorded; None if it records none."""
    if system.kept:
        return world.count(system, system.kept)
    if system.kept_in_redis:
        with world.broker(system) as broker:
            return int(broker.zcard(system.kept_in_redis))
    return None


def verify(world: World, system: System, count: int) -> None:
    """Raise ``Failed`` unless each body ran exactly once, and each outcome is recorded once."""
    ran, bodies = world.witness.dbsize(), world.witness.info("commandstats")["cmdstat_incr"]["calls"]
    if (ran, bodies) != (count, count):
        raise Failed(f"{count} jobs were enqueued; {ran} of them ran, in {bodies} bodies")
    kept = recorded(world, system)
    if kept not in (None, count):
        raise Failed(f"{count} jobs ran, {kept} outcomes are recorded")
