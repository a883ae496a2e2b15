"""The rows: declared by ``@row``, found in ``tests/chaos/rows/``, chosen by number or name."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.chaos.stage import Stage

Script = Callable[["Stage"], None]

ROWS: dict[int, Row] = {}


class UnknownRow(ValueError):
    """A row that the matrix does not have."""


@dataclass(frozen=True, slots=True)
class Row:
    """One fault, and what the platform must do about it."""

    number: int
    fault: str
    must: str
    script: Script
    brokers: tuple[str, ...] = ("redis",)
    databases: tuple[str, ...] = ("postgres", "sqlite")
    celery: bool | str = True
    own_database: bool = False
    persistent: bool = False
    rabbitmq: Mapping[str, Any] = field(default_factory=dict)
    may_refuse: bool = False
    jobs: Mapping[str, Any] = field(default_factory=dict)
    limit: float = 150.0

    @property
    def name(self) -> str:
        """How the row is called on the command line, beside its number."""
        return self.script.__name__

    def not_applicable(self, database: str, broker: str, against: str) -> str:
        """Why the row means nothing here; empty when it does."""
        if broker not in self.brokers:
            return f"it is about {' and '.join(self.brokers)}"
        if against == "celery":
            if self.celery is not True:
                return str(self.celery or "it means nothing for plain Celery")
            return ""
        if database not in self.databases:
            return f"it is about {' and '.join(self.databases)}"
        return ""


def row(number: int, fault: str, *, must: str, **options: Any) -> Callable[[Script], Script]:
    """Declare a row of the matrix; see the docstring of :mod:`tests.chaos`."""

    def declare(script: Script) -> Script:
        known = ROWS.get(number)
        if known is not None and known.script.__module__ != script.__module__:
            raise ValueError(f"Row {number} is declared twice: {known.name} and {script.__name__}.")
        if known is not None and known.name != script.__name__:
            raise ValueError(f"Row {number} is declared twice in {script.__module__}.")
        ROWS[number] = Row(number, fault, must, script, **options)
        return script

    return declare


def load() -> dict[int, Row]:
    """Every row there is, by number."""
    from tests.chaos import rows

    for module in sorted(pkgutil.iter_modules(rows.__path__), key=lambda m: m.name):
        importlib.import_module(f"{rows.__name__}.{module.name}")
    return dict(sorted(ROWS.items()))


def choose(wanted: str, known: Mapping[int, Row]) -> list[Row]:
    """The rows that ``wanted`` names, as in ``17,18`` or ``main_killed``; all of them when it is empty.

    Raises ``UnknownRow``.
    """
    words = [word.strip() for word in wanted.split(",") if word.strip()]
    return [_one(word, known) for word in words] or list(known.values())


def _one(word: str, known: Mapping[int, Row]) -> Row:
    names = {r.name: r for r in known.values()}
    if word.isdigit() and int(word) in known:
        return known[int(word)]
    if word in names:
        return names[word]
    close = difflib.get_close_matches(word, names, n=1)
    hint = f" Did you mean {close[0]}?" if close else f" There are: {', '.join(str(n) for n in sorted(known))}."
    raise UnknownRow(f"ROW={word} is not a row of the matrix.{hint}")
