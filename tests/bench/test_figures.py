"""The arithmetic behind the tables."""

from __future__ import annotations

import pytest

from tests.bench import figures
from tests.bench.figures import Spread


def test_a_spread_is_the_median_between_the_least_and_the_most() -> None:
    assert Spread.of([5.0, 1.0, 9.0, 2.0]) == Spread(3.5, 1.0, 9.0)


def test_a_p99_is_one_of_the_values() -> None:
    values = [1.0] * 98 + [50.0, 70.0]
    assert figures.quantile(values, 0.5) == 1.0
    assert figures.quantile(values, 0.99) == 50.0


def test_ratios_pair_the_values_of_a_round() -> None:
    # A machine that was twice as slow in the second round was so for both.
    assert figures.ratios({1: 400.0, 2: 200.0, 3: 390.0}, {1: 200.0, 2: 100.0}) == [2.0, 2.0]


def test_a_peer_without_a_rate_has_no_ratio() -> None:
    assert figures.ratios({1: 400.0}, {1: 0.0}) == []


def test_the_rate_of_a_drain_leaves_out_its_warm_up() -> None:
    # The first fifth took ten seconds, as a worker that starts does; the rest went at 40 a second.
    points = [(0.0, 0), (10.0, 20), (11.0, 60), (12.0, 100)]
    assert figures.rate_after_warm_up(points, 100, 12.0, 0.2) == (40.0, 10.0)


def test_the_rate_of_a_drain_counts_until_outcomes_are_recorded() -> None:
    assert figures.rate_after_warm_up([(0.0, 20), (2.0, 100)], 100, 4.0, 0.2)[0] == 20.0


def test_a_drain_that_was_too_short_has_no_rate() -> None:
    with pytest.raises(ValueError, match="too small"):
        figures.rate_after_warm_up([(1.0, 100)], 100, 1.0, 0.2)
