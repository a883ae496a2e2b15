"""The application's own write, beside which a job is enqueued in one transaction."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from django.db import connection, transaction


def ordered_with(number: int, enqueue: Callable[[int], object]) -> None:
    """Write an order and enqueue its job in one transaction: for queues that live in the database."""
    with transaction.atomic():
        order(number)
        enqueue(number)


def ordered_before(number: int, enqueue: Callable[[int], object]) -> None:
    """Write an order and enqueue its job once that has committed: for queues that live elsewhere."""
    with transaction.atomic():
        order(number)
        transaction.on_commit(partial(enqueue, number))


def order(number: int) -> None:
    """Insert one row."""
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO bench_order (number) VALUES (%s)", [number])
