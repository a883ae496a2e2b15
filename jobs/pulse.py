"""When the lines are worth another look: what has changed is read first, so that nothing is locked in vain."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from jobs import lanes
from jobs.conf import current as settings

HURRY = 10  # looks where there was one tick, while somebody waits for others to end
LEAST = 2.5  # looks in a tick, however long those take to end
PART = 20  # looks in the time since something last ended


@dataclass(slots=True)
class Pulse:
    """How often a leader looks at the lines: soon after something has ended, at leisure where nothing can."""

    in_line: bool = False
    soon: bool = False
    changed_at: float = field(default_factory=time.monotonic)

    def something_changed(self) -> bool:
        """Whether jobs came, ended or became due, or have tokens again, since the last release."""
        changed, waits, flies, soon = lanes.changes(settings().TICK)
        self.in_line, self.soon = True, (waits and flies) or soon
        if changed:
            self.changed_at = time.monotonic()
        return changed or lanes.unfinished()

    def looked(self, *, in_line: bool) -> None:
        """A release has looked at everything; something was in line, or nothing was."""
        if in_line and not self.in_line:
            self.soon, self.changed_at = True, time.monotonic()
        self.in_line = in_line

    def rest(self) -> float:
        """How long to leave the lines alone; a tick, unless somebody may go before, or not at all was looked at."""
        tick = settings().TICK
        if self.in_line and lanes.unfinished():
            return tick / HURRY / HURRY
        if not (self.in_line and self.soon):
            return tick
        return min(max((time.monotonic() - self.changed_at) / PART, tick / HURRY), tick / LEAST)
