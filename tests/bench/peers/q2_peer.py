"""django-q2 with its ORM broker."""

# What it imports is in the peers' environment only.
# mypy: ignore-errors
from __future__ import annotations

from functools import partial

import orders
import witness
from django_q.tasks import async_task


def noop(number: int) -> None:
    witness.ran(number)


def tell(sent: int) -> None:
    witness.began(sent)


def enqueue(number: int) -> None:
    async_task(noop, number)


enqueue_inside = partial(orders.ordered_with, enqueue=enqueue)


def ping(sent: int) -> None:
    async_task(tell, sent)
