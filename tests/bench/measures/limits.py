"""Limits: how fast the conductor releases jobs that stand in a line, with no limit, one and three on each."""

from __future__ import annotations

from collections.abc import Sequence

from tests.bench.measures import release
from tests.bench.measures.base import Bench, Case, Sample
from tests.bench.options import Options
from tests.bench.systems import System
from tests.bench.world import Failed
from tests.chaos.children import ROOT

ABOUT = (
    "Jobs per second that the conductor releases in order: chosen, marked and sent. They are of one tenant; without a "
    "limit, with one (slots of fifty customers), with three (the same, slots of all, and a rate). Nothing is full, so "
    "each job is looked at once."
)
ROUNDS = {"quick": 1, "full": 2}
SECONDS = {"quick": 1.0, "full": 1.5}
LESS = "one round instead of two"
LIMITS = {"no limit": 0, "one limit": 1, "three limits": 3}


def cases(options: Options, systems: Sequence[System]) -> list[Case]:
    """Ours alone: nobody else has a line."""
    return [Case("limits", name, case.system) for case in release.cases(options, systems)
            if case.system.root == str(ROOT) for name in LIMITS]  # fmt: skip


def take(bench: Bench, case: Case, number: int) -> Sample:
    """Release some thousand rows that are in line, and count the messages."""
    system, count = case.system, bench.options.released
    bench.world.reset(system)
    found = bench.producers.of(system).ask("limited", count=count, limits=LIMITS[case.case])
    sent = release.sent(bench.world, system)
    if (found["released"], sent) != (count, count):
        raise Failed(f"{count} jobs were in line, {found['released']} were released, {sent} messages are there")
    return Sample("limits", case.case, system.name, number, {"jobs_s": count / found["took"]})
