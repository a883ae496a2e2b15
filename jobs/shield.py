"""The soft time limit of the prefork pool, a signal whose handler raises: kept out of what must not be cut short."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_soft_limit_handler: Any = None


def of_a_child() -> bool:
    """Whether this process is a child of the prefork pool, as far as was seen."""
    return _soft_limit_handler is not None


@contextmanager
def shielded() -> Iterator[None]:
    """Keep the soft time limit out: it can arrive at any line, and recording must not be cut short."""
    yield from _with_handler(lambda: signal.SIG_IGN)


@contextmanager
def unshielded() -> Iterator[None]:
    """Let the soft time limit in again, for the body alone."""
    yield from _with_handler(lambda: _soft_limit_handler)


def _with_handler(handler: Callable[[], Any]) -> Iterator[None]:
    global _soft_limit_handler
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGUSR1)
    if getattr(before, "__module__", "").startswith("billiard"):
        _soft_limit_handler = before
    if _soft_limit_handler is None:
        yield
        return
    signal.signal(signal.SIGUSR1, handler())
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before)
