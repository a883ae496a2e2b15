"""How fast a worker ends jobs: while they end within a moment, it may hold a few more than it has hands for.

Each look at the broker then brings several, and no hand waits for one. As soon as jobs take longer, none waits here
while another worker is idle.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from time import monotonic

SPAN = 0.04  # seconds: as many as end within them may be held ahead
SPANS = 3  # in a row, in each of which some must have ended: long jobs may end together, but not again and again
MOST = 32  # of them for each that may be held anyway


class Pace:
    """Counts the ends of jobs, by spans of time."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._began = self._fast = clock()
        self._count = 0
        self._before = deque([0] * SPANS, SPANS)

    def note(self) -> None:
        """A job has ended."""
        self._turn()
        self._count += 1

    def ahead(self, allowed: int) -> int:
        """How many messages may be held beyond those that are ``allowed`` anyway."""
        self._turn()
        return min(sum(self._before) // SPANS, MOST * allowed) if all(self._before) else 0

    @property
    def slow_for(self) -> float:
        """For how many seconds jobs have not ended within a moment of each other."""
        return self._turn() - self._fast

    def _turn(self) -> float:
        """Begin the next span when it is time; return the time."""
        now = self._clock()
        passed = int((now - self._began) / SPAN)
        if passed:
            self._before.extend([self._count, *[0] * min(passed - 1, SPANS)])
            self._began, self._count = now, 0
            if all(self._before):
                self._fast = now
        return now
