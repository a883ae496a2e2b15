"""Statements that run for every job: their text is made once, and PostgreSQL plans them once for each connection.

They are prepared by SQL itself, under names made of their text. So behind PgBouncer, where each transaction may meet
another session, a name never means another statement; where a session does not know it, it is told.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from typing import Any
from weakref import WeakKeyDictionary

from django.db import Error, ProgrammingError
from django.db.backends.base.base import BaseDatabaseWrapper

from jobs import outage

TRIES = 3
UNKNOWN, TAKEN, OUTDATED = "26000", "42P05", "0A000"


class Statement:
    """One statement with ``%s`` for each parameter."""

    def __init__(self, verb: str, text: str) -> None:
        parts = text.split("%s")
        marks = ", ".join(["%s"] * (len(parts) - 1))
        self.text = text
        self.name = f"mainstay_{verb}_{hashlib.sha256(text.encode()).hexdigest()[:12]}"
        self.preparing = f"PREPARE {self.name} AS {parts[0]}" + "".join(
            f"${number}{part}" for number, part in enumerate(parts[1:], start=1)
        )
        self.executing = f"EXECUTE {self.name} ({marks})"

    def run(self, connection: BaseDatabaseWrapper, cursor: Any, parameters: Sequence[Any]) -> None:
        """Execute it on a cursor of this connection, planned beforehand where that is possible."""
        if _can_prepare(connection):
            for _ in range(TRIES):
                try:
                    self._run_prepared(connection, cursor, parameters)
                    return
                except Error as error:
                    if outage.sqlstate(error) not in (UNKNOWN, TAKEN, OUTDATED):
                        raise
                    self._learn(connection, cursor, outage.sqlstate(error))
        cursor.execute(self.text, parameters)

    def _run_prepared(self, connection: BaseDatabaseWrapper, cursor: Any, parameters: Sequence[Any]) -> None:
        known = _known(connection)
        if self.name not in known:
            cursor.execute(self.preparing)
            known.add(self.name)
        cursor.execute(self.executing, parameters)

    def _learn(self, connection: BaseDatabaseWrapper, cursor: Any, state: str | None) -> None:
        """Another session is behind this connection than before, or the table has changed since."""
        if state == TAKEN:
            _known(connection).add(self.name)
            return
        _known(connection).discard(self.name)
        if state == OUTDATED:
            with suppress(ProgrammingError):  # behind a pooler, this session may be one that was never told
                cursor.execute(f"DEALLOCATE {self.name}")


def _can_prepare(connection: BaseDatabaseWrapper) -> bool:
    """Whether a statement may fail here, as one does that the session does not know, and be tried again."""
    if connection.vendor != "postgresql" or connection.in_atomic_block or not connection.autocommit:
        return False
    # Its parameters go to the server apart from the text, and EXECUTE takes none.
    return connection.settings_dict["OPTIONS"].get("server_side_binding") is not True


def _known(connection: BaseDatabaseWrapper) -> set[str]:
    """The names that the session behind a connection was told."""
    raw: Any = connection.connection
    found = _told.get(raw)
    if found is None:
        found = _told[raw] = set()
    return found


_told: WeakKeyDictionary[Any, set[str]] = WeakKeyDictionary()
