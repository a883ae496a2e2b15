"""The INSERT of jobs as plain SQL. Its text is made once for each shape of rows; what they have alike stands in it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from operator import itemgetter
from typing import Any
from uuid import UUID

from django.db.backends.base.base import BaseDatabaseWrapper

from jobs import clock
from jobs.clock import NOW, Clock
from jobs.models import Job


class Awaited:
    """Whether other jobs wait for this one already: the database knows, of an id that was known before its row."""


AWAITED = Awaited()


class _By:
    """How a column gets its value: a letter for each, so that the shape of a row is a word."""

    DEFAULT = "d"  # stands in the text
    NOW = "n"  # the clock's time
    LATER = "l"  # the clock's time, and seconds as a parameter
    GIVEN = "g"  # a parameter
    AWAITED = "a"  # asked of the rows
    EACH = "e"  # a parameter for each row
    ID = "i"  # the id of the row
    ID_TEXT = "x"  # the same as text
    EACH_TIME = "t"  # for each row a parameter, or seconds by the clock


_PLAIN = {str, int, float, bool, type(None)}
_TEXTS = {str, type(None)}
_UNLESS_TAKEN = "ON CONFLICT DO NOTHING"
_ARRAYS = {
    "UUIDField": "uuid[]", "DateTimeField": "timestamptz[]", "FloatField": "float8[]", "BooleanField": "bool[]",
    "PositiveIntegerField": "int[]", "PositiveSmallIntegerField": "int[]", "IntegerField": "int[]",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Column:
    """A column of the table of jobs."""

    attribute: str
    name: str
    default: Any
    literal: str
    kind: str
    field: Any

    def prepared(self, value: Any, connection: BaseDatabaseWrapper) -> Any:
        """A value as the database takes it."""
        if type(value) in _PLAIN:
            return value
        if type(value) is UUID:
            return value if connection.features.has_native_uuid_field else value.hex
        if isinstance(value, Enum):
            return value.value
        return self.field.get_db_prep_save(value, connection)


@lru_cache(maxsize=4)
def _columns(vendor: str) -> tuple[_Column, ...]:
    return tuple(_column(field, vendor) for field in Job._meta.concrete_fields)


def _column(field: Any, vendor: str) -> _Column:
    default = None if field.primary_key else field.get_default()
    literal, kind = _literal(default, vendor), field.get_internal_type()
    return _Column(field.attname, f'"{field.column}"', default, literal, kind, field)


def _literal(default: Any, vendor: str) -> str:
    match default:
        case None:
            return "NULL"
        case bool():
            return str(default).lower() if vendor == "postgresql" else str(int(default))
        case list() | dict():
            return f"'{json.dumps(default)}'"
        case str():
            return f"'{default}'"
    return str(default)


def _into(columns: Sequence[_Column]) -> str:
    return f"INSERT INTO {Job._meta.db_table} ({', '.join(c.name for c in columns)})"


def _awaited(job_id: str) -> str:
    table = Job._meta.db_table
    return f"EXISTS (SELECT 1 FROM {table} f WHERE f.follows_id = {job_id} AND f.finished_at IS NULL)"


# --- One row ----------------------------------------------------------------------------------------


def one(job: Job, connection: BaseDatabaseWrapper) -> tuple[str, list[Any]]:
    """The statement that adds a row unless its id or its key is taken, and its parameters."""
    shape = ""
    parameters: list[Any] = []
    values = job.__dict__
    for column in _columns(connection.vendor):
        value = values[column.attribute]
        if value == column.default:  # most of them
            shape += _By.DEFAULT
        else:
            by, given = _alike(column, value, values, connection)
            shape += by
            parameters += given
    return _text(connection.vendor, shape), parameters


def _alike(
    column: _Column, value: Any, values: dict[str, Any], connection: BaseDatabaseWrapper
) -> tuple[str, tuple[Any, ...]]:
    """How a column gets a value that stands for all rows of the statement, and its parameters."""
    if value == column.default:
        return _By.DEFAULT, ()
    if value is NOW:
        return _By.NOW, ()
    if isinstance(value, Clock):
        return _By.LATER, (clock.seconds(connection.vendor, value.delta),)
    if value is AWAITED:
        return _By.AWAITED, (_columns(connection.vendor)[0].prepared(values["id"], connection),)
    return _By.GIVEN, (column.prepared(value, connection),)


@lru_cache(maxsize=512)
def _text(vendor: str, shape: str) -> str:
    columns = _columns(vendor)
    values = [_alike_sql(vendor, column, by) for column, by in zip(columns, shape, strict=True)]
    return f"{_into(columns)} VALUES ({', '.join(values)}) {_UNLESS_TAKEN}"


def _alike_sql(vendor: str, column: _Column, by: str) -> str:
    match by:
        case _By.DEFAULT:
            return column.literal
        case _By.NOW:
            return clock.sql(vendor)
        case _By.LATER:
            return clock.later_sql(vendor, "%s")
        case _By.AWAITED:
            return _awaited("%s")
    return "%s"


# --- Many rows --------------------------------------------------------------------------------------


def many(jobs: Sequence[Job], connection: BaseDatabaseWrapper) -> tuple[str, list[Any]]:
    """One statement that adds rows, but for those whose id or key is taken, and its parameters.

    What all rows have alike is given once, the rest as one list for each column.
    """
    if len(jobs) == 1:
        return one(jobs[0], connection)
    rows = [job.__dict__ for job in jobs]
    ids = [row["id"] for row in rows]
    id_texts = [str(job_id) for job_id in ids]
    by_column = zip(*map(_values(connection.vendor), rows), strict=True)
    shape = ""
    alike: list[Any] = []
    lists: list[Any] = []
    for column, values in zip(_columns(connection.vendor), by_column, strict=True):
        if AWAITED in values:
            by = _By.AWAITED  # asked of each: of a new id, nobody waits for it
        elif values[0] == ids[0] and list(values) == ids and not column.field.primary_key:
            by = _By.ID
        elif connection.vendor == "postgresql" and values[0] == id_texts[0] and list(values) == id_texts:
            by = _By.ID_TEXT
        elif _one_value(column, values) and not column.field.primary_key:  # its list also says how many
            by, given = _alike(column, values[0], rows[0], connection)
            alike += given
        else:
            by, differing = _differing(column, values, connection)
            lists += differing
        shape += by
    text = _text_of_many(connection.vendor, shape)
    return text, [*alike, *(lists if connection.vendor == "postgresql" else [_rows_as_json(lists)])]


@lru_cache(maxsize=4)
def _values(vendor: str) -> Callable[[dict[str, Any]], tuple[Any, ...]]:
    return itemgetter(*(column.attribute for column in _columns(vendor)))


def _one_value(column: _Column, values: Sequence[Any]) -> bool:
    """Whether all rows have the same; in JSON, 1 and true and 1.0 are not."""
    first = values[0]
    if values.count(first) != len(values):
        return False
    same = column.kind != "JSONField" or all(value is first for value in values)
    return same or len({json.dumps(value) for value in values}) == 1


def _differing(column: _Column, values: Sequence[Any], connection: BaseDatabaseWrapper) -> tuple[str, list[Any]]:
    """The values of a column that are not alike; of times, those by the clock apart from the others."""
    if not any(type(value) is Clock for value in values):
        return _By.EACH, [_each(column, values, connection)]
    seconds = [clock.seconds(connection.vendor, v.delta) if isinstance(v, Clock) else None for v in values]
    times = [None if isinstance(value, Clock) else value for value in values]
    return _By.EACH_TIME, [_each(column, times, connection), seconds]


def _each(column: _Column, values: Sequence[Any], connection: BaseDatabaseWrapper) -> list[Any] | str:
    if column.kind == "JSONField":
        values = [None if value is None else json.dumps(value) for value in values]
    kinds = set(map(type, values))
    if connection.vendor == "postgresql" and (kinds == {UUID} or kinds <= _TEXTS):
        return _as_array(values, kinds)
    if kinds <= _PLAIN:
        return list(values)
    return [None if value is None else column.prepared(value, connection) for value in values]


def _as_array(values: Sequence[Any], kinds: set[type]) -> str:
    """A list as PostgreSQL writes it; psycopg takes longer for that than the database for the row."""
    if kinds == {UUID}:
        return "{" + ",".join(map(str, values)) + "}"
    return "{" + ",".join("NULL" if value is None else _quoted(value) for value in values) + "}"


def _quoted(text: str) -> str:
    r"""A text as an element of an array.

    >>> print(_quoted(r'say "\n"'))
    "say \"\\n\""
    """
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _rows_as_json(lists: list[list[Any]]) -> str:
    """All rows as one parameter: SQLite takes a limited number of them, and has no arrays."""
    return json.dumps(list(zip(*lists, strict=True)))


@lru_cache(maxsize=512)
def _text_of_many(vendor: str, shape: str) -> str:
    columns = _columns(vendor)
    taken: list[str] = []  # the types of the lists that were spoken of so far
    values = [_sql(vendor, column, by, taken) for column, by in zip(columns, shape, strict=True)]
    if vendor == "postgresql":
        arrays, names = ", ".join(f"%s::{kind}" for kind in taken), ", ".join(f"c{n}" for n in range(len(taken)))
        source = f"unnest({arrays}) AS u({names})"
    else:
        source = "json_each(%s) AS u WHERE true"  # or SQLite would take ON CONFLICT for the condition of a join
    return f"{_into(columns)} SELECT {', '.join(values)} FROM {source} {_UNLESS_TAKEN}"


def _sql(vendor: str, column: _Column, by: str, taken: list[str]) -> str:
    def listed(kind: str) -> str:
        taken.append(kind)
        return f"u.c{len(taken) - 1}" if vendor == "postgresql" else f"json_extract(u.value, '$[{len(taken) - 1}]')"

    match by:
        case _By.ID:
            return _id_of_row(vendor)
        case _By.ID_TEXT:
            return f"{_id_of_row(vendor)}::text"
        case _By.EACH if column.kind == "JSONField" and vendor == "postgresql":
            return f"{listed('text[]')}::jsonb"
        case _By.EACH:
            return listed(_ARRAYS.get(column.kind, "text[]"))
        case _By.EACH_TIME:
            times = listed("timestamptz[]")
            return f"COALESCE({times}, {clock.later_sql(vendor, listed('float8[]'))})"
        case _By.AWAITED:
            return _awaited(_id_of_row(vendor))
    return _alike_sql(vendor, column, by)


def _id_of_row(vendor: str) -> str:
    return "u.c0" if vendor == "postgresql" else "json_extract(u.value, '$[0]')"
