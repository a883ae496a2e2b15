"""The matrix as a page: ``python -m tests.chaos.publish run.json …`` puts a table for each of our runs into it.

``python -m tests.chaos.publish --rows run.json …`` puts the rows of such runs among those that are there.
"""

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
    rows = paths[0] == "--rows"
    runs = [json.loads(Path(path).read_text()) for path in paths[rows:]]
    before, rest = PAGE.read_text().split(BEGIN)
    known, after = rest.split(END)
    text = among(known.strip(), runs) if rows else anew(runs)
    PAGE.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")
    return 0


def anew(runs: Sequence[dict[str, Any]]) -> str:
    """A table for each of our runs, with plain Celery beside it."""
    lines: list[str] = []
    for ours in (run for run in runs if run["against"] == "mainstay"):
        others = [run for run in runs if run["against"] == "celery" and run["broker"] == ours["broker"]]
        lines += [about(ours), "", *table(ours, others), ""]
    return "\n".join(lines).strip()


def among(page: str, runs: Sequence[dict[str, Any]]) -> str:
    """The tables that are there, with the rows of these runs in their places, and a sentence about each run."""
    for run in runs:
        name = f"**{run['broker']} and {run['database']}**"
        start = page.index(name)
        end = page.find("\n\n**", start) % (len(page) + 1)
        told, lines = page[start:end].split("\n\n", 1)
        head, new = lines.splitlines()[:2], {number(line): line for line in table(run, [])[2:]}
        old = {number(line): line for line in lines.splitlines()[2:] if line.startswith("|")}
        rows = [line for _, line in sorted((old | new).items())]
        apart = f"Row{'s' * (len(new) > 1)} {spoken(sorted(new))} later, {conditions(run)}."
        kept = [one for one in told.splitlines() if not one.startswith(apart.partition(" later, ")[0] + " ")]
        page = page[:start] + "\n".join([*kept, apart, "", *head, *rows]) + page[end:]
    return page


def number(line: str) -> int:
    """The row of a line of a table."""
    return int(line.split("|")[1])


def spoken(numbers: Sequence[int]) -> str:
    """Numbers as one says them.

    >>> spoken([220, 221, 222, 228])
    '220–222, 228'
    """
    spans: list[list[int]] = []
    for one in numbers:
        if spans and one == spans[-1][-1] + 1:
            spans[-1].append(one)
        else:
            spans.append([one])
    return ", ".join(str(span[0]) if len(span) == 1 else f"{span[0]}–{span[-1]}" for span in spans)


def about(run: dict[str, Any]) -> str:
    """Which run it is, and under which conditions it was made."""
    return f"**{run['broker']} and {run['database']}**, {conditions(run)}."


def conditions(run: dict[str, Any]) -> str:
    """Under which conditions a run was made."""
    short = "shorter leases (6 s) and fewer jobs (`QUICK=1`)" if run["quick"] else "default settings"
    done = [row for row in run["rows"] if row["status"] != "n/a"]
    jobs = sum(row["counts"].get("in", 0) for row in done)
    rows = f"{len(done)} row{'s' * (len(done) != 1)}"
    return f"{short}, seed {run['seed']}: {rows} with {jobs:,} jobs in {run['took_s']:.0f} s"


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
