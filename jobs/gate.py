"""Talking to the database from threads of the worker's main process, which also forks."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from django.db import Error

from jobs import lifecycle, outage

logger = logging.getLogger("jobs.worker")

SILENCE = 10.0  # seconds that the database may take for what this process tells it

database = outage.Outage(logger, "The worker cannot report itself.")


class ForkGate:
    """Keeps the pool from forking a child while a thread of this process talks to the database.

    A child would inherit what that thread holds (of SQLite: its locks, for ever).
    """

    PATIENCE = 5.0  # seconds; a database that hangs must not keep the pool from growing

    def __init__(self) -> None:
        self._talking = threading.Lock()
        self._forking = False

    @contextmanager
    def talking(self) -> Iterator[None]:
        """Talk to the database, and leave no connection open."""
        with self._talking:
            try:
                with outage.bounded(lifecycle.database(), SILENCE):
                    yield
            finally:
                lifecycle.database().close()

    def guard_forks(self) -> None:
        """Watch over every fork of this process from now on."""
        os.register_at_fork(before=self._close, after_in_parent=self._open, after_in_child=self._renew)

    def _close(self) -> None:
        self._forking = self._talking.acquire(timeout=self.PATIENCE)

    def _open(self) -> None:
        if self._forking:
            self._talking.release()

    def _renew(self) -> None:
        self._talking = threading.Lock()


_gate = ForkGate()
talking = _gate.talking
guard_forks = _gate.guard_forks


def in_background(act: Callable[..., Any], *args: Any) -> None:
    """Talk to the database beside the event loop: a slow answer must not stop the worker's consuming."""

    def run() -> None:
        with talking():
            try:
                act(*args)
            except Error as error:
                # The lease ends by itself: the conductor finds what we could not report.
                database.failed(error)

    threading.Thread(target=run, name=f"mainstay-{act.__name__}", daemon=True).start()
