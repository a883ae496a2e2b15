"""Our tasks: plain ``shared_task`` functions, as somebody has who comes from Celery."""

from __future__ import annotations

from celery import shared_task

from tests.bench.peers import witness


@shared_task
def noop(number: int) -> None:
    """Be counted."""
    witness.ran(number)


@shared_task
def tell(sent: int) -> None:
    """Say how long the job was on its way."""
    witness.began(sent)
