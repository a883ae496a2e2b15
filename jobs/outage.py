"""A database that is away, busy or silent: telling that from a mistake, waiting without a hot loop, saying so once."""

from __future__ import annotations

import logging
import os
import random
import socket
import time
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import suppress
from typing import Any, Self, TypeVar

from django.db import Error, InterfaceError, OperationalError
from django.db.backends.base.base import BaseDatabaseWrapper

from jobs import green

logger = logging.getLogger("jobs.outage")

T = TypeVar("T")

LONGEST_PAUSE = 3.0  # seconds between two tries
SILENCE = 10.0  # seconds that the database may take to answer at first; twice as long each time that it does not
LONGEST_SILENCE = 300.0
QUIET = 10.0  # seconds between two lines that say the same
LOOK_EVERY = 0.5  # seconds between two looks at the acts that wait for an answer

# Where a project's settings say nothing, a server that is gone without a word is noticed in about ten seconds.
LIVELY = {
    "connect_timeout": 5,
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,  # milliseconds
}

# By SQLSTATE. Serialization, deadlock, lock time-out, statement time-out or cancelled by an operator.
_BUSY = {"40001", "40P01", "55P03", "57014"}
# Connection, rollback, resources (full disk, connections), operator, system; read-only, time-outs of transactions,
# a failed transaction; the database or its tables not there (yet).
_PASSING = ("08", "40", "53", "55", "57", "58", "25006", "25P02", "25P03", "25P04", "3D000", "42P01")
_NEVER = ("54",)  # a limit of PostgreSQL's own: it would be the same next time
# By SQLite's primary code: busy and locked; no memory, read-only, interrupted, input or output, corrupt, full, cannot
# be opened, locking protocol, no database (a file that is being restored). Code 1 is a mistake in the statement.
_SQLITE_BUSY = {5, 6}
_SQLITE_PASSING = {5, 6, 7, 8, 9, 10, 11, 13, 14, 15, 26}


def passing(error: BaseException) -> bool:
    """Whether the database is away, busy, full or read-only for now: the same act may succeed later."""
    if not isinstance(error, Error):
        return False
    state, code = sqlstate(error), _sqlite_code(error)
    if state is not None and state.startswith(_NEVER):
        return False
    if code is not None:
        return code in _SQLITE_PASSING or "no such table" in str(error)
    if isinstance(error, OperationalError | InterfaceError):
        return True
    return state is not None and state.startswith(_PASSING)


def locked(error: BaseException) -> bool:
    """Whether a time-out for locks ended the wait for one."""
    return sqlstate(error) == "55P03"


def deadlocked(error: BaseException) -> bool:
    """Whether PostgreSQL ended one of those who waited for each other."""
    return sqlstate(error) == "40P01"


def busy(error: BaseException) -> bool:
    """Whether somebody was in the way: the connection itself is well."""
    return sqlstate(error) in _BUSY or _sqlite_code(error) in _SQLITE_BUSY


def sqlstate(error: BaseException) -> str | None:
    """The five characters by which PostgreSQL says what is wrong."""
    cause = error.__cause__
    state = getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)
    return state if isinstance(state, str) else None


def _sqlite_code(error: BaseException) -> int | None:
    code = getattr(error.__cause__, "sqlite_errorcode", None)
    return code & 0xFF if isinstance(code, int) else None


def pauses(first: float = 0.1, longest: float = LONGEST_PAUSE) -> Iterator[float]:
    """How long to wait before each next try: longer each time, and never in step with the other processes."""
    pause = first
    while True:
        yield random.uniform(pause / 2, pause)
        pause = min(pause * 2, longest)


class Outage:
    """What one room of this process has told of the database: a line when it goes away, a line when it is back."""

    def __init__(self, room: logging.Logger, consequence: str) -> None:
        self._room = room
        self._consequence = consequence
        self._since: float | None = None
        self._tries = 0
        self._told_at = float("-inf")
        self._told = False
        self._away = False

    @property
    def away(self) -> bool:
        """Whether the last try failed, and not because somebody was in the way."""
        return self._away

    def failed(self, error: BaseException) -> None:
        """A try failed. That somebody was in the way is told when it happens three times in a row."""
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        self._away = not busy(error)
        self._tries += 1
        if self._told or now - self._told_at < QUIET or (busy(error) and self._tries < 3):
            return
        self._told, self._told_at = True, now
        self._room.warning("The database does not do what it is asked: %s. %s", _in_a_line(error), self._consequence)

    def over(self) -> None:
        """A try succeeded."""
        if self._since is None:
            return
        since, tries, told = self._since, self._tries, self._told
        self._since, self._tries, self._told, self._away = None, 0, False, False
        if told:
            seconds = time.monotonic() - since
            self._room.warning("The database is back after %.1f s and %d tries in vain.", seconds, tries)


def _in_a_line(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def patiently(
    connection: BaseDatabaseWrapper, act: Callable[[], T], told: Outage, between: Callable[[], object] = lambda: None
) -> T:
    """Do a database act, waiting for the database as long as it takes, without a hot loop.

    What may be the answer to a mistake, and not to the state of the database, is raised. ``between`` is called after
    each try in vain, and may raise to end the wait.
    """
    silence = SILENCE
    for pause in pauses():
        try:
            with bounded(connection, silence):
                done = act()
        except Error as error:
            if connection.in_atomic_block or not passing(error):
                raise
            told.failed(error)
            if not busy(error):
                connection.close()
        else:
            told.over()
            return done
        between()
        time.sleep(pause)
        silence = min(silence * 2, LONGEST_SILENCE)
    raise AssertionError("there is always another pause")


def hurry(options: MutableMapping[str, Any]) -> None:
    """Give connections to PostgreSQL the time-outs that a project's settings leave out."""
    if "service" not in options:  # the file of the service may say
        for name, value in LIVELY.items():
            options.setdefault(name, value)


def hurry_all(connection: BaseDatabaseWrapper) -> None:
    """Give this process's connections to the database of the jobs their time-outs."""
    if connection.vendor == "postgresql":
        hurry(connection.settings_dict.setdefault("OPTIONS", {}))


# --- A server that says nothing: its machine is gone, or its process hangs ------------------------------------


class bounded:  # noqa: N801 (a context manager)
    """Give a connection up on which the block waits longer than ``seconds``: its act then fails, and can be repeated.

    The server's own time-outs do not help where the server hangs, nor TCP's where its machine still answers.
    """

    __slots__ = ("connection", "cut", "seconds", "until")

    def __init__(self, connection: BaseDatabaseWrapper, seconds: float) -> None:
        self.connection = connection
        self.seconds = seconds
        self.until = float("inf")
        self.cut = False

    def __enter__(self) -> Self:
        self.until = time.monotonic() + self.seconds
        _waits[id(self)] = self
        if _watch is None or not _watch.is_alive():
            _begin_to_watch()
        return self

    def __exit__(self, *_: object) -> None:
        _waits.pop(id(self), None)


_waits: dict[int, bounded] = {}
_watch: green.Started | None = None
_starting = green.lock()


def _begin_to_watch() -> None:
    global _watch
    with _starting:
        if _watch is None or not _watch.is_alive():
            _watch = green.start(_watch_forever, name="mainstay-patience")


def _begin_anew() -> None:
    """A forked child waits for nothing yet, and its parent's thread is not there."""
    global _watch, _starting
    _waits.clear()
    _watch, _starting = None, green.lock()


os.register_at_fork(after_in_child=_begin_anew)


def _watch_forever() -> None:
    looked = time.monotonic()
    while True:
        green.sleep(LOOK_EVERY)
        now = time.monotonic()
        missed, looked = now - looked - LOOK_EVERY, now
        with suppress(Exception):
            _look(now, missed)


def _look(now: float, missed: float) -> None:
    for wait in list(_waits.values()):
        if missed > LOOK_EVERY:
            wait.until += missed  # this process stood still itself: that is not the server's silence
        elif now > wait.until and not wait.cut:
            _cut(wait)


def _cut(wait: bounded) -> None:
    """Shut the socket of a silent connection, as if the server had closed it. A file has none."""
    try:
        descriptor = os.dup(wait.connection.connection.fileno())
    except Exception:
        return
    with socket.socket(fileno=descriptor) as shared:
        if id(wait) not in _waits:
            return  # it was answered just now
        wait.cut = True
        with suppress(OSError):
            shared.shutdown(socket.SHUT_RDWR)
    logger.warning("The database has not answered for %.0f s: that connection is given up.", wait.seconds)
