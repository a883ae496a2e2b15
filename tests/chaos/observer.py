"""Who looks at order and limits from outside: what bodies did, by the ledger, beside what was promised. Pure.

It asks nobody how many slots are taken: a body that was killed counts until the last line that it wrote.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from tests.chaos.ledger import Run

SECOND = 1_000_000_000
END, BEGIN = 0, 1  # of two that happen at once, the end comes first


def most_at_once(runs: Iterable[Run]) -> int:
    """How many of these bodies ran at the same time, at the worst moment.

    >>> most_at_once([Run(1, "a", 1, 9, "-", 0, 5, 5), Run(2, "b", 1, 9, "-", 5, 8), Run(3, "c", 1, 8, "-", 7, 9)])
    2
    """
    running = most = 0
    for _, what in sorted(moment for run in runs for moment in ((run.began, BEGIN), (_left(run), END))):
        running += 1 if what == BEGIN else -1
        most = max(most, running)
    return most


def _left(run: Run) -> int:
    return max(run.began + 1, run.last if run.ended is None else run.ended)


def exceeded(runs: Sequence[Run], keys: Mapping[int, Sequence[str]], limits: Mapping[str, int]) -> list[str]:
    """The keys of which more bodies ran at once than allowed; ``keys`` are those of each job, by its number."""
    by_key: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        for key in keys.get(run.number, ()):
            by_key[key].append(run)
    found = {key: most_at_once(by_key[key]) for key in limits}
    return [
        f"{most} of {key} ran at once, {limits[key]} are allowed" for key, most in found.items() if most > limits[key]
    ]


def surplus(moments: Iterable[int], rate: float, burst: float, slack: float = 0.0) -> float:
    """By how many the worst window has more than the burst and what came in since; ``slack`` are seconds of blur.

    >>> surplus([0, 0, SECOND, SECOND], rate=1, burst=2), surplus([0, 0, 0], rate=1, burst=2)
    (1.0, 1.0)
    >>> surplus([0, 0, SECOND, 2 * SECOND], rate=1, burst=2)
    0.0
    """
    worst, fewest = 0.0, float("inf")
    for count, moment in enumerate(sorted(moments)):
        due = rate * moment / SECOND
        fewest = min(fewest, count - due)
        worst = max(worst, count + 1 - due - fewest - burst - rate * slack)
    return max(0.0, round(worst, 6))


def begun_between(runs: Iterable[Run], since: int, until: int) -> list[Run]:
    """The bodies that began in between."""
    return [run for run in runs if since < run.began < until]
