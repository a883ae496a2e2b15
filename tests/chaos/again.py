"""Which rows of a run may be tried once more: ``python -m tests.chaos.again run.json`` prints them.

The rows have real kills on shared processors, and some only took too long. One that lost, doubled or overlapped
is proof enough: then the exit code is 1.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from tests.chaos import report


def main(paths: Sequence[str]) -> int:
    """Print the numbers of the rows to try again, separated by commas; return the exit code."""
    outcomes = [outcome for path in paths for outcome in report.read(Path(path))]
    failed = [outcome for outcome in outcomes if outcome.status in ("failed", "skipped")]
    print(",".join(str(outcome.row) for outcome in failed))  # noqa: T201
    broken = [outcome for outcome in failed if any(outcome.counts.get(name) for name in report.BAD)]
    return 1 if broken or not failed else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
