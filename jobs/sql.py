"""Plain SQL on the database that jobs live in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from jobs import lifecycle

SLICE = 500  # names in one statement


def parts(whole: Sequence[Any]) -> Iterable[list[Any]]:
    """What is named, a statement at a time."""
    for start in range(0, len(whole), SLICE):
        yield list(whole[start : start + SLICE])


def one(text: str, parameters: Sequence[Any] = ()) -> Any:
    """The first row."""
    return rows(text, parameters)[0]


def rows(text: str, parameters: Sequence[Any] = ()) -> list[Any]:
    """All rows."""
    with lifecycle.database().cursor() as cursor:
        cursor.execute(text, list(parameters))
        return list(cursor.fetchall())


def run(text: str, parameters: Sequence[Any] = ()) -> None:
    """Do it."""
    with lifecycle.database().cursor() as cursor:
        cursor.execute(text, list(parameters))


def many(text: str, each: Sequence[Sequence[Any]]) -> None:
    """Do it for each of these parameters."""
    if each:
        with lifecycle.database().cursor() as cursor:
            cursor.executemany(text, list(each))
