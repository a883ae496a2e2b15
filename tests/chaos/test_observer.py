"""The observer of order and limits sees what is too much, and nothing else: violations are planted before it."""

from __future__ import annotations

import random

import pytest

from tests.chaos import observer
from tests.chaos.ledger import Run
from tests.chaos.observer import SECOND


def run(number: int, began: int, last: int, ended: int | None = None) -> Run:
    """A body of job ``number``; without ``ended``, one that was killed after its last line."""
    return Run(number, f"job{number}", 1, 10 + number, "-", began, last, ended)


def test_two_bodies_where_one_is_allowed_are_seen() -> None:
    runs = [run(1, 0, 10, 10), run(2, 9, 20, 20)]
    assert observer.exceeded(runs, {1: ["a"], 2: ["a"]}, {"a": 1}) == ["2 of a ran at once, 1 are allowed"]


def test_bodies_of_other_keys_do_not_count() -> None:
    runs = [run(1, 0, 10, 10), run(2, 5, 20, 20)]
    assert observer.exceeded(runs, {1: ["a"], 2: ["b"]}, {"a": 1, "b": 1}) == []


def test_one_after_the_other_is_one_at_a_time() -> None:
    assert observer.most_at_once(each for each in [run(1, 0, 10, 10), run(2, 10, 20, 20)]) == 1


def test_a_killed_body_counts_until_its_last_line() -> None:
    assert observer.most_at_once([run(1, 0, 10), run(1, 11, 20, 20)]) == 1
    assert observer.most_at_once([run(1, 0, 12), run(1, 11, 20, 20)]) == 2


@pytest.mark.parametrize("seed", range(5))
def test_what_a_bucket_lets_go_is_never_too_much(seed: int) -> None:
    drawn, tokens, now, went = random.Random(seed), 4.0, 0, []
    for _ in range(500):
        passed = drawn.choice([0, 0, drawn.randrange(SECOND)])
        now, tokens = now + passed, min(4.0, tokens + 8 * passed / SECOND)
        if tokens >= 1:
            tokens -= 1
            went.append(now)
    assert observer.surplus(went, 8, 4) == pytest.approx(0, abs=1e-3)
    assert observer.surplus([*went, went[-1], went[-1], went[-1], went[-1], went[-1]], 8, 4) > 0


def test_a_surplus_in_the_middle_of_a_long_run_is_seen() -> None:
    quiet = [n * SECOND for n in range(60)]
    assert observer.surplus([*quiet, *[30 * SECOND + n for n in range(3)]], 1, 2) == pytest.approx(2, abs=0.01)


def test_what_began_in_between_is_found() -> None:
    runs = [run(1, 5, 6, 6), run(2, 15, 16, 16), run(3, 25, 26, 26)]
    assert [found.number for found in observer.begun_between(runs, 10, 20)] == [2]
