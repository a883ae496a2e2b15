"""Enqueue: what one call costs its caller, outside of a transaction and inside one that writes an order too."""

from __future__ import annotations

from collections.abc import Sequence

from tests.bench import figures
from tests.bench.measures.base import Bench, Case, Sample
from tests.bench.meter import SHOWN, Meter
from tests.bench.options import Options
from tests.bench.systems import System

ABOUT = (
    "Time in the caller, one call after the other on a kept connection. Outside: the call, its row committed, or its "
    "message sent, when it returns. Inside: a transaction that inserts an order and enqueues its job, until it has "
    "committed and, where there is one, the message is sent (`delay_on_commit`, `on_commit`). Of ours, a thread sends "
    "the messages meanwhile: it takes part of the time of the calls that follow; `until sent` has what "
    "is left after the last one too."
)
ROUNDS = {"quick": 3, "full": 9}
SECONDS = {"quick": 0.3, "full": 0.6}


def cases(options: Options, systems: Sequence[System]) -> list[Case]:
    """Everybody, both ways."""
    return [Case("enqueue", way, system) for way in ("outside", "inside") for system in systems if not system.twin]


def take(bench: Bench, case: Case, number: int) -> Sample:
    """Time some hundred calls, after some that do not count."""
    count, inside = bench.options.calls, case.case == "inside"
    bench.world.reset(case.system)
    producer = bench.producers.of(case.system)
    producer.ask("enqueue", first=bench.numbers(20), count=20, inside=inside)
    meter = Meter(bench.world, case.system)
    meter.start()
    answer = producer.ask("enqueue", first=bench.numbers(count), count=count, inside=inside)
    took = answer["took_us"]
    producer.ask("rest")
    found = {
        "p50_us": figures.quantile(took, 0.5),
        "p99_us": figures.quantile(took, 0.99),
        "jobs_s": count / (sum(took) / 1e6),
        "sent_s": count / (sum(took) / 1e6 + answer["sending"]),
        **meter.per_job(count),
    }
    more = {"took_us": [round(t, 1) for t in took], "jobs": count, "statements": meter.statements()[:SHOWN]}
    return Sample("enqueue", case.case, case.system.name, number, found, more)
