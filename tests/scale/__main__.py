"""``python -m tests.scale``, which ``make scale`` calls: the growth of each cost, as a table."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from tests.scale.stage import SETTINGS, staged

if TYPE_CHECKING:
    from tests.scale.operations import Cost

STEPS = (10_000, 100_000, 1_000_000, 10_000_000)
MUST = 2.0


def main() -> int:
    """Fill, measure, tell; not 0 where a cost has grown by more than it may."""
    parser = argparse.ArgumentParser(prog="make scale", description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="the longest history (default: 1,000,000)")
    rows = parser.parse_args().rows
    lengths = [step for step in STEPS if step < rows] + [rows]
    say(f"PostgreSQL with {', '.join(f'{k} = {v}' for k, v in SETTINGS.items())}; else its defaults, fsync on")
    say(f"about {rows * 1500 // 10**9 + 1} GB of disk are needed in the temporary folder")
    costs: dict[int, dict[str, Cost]] = {}
    with staged():
        for length in lengths:
            costs[length] = measured(length)
        _tell_sizes()
    say(f"\n{table(costs)}")
    grown = {name: grown for name, grown in growth(costs).items() if grown > MUST}
    for name, times in grown.items():
        say(f"{name}: {times:.1f} times as much at {lengths[-1]:,} rows as at {lengths[0]:,}")
    return 1 if grown else 0


def say(text: str, end: str = "\n") -> None:
    """Write it now."""
    sys.stdout.write(text + end)
    sys.stdout.flush()


def measured(rows: int) -> dict[str, Cost]:
    """The cost of each operation with so many rows."""
    from tests.scale import history, operations

    began = time.monotonic()

    def told(done: int, of: int) -> None:
        say(f"\rfilling: {done:,} of {of:,} rows, {time.monotonic() - began:.0f} s ", end="")

    history.fill(rows, told)
    say(f"\rfilled with {rows:,} rows, indexed and vacuumed in {time.monotonic() - began:.0f} s")
    return {each.name: each.cost() for each in operations.operations()}


def _tell_sizes() -> None:
    from tests.scale import operations

    for name, size in operations.sizes():
        say(f"{name}: {size / 10**6:,.1f} MB")


def growth(costs: Mapping[int, Mapping[str, Cost]]) -> dict[str, float]:
    """How many times as much work each operation is with the longest history as with the shortest.

    Of processors: what else the machine does meanwhile is no part of it.
    """
    first, last = costs[min(costs)], costs[max(costs)]
    return {name: last[name].cpu / first[name].cpu for name in first}


def table(costs: Mapping[int, Mapping[str, Cost]]) -> str:
    """The costs in milliseconds, as Markdown: of processors, and behind them on the clock."""
    lengths, grown = sorted(costs), growth(costs)
    lines = ["| ms of processor (on the clock) | " + " | ".join(f"{n:,}" for n in lengths) + " | growth |"]
    lines.append("|---|" + "---:|" * (len(lengths) + 1))
    for name in costs[lengths[0]]:
        numbers = " | ".join(f"{costs[n][name].cpu:.2f} ({costs[n][name].wall:.1f})" for n in lengths)
        lines.append(f"| {name} | {numbers} | {grown[name]:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
