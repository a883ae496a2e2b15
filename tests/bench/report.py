"""Telling what was measured: a line for each sample, tables at the end, JSON beside them."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.bench import floor, measures, musts, systems
from tests.bench.figures import Spread, quantile, ratios, short
from tests.bench.measures.base import Sample
from tests.bench.systems import SYSTEMS

# What a table of a measure shows: a column's head, the figure, and whether more is better (None: no ratio).
# What is in POOLED is that of the values of all rounds together.
COLUMNS: dict[str, tuple[tuple[str, str, bool | None], ...]] = {
    "enqueue": (
        ("p50, µs", "p50_us", False),
        ("p99, µs", "p99_us", None),
        ("of calls", "took_us", None),
        ("jobs/s", "jobs_s", None),
        ("jobs/s until sent", "sent_s", None),
        ("statements", "statements", None),
        ("WAL, bytes", "wal_bytes", None),
    ),
    "bulk": (
        ("jobs/s", "jobs_s", True),
        ("sending after that, µs a job", "sending_us", None),
        ("jobs/s until sent", "sent_s", None),
    ),
    "release": (("jobs/s", "jobs_s", None),),
    "limits": (("jobs/s", "jobs_s", None),),
    "flood": (
        ("jobs before it", "flood", None),
        ("waited, s", "waited_s", None),
        ("waited more than, s", "more_than_s", None),
        ("of the flood that ran meanwhile", "before", None),
        ("waited in a queue of its own, s", "own_s", None),
    ),
    "drain": (("jobs/s", "jobs_s", True), ("worker's memory, MB", "memory_mb", None)),
    "pickup": (
        ("from the broker, p50, ms", "broker_p50_ms", False),
        ("p99, ms", "broker_p99_ms", None),
        ("of jobs", "broker_took_ms", None),
        ("from the call, p50, ms", "call_p50_ms", False),
        ("p99, ms", "call_p99_ms", None),
        ("of jobs", "call_took_ms", None),
    ),
}
POOLED = {"p99_us": "took_us", "broker_p99_ms": "broker_took_ms", "call_p99_ms": "call_took_ms"}
ENOUGH = 100  # values that a p99 needs: of fewer it is the worst, whatever that was
COSTS = (
    ("statements", "statements"), ("WAL, bytes", "wal_bytes"), ("WAL syncs", "wal_syncs"),
    ("Redis commands", "redis_commands"), ("Redis, bytes", "redis_bytes"), ("worker, ms", "worker_cpu_ms"),
    ("conductor, ms", "aide_cpu_ms"), ("PostgreSQL, ms", "postgres_cpu_ms"), ("Redis, ms", "redis_cpu_ms"),
)  # fmt: skip
COST = "What one job of a drain costs the servers and the processors; milliseconds are of processor time:"
BASE = "celery"
# A statement that fewer of the jobs need is not shown; a longer one is clipped.
SELDOM, WIDTH = 0.05, 100
LONGEST = 124


Place = tuple[str, str, str]  # a measure, a case, a system


class Findings:
    """The samples of a run, by case."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        self.samples = list(samples)
        self.by_case: dict[Place, dict[int, dict[str, float]]] = {}
        self.pooled: dict[tuple[Place, str], list[float]] = {}
        for sample in self.samples:
            place = (sample.measure, sample.case, sample.system)
            self.by_case.setdefault(place, {})[sample.round] = sample.figures
            for values in POOLED.values():
                self.pooled.setdefault((place, values), []).extend(sample.more.get(values, ()))

    def cell(self, place: Place, figure: str) -> str:
        """What a table says of a figure."""
        if figure in POOLED.values():
            return f"{len(self.pooled.get((place, figure), ())):,}"
        found = self.spread(place, figure)
        if found is not None and figure in POOLED:
            values = self.pooled.get((place, POOLED[figure]), [])
            found = replace(found, middle=quantile(values, 0.99)) if len(values) >= ENOUGH else None
        return spread(found)

    def spread(self, place: Place, figure: str) -> Spread | None:
        """What the rounds of a case said of a figure."""
        values = [found[figure] for found in self.by_case.get(place, {}).values() if figure in found]
        return Spread.of(values) if values else None

    def ratio(self, place: Place, figure: str, base: str = BASE) -> Spread | None:
        """The same divided by what the base showed in the same rounds."""
        measure, case, _ = place
        both = [{n: v[figure] for n, v in self.by_case.get(p, {}).items() if figure in v}
                for p in (place, (measure, case, base))]  # fmt: skip
        found = ratios(*both)
        return Spread.of(found) if found else None

    def cases(self, measure: str) -> list[str]:
        """The cases of a measure, in the order in which they came."""
        return list(dict.fromkeys(case for name, case, _ in self.by_case if name == measure))

    def systems(self, measure: str, case: str) -> list[str]:
        """Who has samples of a case, in the order of the table of systems."""
        return [name for name in SYSTEMS if (measure, case, name) in self.by_case]


# --- Markdown ---------------------------------------------------------------------------------------------------


def markdown(run: dict[str, Any]) -> str:
    """All tables of a run."""
    found = Findings(Sample(**sample) for sample in run["samples"])
    parts = [about(run), must_table(found)]
    for measure in (name for name in run["measures"] if name in measures.MEASURES):
        parts += [f"### {measure.capitalize()}", measures.MEASURES[measure].ABOUT]
        parts += [case_table(found, measure, case) for case in found.cases(measure)]
        if measure == "drain" and found.cases("drain"):
            parts += [COST, cost_table(found)]
    parts += [statement_tables(found), "### Settings", settings_table(run)]
    if run.get("history"):
        said = [line for line in run["history"] if not line.startswith("|")]
        parts += ["### History", "\n".join(said), "\n".join(line for line in run["history"] if line not in said)]
    missing = [*(f"* {name}: {why}" for name, why in run["failed"].items())]
    missing += [f"* for want of time: {', '.join(run['late'])}"] if run.get("late") else []
    parts += ["### Not measured", *missing] if missing else []
    return wrapped("\n\n".join(part for part in parts if part)) + "\n"


def wrapped(text: str) -> str:
    """The same with no long lines but those of tables."""
    lines = []
    for each in text.splitlines():
        indent = "  " if each.startswith("* ") else ""
        long = len(each) > LONGEST and not each.startswith("|")
        lines += textwrap.wrap(each, LONGEST, subsequent_indent=indent, break_long_words=False) if long else [each]
    return "\n".join(lines)


def about(run: dict[str, Any]) -> str:
    """Where and when a run was made."""
    machine = run["machine"]
    where = f"{machine['processors']} × {machine['processor']}, {machine['memory_gb']} GB, {machine['system']}"
    took = f"{run['took_s'] / 60:.1f} minutes"
    kind = "quick" if run["quick"] else "full" if run.get("whole", True) else "partial"
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    lines = [
        f"A {kind} run of {took} on {where}; load at its start {machine['load']}.",
        f"Versions: {versions}; {run['servers']}.",
        "Figures are medians over rounds, with the least and the most in brackets; ratios are taken within rounds.",
        f"A p99 is that of all rounds together, its brackets those of a round; of fewer than {ENOUGH} there is none.",
        floor.described(run["floor"]),
        *run["warnings"],
    ]
    return "\n".join(lines)


def must_table(found: Findings) -> str:
    """Each must, and what came of it."""
    rows = [
        [verdict.must.what, verdict.must.wanted, times(verdict.ratio, verdict.must.unit), f"**{verdict.status}**"]
        for verdict in musts.judged(found.by_case)
    ]
    elsewhere = "\n".join(f"* not measured here: {words}" for words in musts.ELSEWHERE)
    return f"{table(['what', 'must', 'ratio', ''], rows)}\n\n{elsewhere}"


def case_table(found: Findings, measure: str, case: str) -> str:
    """One table: a line for each system."""
    columns = COLUMNS[measure]
    heads = [case or measure, *(head for head, _, _ in columns)]
    compared = {figure: head.split(",")[0] for head, figure, more in columns if more is not None}
    heads += [
        f"{head}: against stock Celery" if len(compared) > 1 else "against stock Celery" for head in compared.values()
    ]
    rows = []
    for name in found.systems(measure, case):
        place = (measure, case, name)
        cells = [SYSTEMS[name].title, *(found.cell(place, figure) for _, figure, _ in columns)]
        cells += [times(found.ratio(place, figure)) for figure in compared]
        rows.append([*cells, SYSTEMS[name].keeps])
    return table([*heads, "keeps"], rows)


def cost_table(found: Findings) -> str:
    """What a job of a drain costs, for each system and pool."""
    rows = []
    for case in found.cases("drain"):
        for name in found.systems("drain", case):
            cells = [middle(found.spread(("drain", case, name), figure)) for _, figure in COSTS]
            rows.append([f"{SYSTEMS[name].title}, {case}", *cells])
    return table(["a job of", *(head for head, _ in COSTS)], rows)


def statement_tables(found: Findings) -> str:
    """What our jobs ask of PostgreSQL, statement by statement, where it was counted."""
    parts = []
    for measure, case in (("enqueue", "outside"), ("drain", "prefork")):
        for name in found.systems(measure, case):
            rows = statements(found, (measure, case, name)) if SYSTEMS[name].ours else []
            if rows:
                heads = [f"{measure}, {SYSTEMS[name].title}", "times a job", "ms each", "WAL, bytes each"]
                parts.append(table(heads, rows))
    return "\n\n".join(["### Statements of a job", *parts]) if parts else ""


def statements(found: Findings, place: Place) -> list[list[str]]:
    """A line for each statement that a noticeable part of the jobs needs, over all rounds of a case."""
    calls: dict[str, list[float]] = {}
    samples = [one for one in found.samples if (one.measure, one.case, one.system) == place]
    for sample in samples:
        for row in sample.more.get("statements", []):
            seen = calls.setdefault(row["query"], [0, 0.0, 0.0])
            calls[row["query"]] = [seen[0] + row["calls"], seen[1] + row["ms"], seen[2] + row["wal_bytes"]]
    jobs = sum(sample.more.get("jobs", 0) for sample in samples) or 1
    common = sorted(((times / jobs, query) for query, (times, _, _) in calls.items()), reverse=True)
    return [
        [f"`{clipped(query)}`", short(times), short(calls[query][1] / calls[query][0]),
         short(calls[query][2] / calls[query][0])]
        for times, query in common if times >= SELDOM
    ]  # fmt: skip


def clipped(query: str) -> str:
    """A statement in one short line, in which nothing can be taken for the end of a cell or of code.

    >>> clipped("SELECT a || b FROM t"), clipped("SELECT " + "column, " * 40)[-8:]
    ('SELECT a ‖ b FROM t', 'column …')
    """
    clean = query.replace("||", "‖").replace("|", "¦").replace("`", "'")
    return clean if len(clean) <= WIDTH else f"{clean[:WIDTH].rpartition(' ')[0].rstrip(',')} …"


def settings_table(run: dict[str, Any]) -> str:
    """How each system was run, as its processes were told."""
    named = {sample["system"] for sample in run["samples"]}
    rows = [[SYSTEMS[name].title, run["settings"][name]] for name in SYSTEMS if name in named]
    return f"{systems.EVERY_PEER}.\n\n{table(['system', 'workers and settings'], rows)}"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; nothing without rows.

    >>> print(table(["a", "b"], [["1", "x | y"]]))
    | a | b |
    |---|---|
    | 1 | x / y |
    """
    if not rows:
        return ""
    lines = [heads, *rows]
    clean = ["| " + " | ".join(cell.replace(" | ", " / ") for cell in line) + " |" for line in lines]
    return "\n".join([clean[0], "|" + "---|" * len(heads), *clean[1:]])


def spread(found: Spread | None) -> str:
    """A median with its bounds.

    >>> spread(Spread(431.2, 402.9, 455.0)), spread(None)
    ('431 (403–455)', '')
    """
    return "" if found is None else f"{short(found.middle)} ({short(found.low)}–{short(found.high)})"


def middle(found: Spread | None) -> str:
    """A median alone."""
    return "" if found is None else short(found.middle)


def times(found: Spread | None, unit: str = "×") -> str:
    """A ratio with its bounds, or a figure with its unit.

    >>> times(Spread(1.254, 1.1, 1.4))
    '1.25× (1.10–1.40)'
    """
    return "" if found is None else f"{short(found.middle)}{unit} ({short(found.low)}–{short(found.high)})"


# --- Lines and files -------------------------------------------------------------------------------------------


def line(sample: Sample) -> str:
    """A sample in one line.

    >>> line(Sample("drain", "solo", "celery", 2, {"jobs_s": 412.3, "memory_mb": 60}))
    'drain solo celery round=2 jobs_s=412 memory_mb=60.0'
    """
    names = [figure for _, figure, _ in COLUMNS[sample.measure] if figure in sample.figures]
    figures = [f"{name}={short(sample.figures[name])}" for name in names]
    return " ".join(
        word for word in [sample.measure, sample.case, sample.system, f"round={sample.round}", *figures] if word
    )


def write(path: Path, run: dict[str, Any]) -> None:
    """Keep a run: as JSON, and its tables beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(run, ensure_ascii=False) + "\n")
    path.with_suffix(".md").write_text(markdown(run))
