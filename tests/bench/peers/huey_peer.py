"""Huey with its Redis storage."""

# What it imports is in the peers' environment only.
# mypy: ignore-errors
from __future__ import annotations

import os
from functools import partial

import orders
import witness
from huey import RedisHuey

queue = RedisHuey("bench", url=os.environ["BROKER_URL"])


@queue.task()
def noop(number: int) -> None:
    witness.ran(number)


@queue.task()
def tell(sent: int) -> None:
    witness.began(sent)


def enqueue(number: int) -> None:
    noop(number)


enqueue_inside = partial(orders.ordered_before, enqueue=enqueue)


def ping(sent: int) -> None:
    tell(sent)
