"""A power cut on purpose: the process of an import is killed once, half-way, in the middle of a transaction."""

import os
import signal

from project.demo import conf


def cut_once(*, attempt: int, done: int, rows: int) -> None:
    """End this process as a lost machine would, in the first attempt, once half of the rows are done."""
    if conf.POWER_CUT and attempt == 1 and 2 * done > rows:
        os.kill(os.getpid(), signal.SIGKILL)
