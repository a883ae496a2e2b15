"""An independent witness: a trigger of the database writes down every change of every job, whoever makes it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from uuid import UUID

from django.db import connection

from jobs.states import State

_COLUMNS = "job_id, old_state, new_state, old_attempt, new_attempt, old_token, new_token, asked_to_stop"
_CHANGED = (
    "OLD.id, OLD.state, NEW.state, OLD.attempt, NEW.attempt, OLD.token, NEW.token, OLD.cancel_requested_at IS NOT NULL"
)
_ADDED = "NEW.id, NULL, NEW.state, NULL, NEW.attempt, NULL, NEW.token, FALSE"
_GONE = "OLD.id, OLD.state, NULL, OLD.attempt, NULL, OLD.token, NULL, FALSE"
_EVENTS = {"UPDATE": _CHANGED, "INSERT": _ADDED, "DELETE": _GONE}


@dataclass(frozen=True, slots=True)
class Change:
    """One statement's change of one row."""

    serial: int
    job: UUID
    old: State | None
    new: State | None
    old_attempt: int | None
    attempt: int | None
    old_token: UUID | None
    token: UUID | None
    asked_to_stop: bool

    @property
    def claims(self) -> bool:
        """Whether an attempt began."""
        return self.new is State.RUNNING and self.old is not State.RUNNING


def changes(after: int = 0) -> list[Change]:
    """What was written down since the change with this number."""
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT serial, {_COLUMNS} FROM machine_ledger WHERE serial > %s ORDER BY serial", [after])
        return [
            Change(row[0], _uuid(row[1]), _state(row[2]), _state(row[3]), row[4], row[5],
                   row[6] and _uuid(row[6]), row[7] and _uuid(row[7]), bool(row[8]))
            for row in cursor.fetchall()
        ]  # fmt: skip


def forget(after: int = 0) -> None:
    """Cross out what was written since."""
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM machine_ledger WHERE serial > %s", [after])


def last() -> int:
    """The number of the last change."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT COALESCE(MAX(serial), 0) FROM machine_ledger")
        return int(cursor.fetchone()[0])


@contextmanager
def kept() -> Iterator[None]:
    """Keep the ledger while the block runs."""
    _run(_drop())
    _run(_create())
    try:
        yield
    finally:
        _run(_drop())


def _run(statements: list[str]) -> None:
    with connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)


def _create() -> list[str]:
    postgres = connection.vendor == "postgresql"
    serial = "BIGSERIAL PRIMARY KEY" if postgres else "INTEGER PRIMARY KEY AUTOINCREMENT"
    kind, number, flag = ("uuid", "integer", "boolean") if postgres else ("text", "integer", "integer")
    table = (
        f"CREATE TABLE machine_ledger (serial {serial}, job_id {kind}, old_state text, new_state text, "
        f"old_attempt {number}, new_attempt {number}, old_token {kind}, new_token {kind}, asked_to_stop {flag})"
    )
    return [table, *(line for event, values in _EVENTS.items() for line in _trigger(event, values, postgres=postgres))]


def _trigger(event: str, values: str, *, postgres: bool) -> list[str]:
    name, insert = f"machine_{event.lower()}", f"INSERT INTO machine_ledger ({_COLUMNS}) VALUES ({values})"
    if not postgres:
        return [f"CREATE TRIGGER {name} AFTER {event} ON jobs_job BEGIN {insert}; END"]
    return [
        f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {insert}; RETURN NULL; END $$",
        f"CREATE TRIGGER {name} AFTER {event} ON jobs_job FOR EACH ROW EXECUTE FUNCTION {name}()",
    ]


def _drop() -> list[str]:
    names = [f"machine_{event.lower()}" for event in _EVENTS]
    table = ["DROP TABLE IF EXISTS machine_ledger"]
    if connection.vendor == "postgresql":
        return [f"DROP FUNCTION IF EXISTS {name}() CASCADE" for name in names] + table
    return [f"DROP TRIGGER IF EXISTS {name}" for name in names] + table


def _uuid(value: object) -> UUID:
    return value if isinstance(value, UUID) else UUID(str(value))


def _state(value: str | None) -> State | None:
    return None if value is None else State(value)
