"""A process that calls a task with a window again and again, and prints of each call: when, its key, what, and the job.

Arguments: the file that it waits for, the task, the caller's name, how many calls, of how many keys.
"""

import sys
import time
from pathlib import Path

import django

django.setup()

from django.db import transaction  # noqa: E402

from project.celery import app  # noqa: E402
from tests.sample import tasks  # noqa: E402


def say(*words: object) -> None:
    """Print at once."""
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def call(start: Path, name: str, caller: str, calls: int, keys: int) -> None:
    """Call when the file is there, some of them in vain."""
    task = getattr(tasks, name)
    say("ready")
    while not start.exists():
        time.sleep(0.01)
    for number in range(calls):
        key, what = number % keys, f"{caller}.{number}"
        if number % 10 == 9:
            with transaction.atomic():
                task.delay(key, f"{what}-undone")
                transaction.set_rollback(True)
        before = time.time()
        with transaction.atomic():
            job = task.delay(key, what)
            if number % 7 == 6:
                time.sleep(0.05)
        say("called", before, time.time(), key, what, job.id)
    say("done")


if __name__ == "__main__":
    assert app is not None
    call(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
