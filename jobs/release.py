"""Releasing what is due: choose, mark as sent, send, and let wait again what could not be sent.

Any number of processes may release at once: each due job is marked, and so sent, by one of them. Who dies in between
leaves a reserved job without a message, which the reconciler finds.
"""

from __future__ import annotations

from jobs import lanes, lifecycle, outbox, publisher, successors
from jobs.conf import current as settings
from jobs.models import Job
from jobs.states import State


def release(limit: int | None = None) -> int:
    """Hand up to ``limit`` due jobs to the broker, most urgent first; return how many went.

    One that cannot be made into a message, however often it is tried, becomes a dead letter.
    """
    if publisher.in_use().paused:
        return 0
    limit = limit or int(settings().RELEASE_BATCH)
    in_line = lanes.release(limit)
    direct = lifecycle.reserve_due(limit - len(in_line)) if len(in_line) < limit else []
    return outbox.send([*in_line, *direct], _give_up)


def _give_up(job: Job) -> None:
    """End a job with the reason and the error that the last try left on it."""
    successors.finish(job, State.FAILED, job.reason)
