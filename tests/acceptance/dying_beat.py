"""A beat that kills itself when it comes to a point: ``python -m tests.acceptance.dying_beat POINT``."""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from celery.__main__ import main
from celery.signals import beat_init

# Before or after which function of the ledger it dies.
POINTS = {
    "before the transaction": ("decide", False),
    "when the row is taken": ("_leave_out", False),
    "before the tick": ("_fire", False),
    "when the job is recorded": ("_fire", True),
    "before the commit": ("_advance", True),
    "after the commit": ("decide", True),
}


def die_at(point: str) -> None:
    """Put the death where the ledger will meet it."""
    from jobs.schedule import ledger

    name, after = POINTS[point]
    function: Callable[..., Any] = getattr(ledger, name)

    def deadly(*given: Any) -> None:
        if after:
            function(*given)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(ledger, name, deadly)


if __name__ == "__main__":
    point, sys.argv = sys.argv[1], ["celery", "-A", "project", "beat"]
    beat_init.connect(lambda **_: die_at(point), weak=False)
    main()
