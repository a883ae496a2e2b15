"""Django's own tasks with the backend django-tasks-db."""

# What it imports is in the peers' environment only.
# mypy: ignore-errors
from __future__ import annotations

from functools import partial

import orders
import witness

try:
    from django.tasks import task
except ImportError:  # before Django 6.0
    from django_tasks import task


@task
def noop(number: int) -> None:
    witness.ran(number)


@task
def tell(sent: int) -> None:
    witness.began(sent)


def enqueue(number: int) -> None:
    noop.enqueue(number)


enqueue_inside = partial(orders.ordered_with, enqueue=enqueue)


def ping(sent: int) -> None:
    tell.enqueue(sent)
