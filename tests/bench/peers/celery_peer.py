"""Celery, with or without django-celery-results: the settings tell."""

# What it imports is in the peers' environment only.
# mypy: ignore-errors
from __future__ import annotations

import orders
import witness
from celery import Celery

app = Celery("celery_peer")
app.config_from_object("django.conf:settings", namespace="CELERY")


@app.task
def noop(number: int) -> None:
    witness.ran(number)


@app.task
def tell(sent: int) -> None:
    witness.began(sent)


def enqueue(number: int) -> None:
    noop.delay(number)


def enqueue_inside(number: int) -> None:
    from django.db import transaction

    with transaction.atomic():
        orders.order(number)
        noop.delay_on_commit(number)


def lone(sent: int) -> None:
    tell.apply_async((sent,), queue="lone")


def ping(sent: int) -> None:
    tell.delay(sent)
