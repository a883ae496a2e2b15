"""A run as a page: ``python -m tests.bench.publish .bench/bench.json`` puts its tables into docs/performance.md,
and draws what has a picture."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.bench import picture, report

PAGE = Path("docs/performance.md")
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


def main(paths: Sequence[str], page: Path = PAGE) -> int:
    """Put the tables of one run between the marks of the page; return the exit code."""
    try:
        (path,) = paths
        run = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        print(f"Name the JSON of one run, as `make bench` leaves it in .bench/ ({error}).", file=sys.stderr)  # noqa: T201
        return 2
    before, rest = page.read_text().split(BEGIN)
    page.write_text(f"{before}{BEGIN}\n\n{report.markdown(run)}\n{END}{rest.split(END)[1]}")
    picture.draw(run, page.parent / "images" / picture.PAGE.name)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
