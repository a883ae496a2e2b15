"""Where bodies are greenlets of gevent's: threads that stay threads, and a body that is stopped without the others.

gevent lets the bodies of a process share one thread, and makes greenlets of what is started as a thread. What must go
on while a body computes (leases, the clock, the end of a shutdown) is a thread of the system here in every pool.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

LOOK_EVERY = 0.25  # seconds between two looks of a thread at what it waits for, among greenlets
ENDS = 2.0  # seconds that such threads have to end with their process


def threads() -> bool:
    """Whether gevent has put greenlets in the place of this process's threads."""
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched("threading"))


class Started(Protocol):
    """A thread that was started."""

    name: str

    def is_alive(self) -> bool:
        """Whether it still runs."""


def start(act: Callable[..., object], *args: Any, name: str) -> Started:
    """Start a thread of the system that ends with its process, also where gevent would make a greenlet of it."""
    if threads():
        return _Thread(name, act, args)
    thread = threading.Thread(target=act, args=args, name=name, daemon=True)
    thread.start()
    return thread


def lock() -> Any:
    """A lock between threads of the system. Among greenlets, whoever has it must not give way."""
    return _original("_thread", "allocate_lock")() if threads() else threading.Lock()


def sleep(seconds: float) -> None:
    """Sleep, in a thread that was started here."""
    if not threads():
        time.sleep(seconds)
        return
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        _original("time", "sleep")(min(left, LOOK_EVERY))
        if _ending:
            raise SystemExit


def wait(event: threading.Event, seconds: float = float("inf")) -> bool:
    """Wait for an event, in a thread that was started here; return whether it came."""
    if not threads():
        return event.wait(None if seconds == float("inf") else seconds)
    # gevent's own events wake greenlets of one thread only.
    until = time.monotonic() + seconds
    while not event.is_set() and time.monotonic() < until:
        sleep(LOOK_EVERY)
    return event.is_set()


def _original(module: str, name: str) -> Any:
    return sys.modules["gevent.monkey"].get_original(module, name)


class _Thread:
    """A thread of the system in a process whose threads are greenlets."""

    def __init__(self, name: str, act: Callable[..., object], args: tuple[Any, ...]) -> None:
        self.name, self._act, self._args, self._over = name, act, args, False
        _running.add(self)
        _original("_thread", "start_new_thread")(self._run, ())

    def _run(self) -> None:
        try:
            self._act(*self._args)
        finally:
            sys.modules["gevent"].get_hub().destroy(destroy_loop=True)
            self._over = True
            _running.discard(self)

    def is_alive(self) -> bool:
        """Whether it still runs."""
        return not self._over


_running: set[_Thread] = set()
_ending = False
os.register_at_fork(after_in_child=_running.clear)  # its parent's threads are not there


@atexit.register
def _end_threads() -> None:
    """End them first: a greenlet's thread that the end of the interpreter surprises may take it down."""
    global _ending
    _ending = True
    until = time.monotonic() + ENDS
    while _running and time.monotonic() < until:
        _original("time", "sleep")(0.02)


@dataclass(slots=True)
class Body:
    """The greenlet in which a body runs, and the loop that it shares with the others."""

    greenlet: Any
    loop: Any
    unheard_since: float | None = field(default=None)

    def throw(self, error: type[BaseException], over: Callable[[], bool]) -> None:
        """Raise in the greenlet when it next gives way, unless it is over by then; from any thread."""

        def throw() -> None:
            self.unheard_since = None
            if not over():
                self.greenlet.throw(error)

        if self.unheard_since is None:
            self.unheard_since = time.monotonic()
        self.loop.run_callback_threadsafe(throw)

    @property
    def unheard(self) -> float:
        """For how many seconds no greenlet of this thread gave way, so that an interrupt could have reached it."""
        return 0.0 if self.unheard_since is None else time.monotonic() - self.unheard_since


def killed(error: BaseException) -> bool:
    """Whether somebody killed the greenlet of a body: Celery's ``terminate`` does."""
    return any(cls.__name__ == "GreenletExit" for cls in type(error).__mro__)


def body() -> Body | None:
    """The greenlet that calls this; None where bodies have threads."""
    if not threads():
        return None
    gevent = sys.modules["gevent"]
    return Body(gevent.getcurrent(), gevent.get_hub().loop)
