"""A process that releases what is due and then ends; it can be told to die in the middle.

The first argument is the file that it waits for, so that several begin together; the second, where it is killed:
``reserved`` after the rows are marked, ``half`` when half of the messages have gone, ``sent`` before it says how many.
"""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import django

django.setup()

from jobs import batches, outbox  # noqa: E402
from jobs.release import release  # noqa: E402
from project.celery import app  # noqa: E402, F401


def die(*_: Any, **__: Any) -> Any:
    """End as a lost machine would."""
    os.kill(os.getpid(), signal.SIGKILL)


def half(self: batches._Basket) -> Any:
    """Let the first half go, then die."""
    _, arguments, places = self._commands[0]
    self._commands[0] = ("lpush", arguments[: len(arguments) // 2], places)
    whole(self)
    die()


def say(words: str) -> None:
    """Print at once."""
    sys.stdout.write(f"{words}\n")
    sys.stdout.flush()


whole = batches._Basket.sent


def main(start: Path, where: str) -> None:
    """Wait for the file, then release, and die where that is asked for."""
    if where == "reserved":
        outbox.send = die
    elif where == "half":
        batches._Basket.sent = half  # type: ignore[method-assign]
    elif where == "sent":
        outbox._wait = die
    say("ready")
    while not start.exists():
        time.sleep(0.001)
    released = 0
    while done := release(100):
        released += done
    say(f"released {released}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
