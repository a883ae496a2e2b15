"""The matrix as a page of the documentation: ``python -m tests.chaos.publish ours.json [celery.json …]``."""

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
    ours, *others = (json.loads(Path(path).read_text()) for path in paths)
    before, rest = PAGE.read_text().split(BEGIN)
    text = "\n".join([BEGIN, about(ours), "", *table(ours, others), END])
    PAGE.write_text(before + text + rest.split(END)[1])
    return 0


def about(run: dict[str, Any]) -> str:
    """Under which conditions a run was made."""
    kept = {name: value for name, value in run.items() if name != "rows" and isinstance(value, str | int | float)}
    return "Measured with " + ", ".join(f"{name} `{value}`" for name, value in sorted(kept.items())) + "."


def table(ours: dict[str, Any], others: Sequence[dict[str, Any]]) -> list[str]:
    """One line for each row, what plain Celery did at its end."""
    beside = {row["row"]: Outcome(**row) for run in others for row in run["rows"]}
    lines = [HEAD.format("plain Celery"), "|" + "---|" * 12]
    for outcome in (Outcome(**row) for row in ours["rows"]):
        counts = outcome.counts
        figures = [counts.get(name, "") for name in ("in", "completed", "failed", "cancelled", "lost", "unfinished")]
        back = "" if outcome.recovery_s is None else f"{outcome.recovery_s:.1f} s"
        if outcome.status != "ok":
            figures[0] = f"{outcome.status} {outcome.why}".strip()
        cells = [outcome.row, outcome.fault, outcome.must, *figures, counts.get("overlapping", ""), back]
        lines.append(f"| {' | '.join(str(cell) for cell in cells)} | {report.short(beside.get(outcome.row))} |")
    return lines


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
