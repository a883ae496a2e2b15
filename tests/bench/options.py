"""What is asked for on the command line, checked. ``make bench`` fills it from its variables."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tests.bench import systems
from tests.bench.systems import System

MEASURES = ("enqueue", "bulk", "release", "limits", "pickup", "drain", "flood", "scale")
OFF = ("", "0", "no", "false")


class Mistake(Exception):
    """Something that was asked for cannot be; the message says what to write instead."""


@dataclass(frozen=True, slots=True)
class Options:
    """How a run is made. Seconds are those of one drain, and of one look at an idle system."""

    quick: bool = False
    measures: tuple[str, ...] = MEASURES
    systems: tuple[System, ...] = systems.ALL
    rounds: int | None = None
    check_musts: bool = False
    json: Path | None = None
    peers: str = ""

    @property
    def whole(self) -> bool:
        """Whether nothing was left out by choice."""
        return self.measures == MEASURES and self.systems == systems.ALL and self.rounds is None

    @property
    def budget(self) -> float:
        """Seconds after which no further round is begun: a run ends in time on a slow machine too."""
        if self.rounds is not None:
            return float("inf")
        return 170.0 if self.quick else 1340.0

    @property
    def seconds(self) -> float:
        """How long one drain is to take, about, without its warm-up."""
        return 1.4 if self.quick else 4.0

    @property
    def idle_seconds(self) -> float:
        """How long one look at an idle system takes at most."""
        return 4.0 if self.quick else 13.0

    @property
    def pickups(self) -> int:
        """Jobs of one look at an idle system, unless its time is over before."""
        return 60 if self.quick else 120

    @property
    def history(self) -> int:
        """Rows of the longest history whose cost is measured; 0 for none."""
        return 0 if self.quick else 300_000

    @property
    def calls(self) -> int:
        """Calls in one round of enqueueing."""
        return 100 if self.quick else 400

    @property
    def bulk(self) -> int:
        """Jobs in one round of bulk."""
        return 2000 if self.quick else 5000

    @property
    def released(self) -> int:
        """Rows in one round of release."""
        return 2000 if self.quick else 3000


def parse(arguments: Sequence[str] | None = None) -> Options:
    """The options, checked. Raises ``Mistake``."""
    parser = argparse.ArgumentParser("python -m tests.bench", description="Measure Mainstay beside its peers.")
    flag = {"nargs": "?", "const": "1", "default": ""}
    parser.add_argument("--quick", help="fewer rounds and peers; fits in three minutes", **flag)  # type: ignore[arg-type]
    parser.add_argument("--measure", default="", help=f"some of {', '.join(MEASURES)}; all by default")
    parser.add_argument("--peers", default="", help="some of the peers, as in celery,rq; all by default")
    parser.add_argument("--rounds", default="", help="rounds of each measure")
    parser.add_argument("--json", default="", help="where the report is kept too, as JSON")
    parser.add_argument("--check-musts", help="exit with 1 when a must is not met or a peer failed", **flag)  # type: ignore[arg-type]
    parser.add_argument("--before", default="", help="another checkout of Mainstay, to compare with")
    asked = parser.parse_args(arguments)
    try:
        chosen = (*systems.chosen(asked.peers), *other_checkout(asked.before))
    except systems.Unknown as error:
        raise Mistake(str(error)) from None
    return Options(
        quick=asked.quick not in OFF,
        measures=measures_of(asked.measure),
        systems=chosen,
        rounds=rounds_of(asked.rounds),
        check_musts=asked.check_musts not in OFF,
        json=Path(asked.json) if asked.json else None,
        peers=asked.peers,
    )


def other_checkout(folder: str) -> list[System]:
    """Mainstay as another folder has it, if one is named. Raises ``Mistake``."""
    if not folder:
        return []
    root = Path(folder).resolve()
    if not all((root / name).exists() for name in ("manage.py", "jobs", "project")):
        raise Mistake(
            f"BEFORE={folder} is no checkout of Mainstay. Make one beside this one: git worktree add ../other <commit>"
        )
    return [replace(systems.OTHER, root=str(root))]


def measures_of(words: str) -> tuple[str, ...]:
    """The measures that ``MEASURE=`` names; all where it names none. Raises ``Mistake``."""
    names = [word.strip() for word in words.split(",") if word.strip()]
    for name in names:
        if name not in MEASURES:
            close = difflib.get_close_matches(name, MEASURES, 1)
            there = f"Did you mean {close[0]}?" if close else f"There are: {', '.join(MEASURES)}."
            raise Mistake(f"MEASURE={name} is not a measure. {there}")
    return tuple(name for name in MEASURES if not names or name in names)


def rounds_of(word: str) -> int | None:
    """How many rounds ``ROUNDS=`` asks for. Raises ``Mistake``."""
    if not word:
        return None
    if not word.isdigit() or not 1 <= int(word) <= 100:
        raise Mistake(f"ROUNDS={word} cannot be. Set it to how often each measure is to be taken: 3, 5, 7 …")
    return int(word)
