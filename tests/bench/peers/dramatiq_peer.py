"""Dramatiq with its Redis broker."""

# What it imports is in the peers' environment only.
# mypy: ignore-errors
from __future__ import annotations

import os
from functools import partial

import dramatiq
import orders
import witness
from dramatiq.brokers.redis import RedisBroker

dramatiq.set_broker(RedisBroker(url=os.environ["BROKER_URL"]))


@dramatiq.actor
def noop(number: int) -> None:
    witness.ran(number)


@dramatiq.actor
def tell(sent: int) -> None:
    witness.began(sent)


@dramatiq.actor(queue_name="lone")
def tell_alone(sent: int) -> None:
    witness.began(sent)


def lone(sent: int) -> None:
    tell_alone.send(sent)


def enqueue(number: int) -> None:
    noop.send(number)


enqueue_inside = partial(orders.ordered_before, enqueue=enqueue)


def ping(sent: int) -> None:
    tell.send(sent)
