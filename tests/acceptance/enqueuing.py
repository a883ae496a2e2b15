"""A process that enqueues ten jobs and then ends, in the way that its first argument says; it prints their ids.

It is also a WSGI application, each of whose requests enqueues ten.
"""

import atexit
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterable
from typing import Any

if sys.argv[1:] == ["greenlets"]:
    from gevent import monkey

    monkey.patch_all()

if sys.argv[1:] == ["at_exit"]:
    atexit.register(lambda: enqueue())  # first come, last called

import django

django.setup()

from django.db import connections  # noqa: E402

from jobs import outbox  # noqa: E402
from project.celery import app  # noqa: E402, F401
from tests.sample.tasks import add  # noqa: E402

COUNT = 10


def enqueue() -> None:
    """Enqueue ten jobs one by one, and say which."""
    for number in range(COUNT):
        say(add.delay(number, 0).id)


def say(words: str) -> None:
    """Print at once."""
    sys.stdout.write(f"{words}\n")
    sys.stdout.flush()


def end() -> None:
    """The script is over."""
    enqueue()


def exit_by_signal() -> None:
    """A handler of the process's own ends it in good order."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    enqueue()
    os.kill(os.getpid(), signal.SIGTERM)


def at_exit() -> None:
    """Enqueue when the interpreter ends, and even after what Mainstay does then."""
    enqueue()
    atexit.register(enqueue)


def fork() -> None:
    """Leave the rest to a child, and enqueue beside it."""
    enqueue()
    connections.close_all()  # as every Django process must that forks
    child = os.fork()
    enqueue()
    if child:
        os.waitpid(child, 0)


def fork_at_work() -> None:
    """Fork while jobs wait to be sent, and let the child end in good order."""
    enqueue()
    if not os.fork():
        sys.exit(0)
    os.wait()


def child() -> None:
    """A child of ``multiprocessing`` enqueues."""
    process = multiprocessing.get_context("fork").Process(target=enqueue)
    process.start()
    process.join()


def die() -> None:
    """A lost machine: the rows are there, no message has left."""

    def die(*_: Any, **__: Any) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return 0

    outbox.send = die
    enqueue()
    signal.pause()


def greenlets() -> None:
    """Enqueue from greenlets."""
    import gevent

    gevent.joinall([gevent.spawn(enqueue) for _ in range(3)])


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Enqueue, and answer."""
    enqueue()
    start_response("200 OK", [])
    return [b"done"]


if __name__ == "__main__":
    globals()[sys.argv[1]]()
