"""What a command prints: tables and colours on a terminal, plain aligned lines elsewhere, JSON for machines."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from django.core.management.base import OutputWrapper
from django.utils import timezone
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from jobs.management.ages import ago

TELL_EVERY: Final = 2.0  # seconds between two lines of progress

TONES: Final = {
    "completed": "green", "failed": "bold red", "cancelled": "dim", "running": "bold blue", "reserved": "cyan",
    "pending": "yellow", "retrying": "magenta", "open": "bold red", "replayed": "green", "resolved": "green",
    "discarded": "dim",
}  # fmt: skip

# What could steer a terminal: a name, a reason or an error may hold anything.
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table. Numbers stand to the right; ids and names are not cut."""

    name: str
    right: bool = False
    whole: bool = False


@dataclass(frozen=True, slots=True)
class Paper:
    """Where a command writes its answer."""

    out: OutputWrapper
    colour: bool = True

    @property
    def terminal(self) -> bool:
        """Whether a person looks at it right now."""
        return self.out.isatty()

    def line(self, text: str = "") -> None:
        """One line, or several."""
        self.out.write(clean(text))

    def json(self, document: Any) -> None:
        """One JSON document."""
        self.out.write(json.dumps(document, indent=2, ensure_ascii=False, default=_plain))

    def heading(self, text: str) -> None:
        """What follows, by name."""
        self.out.write("")
        self._print(Text(clean(text), style="bold")) if self.terminal else self.line(text)

    def table(self, columns: Sequence[Column], rows: Iterable[Sequence[object]]) -> None:
        """Rows under their headings."""
        cells = [[self._said(value) for value in row] for row in rows]
        if self.terminal:
            self._print(_grid(columns, cells))
        else:
            self.out.write(aligned(columns, cells))

    def facts(self, facts: Iterable[tuple[str, object]]) -> None:
        """Names and what belongs to them; what is empty is left out."""
        kept = [(name, self._told(value)) for name, value in facts if value not in (None, "", [], {})]
        width = max((len(name) for name, _ in kept), default=0)
        for name, value in kept:
            if self.terminal:
                self._print(Text.assemble((f"{name:<{width}}  ", "dim"), (value, TONES.get(value.split(":")[0], ""))))
            else:
                self.out.write(f"{name:<{width}}  {value}")

    def _said(self, value: object) -> str:
        """A value as a cell: on one line, a time relative to now where a person looks."""
        if isinstance(value, datetime):
            return ago(value, timezone.now()) if self.terminal else _exactly(value)
        return clean(" ".join(_text(value).split()))

    def _told(self, value: object) -> str:
        """A value with room for all of it."""
        if isinstance(value, datetime):
            return f"{_exactly(value)} ({ago(value, timezone.now())})"
        return clean(_text(value))

    def _print(self, what: Table | Text) -> None:
        console = Console(force_terminal=True, no_color=not self.colour or None, highlight=False)
        with console.capture() as captured:
            console.print(what, soft_wrap=isinstance(what, Text))
        self.out.write(captured.get(), ending="")


def clean(text: str) -> str:
    """The same text without characters that could steer a terminal; line ends stay.

    >>> clean("a\\x1b[31mb\\nc")
    'a�[31mb\\nc'
    """
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text.replace("\t", "    ").replace("\r\n", "\n"))


def aligned(columns: Sequence[Column], cells: Sequence[Sequence[str]]) -> str:
    """Plain lines in columns two spaces apart.

    >>> print(aligned([Column("queue"), Column("jobs", right=True)], [["mail", "7"], ["payments", "12"]]))
    queue     jobs
    mail         7
    payments    12
    """
    lines = [[column.name for column in columns], *cells]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    return "\n".join(
        "  ".join(
            text.rjust(width) if column.right else text.ljust(width)
            for text, width, column in zip(line, widths, columns, strict=True)
        ).rstrip()
        for line in lines
    )


def _grid(columns: Sequence[Column], cells: Sequence[Sequence[str]]) -> Table:
    grid = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        grid.add_column(
            column.name,
            justify="right" if column.right else "left",
            no_wrap=column.whole or column.right,
            overflow="fold",
        )
    for row in cells:
        grid.add_row(*(Text(text, style=TONES.get(text, "")) for text in row))
    return grid


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False, default=_plain)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _plain(value: Any) -> str:
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def _exactly(moment: datetime) -> str:
    local = timezone.localtime(moment) if timezone.is_aware(moment) else moment
    return local.isoformat(sep=" ", timespec="seconds")


@contextmanager
def counting(err: OutputWrapper, what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show how far something is, beside the answer: a bar on a terminal, else a line about every two seconds.

    Without a ``total`` nobody knows how much it will be.
    """
    if not err.isatty():
        yield _Lines(err, what, total)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        shown = bar.add_task(what, total=total)
        yield lambda done: bar.update(shown, completed=done)


class _Lines:
    """Progress as lines, few of them."""

    def __init__(self, err: OutputWrapper, what: str, total: int | None) -> None:
        self.err, self.what, self.total, self.told = err, what, total, time.monotonic()

    def __call__(self, done: int) -> None:
        if time.monotonic() - self.told >= TELL_EVERY:
            self.told = time.monotonic()
            of = "" if self.total is None else f" of {self.total:,}"
            self.err.write(f"{self.what}: {done:,}{of}", str)
