"""Order files: CSV as a shop system exports it. Written from a round, read in batches from any line on."""

import csv
from collections.abc import Iterable, Iterator
from dataclasses import fields
from datetime import date
from decimal import Decimal, InvalidOperation
from itertools import islice
from pathlib import Path

from jobs.errors import PermanentError
from project.demo.round import OrderLine, Round

COLUMNS = tuple(field.name for field in fields(OrderLine))
YES, NO = "yes", "no"
BROKEN_ROWS = 12


class BrokenLine(PermanentError):
    """A line of an order file that cannot be read; reading it again will not help."""


def write(path: Path, lines: Iterable[OrderLine]) -> int:
    """Write an order file; return how many orders it holds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        return sum(1 for _ in map(writer.writerow, map(as_text, lines)))


def read(path: Path, after: int = 0) -> Iterator[OrderLine]:
    """The orders of a file, beyond the first ``after`` of them."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = enumerate(csv.DictReader(file), start=1)
        for place, row in islice(rows, after, None):
            yield parse(row, place)


def as_text(line: OrderLine) -> list[str]:
    """An order as cells."""
    return [text(getattr(line, column)) for column in COLUMNS]


def text(value: object) -> str:
    """A value as a cell."""
    if isinstance(value, bool):
        return YES if value else NO
    return str(value)


def parse(row: dict[str, str], place: int) -> OrderLine:
    """An order from cells. Raises ``BrokenLine`` with the order's place in the file, from 1."""
    try:
        return OrderLine(
            number=row["number"],
            shop=row["shop"],
            email=row["email"],
            country=row["country"],
            currency=row["currency"],
            amount=Decimal(row["amount"]),
            placed_on=date.fromisoformat(row["placed_on"]),
            due=row["due"] == YES,
            receipt=row["receipt"] == YES,
        )
    except (KeyError, ValueError, TypeError, InvalidOperation) as error:
        raise BrokenLine(f"order {place} of the file cannot be read: {error!r}") from error


def batches(path: Path, *, after: int, size: int) -> Iterator[list[OrderLine]]:
    """The orders of a file beyond the first ``after``, at most ``size`` at a time."""
    lines = read(path, after)
    while batch := list(islice(lines, size)):
        yield batch


def write_broken(path: Path, a_round: Round) -> None:
    """Write a small order file whose last amount is no number."""
    beyond = range(a_round.orders, a_round.orders + BROKEN_ROWS)
    write(path, (a_round.line(index, due=False, receipt=False) for index in beyond))
    *others, last = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([*others, last.replace(",EUR,", ",EUR,twelve ")]) + "\n", encoding="utf-8")
