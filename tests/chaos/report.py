"""Telling what came of the rows: a line for each, a table at the end, JSON beside it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.chaos.one import Outcome

# What one line says, in this order.
FIGURES = (
    "in", "completed", "failed", "cancelled", "unfinished", "lost", "overlapping", "late_writes", "duplicate_effects",
    "bodies_overlapped",
)  # fmt: skip
BAD = ("unfinished", "lost", "overlapping", "late_writes", "duplicate_transactions")


def line(outcome: Outcome) -> str:
    """A row in one line.

    >>> line(Outcome(17, "x", "worker SIGKILL", "", "ok", counts={"in": 3}, recovery_s=1.2)).split()[:2]
    ['fault=17:worker-SIGKILL', 'in=3']
    """
    words = [f"fault={outcome.row}:{re.sub(r'[^A-Za-z0-9+.]+', '-', outcome.fault).strip('-')}"]
    if outcome.counts:
        words += [f"{name}={outcome.counts.get(name, 0)}" for name in FIGURES]
        words.append(f"recovery_s={'-' if outcome.recovery_s is None else outcome.recovery_s}")
        if outcome.counts.get("refused"):
            words.append(f"refused={outcome.counts['refused']}")
        words += [f"{name}={value}" for name, value in outcome.measures.items()]
    said = {"ok": "ok", "failed": "FAILED"}.get(outcome.status, outcome.status)
    return " ".join([*words, f"took_s={outcome.took_s}", said + (f": {outcome.why}" if outcome.why else "")])


def problems(outcome: Outcome) -> list[str]:
    """What was wrong with a row, indented under its line."""
    return [f"    {problem}" for problem in outcome.problems]


def show_table(console: Console, outcomes: Sequence[Outcome], other: Sequence[Outcome] = (), title: str = "") -> None:
    """The table at the end; with the outcomes of ``other`` beside ours where there are any."""
    table = Table(title=title)
    for name in ("row", "fault", "in", "done", "failed", "cancelled", "unfinished", "lost", "overlap", "late", "dup"):
        table.add_column(name, justify="left" if name == "fault" else "right", no_wrap=name != "fault")
    for name in ("bodies", "recovery", "", *(["the other"] if other else [])):
        table.add_column(name, justify="right", no_wrap=bool(name == "recovery"))
    beside = {outcome.row: outcome for outcome in other}
    for outcome in outcomes:
        cells = _cells(outcome)
        table.add_row(*cells, *([short(beside.get(outcome.row))] if other else []))
    # A log is no terminal of eighty columns.
    wide = console if console.is_terminal else Console(file=console.file, width=190, highlight=False)
    wide.print(table)


def _cells(outcome: Outcome) -> list[str]:
    counts: dict[str, Any] = outcome.counts
    figures = [str(counts.get(name, "")) for name in FIGURES]
    recovery = "" if outcome.recovery_s is None else f"{outcome.recovery_s:.1f} s"
    colour = {"ok": "green", "failed": "bold red"}.get(outcome.status, "yellow")
    return [str(outcome.row), outcome.fault, *figures, recovery, f"[{colour}]{outcome.status}[/]"]


def short(outcome: Outcome | None) -> str:
    """What the other side did in this row."""
    if outcome is None:
        return ""
    if not outcome.counts:
        return f"{outcome.status}: {outcome.why}"
    figures = {name: outcome.counts.get(name) for name in ("lost", "unfinished", "duplicate_effects", "refused")}
    return ", ".join(f"{value} {name.replace('_', ' ')}" for name, value in figures.items() if value) or "ok"


def write(path: Path, outcomes: Sequence[Outcome], about: dict[str, Any]) -> None:
    """Keep the outcomes as JSON."""
    from dataclasses import asdict

    rows = [asdict(outcome) for outcome in outcomes]
    path.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")


def read(path: Path) -> list[Outcome]:
    """The outcomes of an earlier run; none if there is none that can be read."""
    try:
        return [Outcome(**row) for row in json.loads(path.read_text())["rows"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []
