"""Bulk: many jobs by the call that a system has for that, or by a loop of its ordinary one."""

from __future__ import annotations

from collections.abc import Sequence

from tests.bench.measures.base import Bench, Case, Sample
from tests.bench.options import Options
from tests.bench.systems import System
from tests.bench.world import Failed

ABOUT = (
    "Jobs per second until all rows have committed (for queues that keep no rows: until all are sent), 1,000 at a time "
    "by the system's own call for many, by a loop where it has none. What sending takes after that is said apart."
)
ROUNDS = {"quick": 2, "full": 7}
SECONDS = {"quick": 0.4, "full": 1.0}
SIZE = 1000


def cases(options: Options, systems: Sequence[System]) -> list[Case]:
    """Stock Celery, whose loop is the measure, those with a call for many, and ours."""
    wanted = [system for system in systems if system.ours or system.bulk or system.name == "celery"]
    return [Case("bulk", "", system) for system in wanted if not system.twin]


def take(bench: Bench, case: Case, number: int) -> Sample:
    """Enqueue some thousand jobs at once, and count that they are there."""
    system, count = case.system, bench.options.bulk
    bench.world.reset(system)
    producer = bench.producers.of(system)
    producer.ask("many", first=bench.numbers(50), count=50, size=SIZE)
    found = producer.ask("many", first=bench.numbers(count), count=count, size=SIZE)
    if system.ours:
        there = bench.world.count(system, "SELECT count(*) FROM jobs_job")
        if there != count + 50:
            raise Failed(f"{count + 50} jobs were enqueued, {there} are there")
    figures = {"jobs_s": count / found["took"], "sent_s": count / (found["took"] + found["sending"])}
    if found["sending"]:
        figures["sending_us"] = found["sending"] * 1e6 / count
    return Sample("bulk", "", system.name, number, figures, {"own": found["own"]})
