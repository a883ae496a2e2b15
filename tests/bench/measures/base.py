"""What every measure works with: the bench, a case of who and how, a sample of what was found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tests.bench.actors import Producers
from tests.bench.options import Options
from tests.bench.systems import System
from tests.bench.world import World


@dataclass(frozen=True, slots=True)
class Case:
    """One thing to take, round by round."""

    measure: str
    case: str
    system: System

    @property
    def title(self) -> str:
        """In words.

        >>> from tests.bench.systems import SYSTEMS
        >>> Case("drain", "solo", SYSTEMS["celery"]).title
        'drain, solo: celery'
        """
        return f"{self.measure}{', ' if self.case else ''}{self.case}: {self.system.name}"


@dataclass(frozen=True, slots=True)
class Sample:
    """What one round said of a case: ``figures`` are compared, ``more`` is kept beside them."""

    measure: str
    case: str
    system: str
    round: int
    figures: dict[str, float]
    more: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Bench:
    """What measures are taken on. ``pace`` is the jobs per second that a case showed last;
    ``speed``, how much of what was guessed of it another one reached, is for those that have shown none yet."""

    options: Options
    world: World
    producers: Producers
    pace: dict[str, float] = field(default_factory=dict)
    speed: float = 1.0
    first: int = 0

    def expected(self, case: Case) -> float:
        """About how many jobs per second to expect of a case."""
        return self.pace.get(case.title, case.system.pace * self.speed)

    def saw(self, case: Case, rate: float) -> None:
        """Remember what a case showed."""
        self.pace[case.title] = rate
        self.speed = min(1.0, max(0.1, rate / case.system.pace))

    def numbers(self, count: int) -> int:
        """The first of ``count`` numbers that no job of this run has had."""
        first, self.first = self.first, self.first + count
        return first
