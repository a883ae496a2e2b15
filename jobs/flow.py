"""How many jobs the broker is to hold for the workers of a queue: as many as they take in a moment."""

from __future__ import annotations

import math
from dataclasses import dataclass

AHEAD = 500  # the most jobs that the broker holds for workers of a queue that have their hands full
MOMENT = 0.5  # seconds for which it holds some


@dataclass(slots=True)
class Flow:
    """How fast the workers of a queue take jobs, as this process saw it: they are sent no more than for a moment."""

    ahead: int = 1
    pace: float = 0.0  # jobs in a second
    left: int = 0  # that nobody had begun after the last release
    seen_at: float | None = None

    def further(self, reserved: int, now: float) -> int:
        """How many jobs the broker may hold beyond the hands of the workers, of which so many are there."""
        if self.seen_at is not None:
            passed = max(now - self.seen_at, 1e-3)
            weight = 1 - math.exp(-passed / MOMENT)
            self.pace += weight * (max(0, self.left - reserved) / passed - self.pace)
            if not reserved:
                self.ahead *= 2
            elif reserved >= self.ahead:
                self.ahead //= 2
            self.ahead = max(1, min(self.ahead, AHEAD, 1 + int(self.pace * MOMENT)))
        self.seen_at, self.left = now, reserved
        return self.ahead
