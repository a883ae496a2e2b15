"""Release: how fast the conductor hands rows that are due to the broker."""

from __future__ import annotations

from collections.abc import Sequence

from tests.bench.measures.base import Bench, Case, Sample
from tests.bench.options import Options
from tests.bench.systems import System
from tests.bench.world import Failed, World

ABOUT = (
    "Jobs per second that the conductor's release hands from due rows to the broker, marked and sent. Compared with "
    "the jobs per second of a loop of stock delay()."
)
ROUNDS = {"quick": 3, "full": 5}
SECONDS = {"quick": 1.0, "full": 1.5}


def cases(options: Options, systems: Sequence[System]) -> list[Case]:
    """Ours alone: nobody else has a conductor."""
    return [Case("release", "", s) for s in systems if s.ours and (s.brief or not options.quick)]


def take(bench: Bench, case: Case, number: int) -> Sample:
    """Release some thousand rows, and count the messages."""
    system, count = case.system, bench.options.released
    bench.world.reset(system)
    found = bench.producers.of(system).ask("release", count=count)
    there = sent(bench.world, system)
    if (found["released"], there) != (count, count):
        raise Failed(f"{count} rows were due, {found['released']} were released, {there} messages are there")
    return Sample("release", "", system.name, number, {"jobs_s": count / found["took"]})


def sent(world: World, system: System) -> int:
    """How many messages are in the broker."""
    with world.broker(system) as broker:
        return sum(broker.llen(key) for key in broker.scan_iter("default*") if broker.type(key) == b"list")
