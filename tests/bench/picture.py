"""The wait behind a flood as a picture: bars of seconds on a scale in powers of ten, one for each way to wait."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from tests.bench.systems import SYSTEMS

PAGE = Path("docs/images/flood.svg")
LEAST = 0.01  # seconds at the left edge
LEFT, WIDE, ROW, TOP = 330, 400, 34, 62
OURS, THEIRS, TEXT, LINE = "#0b7a4b", "#8a8f98", "#4a4f57", "#c9ccd1"
FONT = "font-family='system-ui, sans-serif' font-size='13'"


@dataclass(frozen=True, slots=True)
class Bar:
    """One wait; ``open_end`` says that it was cut off, ``behind`` that its flood was a smaller one."""

    name: str
    seconds: float
    ours: bool = False
    open_end: bool = False
    behind: float = 0

    @property
    def label(self) -> str:
        """The wait in words.

        >>> Bar("x", 0.034).label, Bar("x", 20.0, open_end=True).label, Bar("x", 93.4).label
        ('0.03 s', 'more than 20 s', '93 s')
        """
        digits = 2 if self.seconds < 1 else 1 if self.seconds < 10 else 0
        smaller = f", behind {self.behind:,.0f}" if self.behind else ""
        return f"{'more than ' if self.open_end else ''}{self.seconds:.{digits}f} s{smaller}"


def bars(samples: Sequence[Mapping[str, Any]]) -> list[Bar]:
    """The bars of a run: each system's wait, then those in a queue of its own."""
    found = {sample["system"]: sample["figures"] for sample in samples if sample["measure"] == "flood"}
    most, made = max(figures["flood"] for figures in found.values()), []
    for name in (name for name in SYSTEMS if name in found):
        system, figures = SYSTEMS[name], found[name]
        behind = "" if system.ours else ", in the same queue"
        cut, less = figures.get("more_than_s"), figures["flood"] if figures["flood"] < most else 0
        made.append(Bar(f"{system.title}{behind}", cut or figures["waited_s"], system.ours, cut is not None, less))
        if "own_s" in figures:
            made.append(Bar(f"{system.title}, in a queue of its own", figures["own_s"]))
    return made


def drawn(made: Sequence[Bar], flood: int) -> str:
    """The picture as SVG."""
    high = TOP + ROW * len(made) + 34
    last = max(1, math.ceil(math.log10(max(bar.seconds for bar in made))))
    scale = WIDE / (last - math.log10(LEAST))
    parts = [
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 920 {high}' role='img' {FONT} fill='{TEXT}'>",
        f"<title>How long one tenant's single job waits behind another's {flood:,}</title>",
        "<rect width='100%' height='100%' fill='#ffffff'/>",
        f"<text x='16' y='26' font-size='16'>One job behind {flood:,} of somebody else: seconds until it begins</text>",
    ]
    for power in range(round(math.log10(LEAST)), last + 1):
        x = LEFT + scale * (power - math.log10(LEAST))
        parts.append(f"<line x1='{x:.0f}' x2='{x:.0f}' y1='{TOP - 14}' y2='{high - 30}' stroke='{LINE}'/>")
        parts.append(f"<text x='{x:.0f}' y='{high - 12}' text-anchor='middle'>{10.0**power:g} s</text>")
    for place, bar in enumerate(made):
        parts += _row(bar, TOP + ROW * place, scale)
    return "\n".join([*parts, "</svg>", ""])


def _row(bar: Bar, y: int, scale: float) -> list[str]:
    length = max(3.0, scale * (math.log10(max(bar.seconds, LEAST)) - math.log10(LEAST)))
    colour = OURS if bar.ours else THEIRS
    end = LEFT + length
    return [
        f"<text x='{LEFT - 10}' y='{y + 14}' text-anchor='end'>{escape(bar.name)}</text>",
        f"<rect x='{LEFT}' y='{y}' width='{length:.0f}' height='20' fill='{colour}'/>",
        *([f"<path d='M{end:.0f} {y} l8 10 l-8 10 z' fill='{colour}'/>"] if bar.open_end else []),
        f"<text x='{end + 14:.0f}' y='{y + 14}'>{bar.label}</text>",
    ]


def draw(run: Mapping[str, Any], page: Path = PAGE) -> bool:
    """Draw the picture of a run; False when it measured no flood, or only a small one."""
    samples = [sample for sample in run["samples"] if sample["measure"] == "flood"]
    if not samples or run["quick"]:
        return False
    page.write_text(drawn(bars(samples), round(max(sample["figures"]["flood"] for sample in samples))))
    return True


if __name__ == "__main__":
    import argparse
    import json

    parser = argparse.ArgumentParser(prog="python -m tests.bench.picture", description="Draw the picture of a flood.")
    parser.add_argument("report", type=argparse.FileType(), help="the JSON of a run that measured it")
    sys.exit(None if draw(json.load(parser.parse_args().report)) else "This run measured no flood, or a small one.")
