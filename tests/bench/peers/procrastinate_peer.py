"""Procrastinate, by its integration with Django."""

# What it imports is in the peers' environment only.
# mypy: ignore-errors
from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import orders
import witness
from procrastinate.contrib.django import app


@app.task
def noop(number: int) -> None:
    witness.ran(number)


@app.task
def tell(sent: int) -> None:
    witness.began(sent)


def enqueue(number: int) -> None:
    noop.defer(number=number)


enqueue_inside = partial(orders.ordered_with, enqueue=enqueue)


def enqueue_many(numbers: Sequence[int]) -> None:
    noop.batch_defer(*({"number": number} for number in numbers))


def ping(sent: int) -> None:
    tell.defer(sent=sent)
