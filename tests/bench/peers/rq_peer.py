"""RQ."""

# What it imports is in the peers' environment only.
# mypy: ignore-errors
from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial

import orders
import witness
from redis import Redis
from rq import Queue

queue = Queue("default", connection=Redis.from_url(os.environ["BROKER_URL"]))


def noop(number: int) -> None:
    witness.ran(number)


def tell(sent: int) -> None:
    witness.began(sent)


def enqueue(number: int) -> None:
    queue.enqueue(noop, number)


enqueue_inside = partial(orders.ordered_before, enqueue=enqueue)


def enqueue_many(numbers: Sequence[int]) -> None:
    queue.enqueue_many([Queue.prepare_data(noop, (number,)) for number in numbers])


def lone(sent: int) -> None:
    Queue("lone", connection=queue.connection).enqueue(tell, sent)


def ping(sent: int) -> None:
    queue.enqueue(tell, sent)
