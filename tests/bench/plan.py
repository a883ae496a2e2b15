"""What a run takes, how often, and about how long that is. Pure: no clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tests.bench.measures import MEASURES
from tests.bench.measures.base import Case
from tests.bench.options import Options

STARTING = 8.0  # seconds until the servers run
PREPARING = 1.5  # seconds in which the tables of one system are made
HISTORY = 100.0  # seconds in which the cost of a history is measured


@dataclass(frozen=True, slots=True)
class Part:
    """A measure as a run takes it; ``seconds`` are about those of one sample."""

    name: str
    cases: Sequence[Case]
    rounds: int
    seconds: float

    @property
    def samples(self) -> int:
        """How many there are to be."""
        return self.rounds * len(self.cases)

    @property
    def length(self) -> float:
        """About how many seconds all of it takes."""
        return self.samples * self.seconds


def parts(options: Options) -> list[Part]:
    """The measures that were asked for, in their order."""
    kind = "quick" if options.quick else "full"
    found = [
        Part(name, module.cases(options, options.systems), options.rounds or module.ROUNDS[kind], module.SECONDS[kind])
        for name, module in MEASURES.items()
        if name in options.measures
    ]
    return [part for part in found if part.cases]


def with_history(options: Options) -> bool:
    """Whether the cost of a history is measured too."""
    return "scale" in options.measures and options.history > 0


def length(options: Options) -> float:
    """About how many seconds a run takes."""
    ready = STARTING + PREPARING * len(options.systems)
    return ready + sum(part.length for part in parts(options)) + HISTORY * with_history(options)


def ends(wanted: Sequence[Part], began: float, until: float) -> list[float]:
    """When the last round of each part must have begun: each has its share of the time.

    >>> drain, pickup = Part("drain", [None] * 3, 2, 10.0), Part("pickup", [None], 2, 10.0)
    >>> ends([drain, pickup], 100.0, 260.0)
    [220.0, 260.0]
    """
    whole, spent, found = sum(part.length for part in wanted), 0.0, []
    for part in wanted:
        spent += part.length
        found.append(began + (until - began) * spent / whole)
    return found


def clock(seconds: float) -> str:
    """Minutes and seconds.

    >>> clock(0), clock(65.2), clock(1500)
    ('0:00', '1:05', '25:00')
    """
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"
