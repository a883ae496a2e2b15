"""Releasing what is due: choose, mark as sent, send, and let wait again what could not be sent.

Any number of processes may release at once: each due job is marked, and so sent, by one of them. Who dies in between
leaves a reserved job without a message, which the reconciler finds.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

from jobs import lanes, lifecycle, outbox, publisher, successors
from jobs.conf import current as settings
from jobs.models import Job
from jobs.pulse import Pulse
from jobs.states import State


def release(limit: int | None = None) -> int:
    """Hand up to ``limit`` due jobs to the broker, most urgent first; return how many went.

    One that cannot be made into a message, however often it is tried, becomes a dead letter.
    """
    return Releases().release(limit)


@dataclass(slots=True)
class Releases:
    """The releases of one process, and when the next one is worth it."""

    pulse: Pulse = field(default_factory=Pulse)
    _whole_at: float = -math.inf
    _hurried: bool = False

    def release(self, limit: int | None = None) -> int:
        """Release what is due; in a hurry, only what is in line, and only if something has changed there."""
        if publisher.in_use().paused:
            self._hurried = False
            return 0
        limit = limit or int(settings().RELEASE_BATCH)
        if self._hurried and time.monotonic() - self._whole_at < settings().TICK:
            jobs = lanes.release(limit) if self.pulse.something_changed() else []
        else:
            self._whole_at = time.monotonic()
            jobs = self._whole(limit)
        return outbox.send(jobs, _give_up)

    def _whole(self, limit: int) -> list[Job]:
        direct = lifecycle.reserve_due_unless(lanes.IN_LINE, limit)
        self.pulse.looked(in_line=direct is None)
        if direct is not None:
            return direct
        jobs = lanes.release(limit)
        return [*jobs, *lifecycle.reserve_due(limit - len(jobs))] if len(jobs) < limit else jobs

    def rest(self) -> float:
        """How long to wait for the next one, where nothing was released."""
        pause = settings().TICK if publisher.in_use().paused else self.pulse.rest()
        self._hurried = pause < settings().TICK
        return pause


def _give_up(job: Job) -> None:
    """End a job with the reason and the error that the last try left on it."""
    successors.finish(job, State.FAILED, job.reason)
