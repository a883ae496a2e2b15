"""Slots of a worker without child processes that are held by bodies which nobody can stop.

Such a thread is lost until its process ends. The others go on; a worker that has none left ends itself.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
from contextlib import suppress

from jobs import heartbeat

logger = logging.getLogger("jobs.slots")

EXIT = 70  # an internal software error, in sysexits.h: whoever supervises workers starts another

_told = 0


def held_for_good(slots: int) -> int:
    """How many of a worker's slots are held for good; told when it changes. With the last one, the process ends."""
    global _told
    hung = heartbeat.hung()
    if len(hung) > _told:
        jobs = ", ".join(str(entry.job.pk) for entry in hung)
        logger.error(
            "%d of %d slots are held by bodies that cannot be stopped, past their time limit: %s. "
            "Only the end of this process frees them.", len(hung), slots, jobs,
        )  # fmt: skip
    _told = len(hung)
    if len(hung) >= slots > 0:
        _end(slots)
    return len(hung)


def _end(slots: int) -> None:
    """All that this worker holds has been taken over by others, and it can begin nothing."""
    logger.critical("All %d slots are held by bodies that cannot be stopped: this worker ends.", slots)
    with suppress(Exception):
        faulthandler.dump_traceback(file=sys.__stderr__)  # type: ignore[arg-type]
    os._exit(EXIT)
