"""Arithmetic of samples: medians, quantiles, ratios within a round. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True)
class Spread:
    """What several rounds said of one thing: the median, and how far apart they were."""

    middle: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of one value or more.

        >>> Spread.of([3.0, 1.0, 2.0])
        Spread(middle=2.0, low=1.0, high=3.0)
        """
        return cls(median(values), min(values), max(values))


def quantile(values: Sequence[float], part: float) -> float:
    """The smallest value that is not less than ``part`` of them.

    >>> quantile([1, 2, 3, 4, 5, 6, 7, 8, 9, 10], 0.5), quantile(range(1, 101), 0.99), quantile([7], 0.99)
    (5, 99, 7)
    """
    ordered = sorted(values)
    return ordered[max(0, math.ceil(part * len(ordered)) - 1)]


def ratios(ours: Mapping[int, float], theirs: Mapping[int, float]) -> list[float]:
    """Ours divided by theirs, round by round, for the rounds that both have: what a round suffers, both suffer.

    >>> ratios({1: 6.0, 2: 9.0, 3: 1.0}, {1: 3.0, 2: 3.0})
    [2.0, 3.0]
    """
    return [value / theirs[number] for number, value in sorted(ours.items()) if theirs.get(number)]


def rate_after_warm_up(points: Sequence[tuple[float, int]], total: int, end: float, warm: float) -> tuple[float, float]:
    """Jobs per second of a drain that ended at ``end``, without its first part; and when that part was over.

    ``points`` are (seconds, jobs done so far). A drain whose whole backlog was done between two looks has no rate.

    >>> rate_after_warm_up([(0.0, 0), (1.0, 20), (2.0, 60), (3.0, 100)], 100, 3.0, 0.2)
    (40.0, 1.0)
    """
    began, done = next((at, count) for at, count in points if count >= warm * total)
    if done >= total or end <= began:
        raise ValueError("The backlog was too small for how fast it was drained.")
    return (total - done) / (end - began), began


def short(value: float) -> str:
    """A figure in three digits.

    >>> [short(x) for x in (0.0456, 0.812, 4.256, 37.91, 512.4, 13456.0)]
    ['0.046', '0.81', '4.26', '37.9', '512', '13,456']
    """
    digits = 3 if value < 0.1 else 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:,.{digits}f}"
