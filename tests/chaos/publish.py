"""The matrix as a page: ``python -m tests.chaos.publish run.json …`` puts a table for each of our runs into it."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.chaos import report
from tests.chaos.one import Outcome

PAGE = Path("docs/reference/fault-matrix.md")
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
HEAD = (
    "| row | fault | Mainstay must | in | done | failed | cancelled | lost | unfinished | overlapping | back after "
    "| {} |"
)


def main(paths: Sequence[str]) -> int:
    """Put the outcomes of these runs into the page; return the exit code."""
    if not paths:
        print("Name the JSON of a run, and that of plain Celery beside it.", file=sys.stderr)  # noqa: T201
        return 2
    runs = [json.loads(Path(path).read_text()) for path in paths]
    before, rest = PAGE.read_text().split(BEGIN)
    lines = [BEGIN]
    for ours in (run for run in runs if run["against"] == "mainstay"):
        others = [run for run in runs if run["against"] == "celery" and run["broker"] == ours["broker"]]
        lines += ["", about(ours), "", *table(ours, others)]
    text = "\n".join([*lines, "", END])
    PAGE.write_text(before + text + rest.split(END)[1])
    return 0


def about(run: dict[str, Any]) -> str:
    """Under which conditions a run was made."""
    short = "shorter leases (6 s) and fewer jobs (`QUICK=1`)" if run["quick"] else "default settings"
    done = [row for row in run["rows"] if row["status"] != "n/a"]
    jobs = sum(row["counts"].get("in", 0) for row in done)
    return (
        f"**{run['broker']} and {run['database']}**, {short}, seed {run['seed']}: "
        f"{len(done)} rows with {jobs:,} jobs in {run['took_s']:.0f} s."
    )


def table(ours: dict[str, Any], others: Sequence[dict[str, Any]]) -> list[str]:
    """One line for each row, what plain Celery did at its end."""
    beside = {row["row"]: Outcome(**row) for run in others for row in run["rows"]}
    lines = [HEAD.format("plain Celery"), "|" + "---|" * 12]
    for outcome in (Outcome(**row) for row in ours["rows"] if row["status"] != "n/a"):
        counts = outcome.counts
        figures = [counts.get(name, "") for name in ("in", "completed", "failed", "cancelled", "lost", "unfinished")]
        other = beside.get(outcome.row)
        back = "" if outcome.recovery_s is None else f"{outcome.recovery_s:.1f} s"
        if outcome.status != "ok":
            figures[0] = f"{outcome.status} {outcome.why}".strip()
        cells = [outcome.row, outcome.fault, outcome.must, *figures, counts.get("overlapping", ""), back]
        lines.append(f"| {' | '.join(str(cell) for cell in cells)} | {_words(other)} |")
    return lines


def _words(other: Outcome | None) -> str:
    """What plain Celery did in a row; nothing where the row means nothing for it."""
    if other is None or other.status == "n/a":
        return ""
    if not other.counts:
        return "could not be played to its end"
    said = report.short(other)
    return said if said != "ok" or other.status == "ok" else other.problems[0]


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
