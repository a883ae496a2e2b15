"""The same bodies as plain Celery tasks with Celery's best settings, for the comparison: no Mainstay."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.chaos.plain_settings")

from django.db import connection, transaction

from tests.chaos import ledger
from tests.chaos.bodies import Ledger, Transient, perform

VISIBILITY = float(os.environ.get("CHAOS_VISIBILITY", "30"))
SETTINGS: dict[str, Any] = {
    "task_acks_late": True,
    "task_reject_on_worker_lost": True,
    "worker_prefetch_multiplier": 1,
    "task_publish_retry": True,
    "broker_connection_retry_on_startup": True,
    "broker_connection_max_retries": None,
    "task_default_queue": "default",
    "task_time_limit": 300,
    # Celery's own defaults are an hour, and up to a hundred seconds between two looks.
    "broker_transport_options": {
        "visibility_timeout": VISIBILITY,
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
        "socket_timeout": 5,
        "socket_connect_timeout": 5,
    },
}

app: Any = Celery(
    "plain",
    broker=os.environ.get("BROKER_URL", ""),
    backend=os.environ.get("CHAOS_RESULTS", ""),
)
app.conf.update(SETTINGS)
TRIES: Any = {"autoretry_for": (Transient,), "max_retries": 7, "default_retry_delay": 0.1}


def _attempt(number: int) -> int:
    """The how-manyth execution this is: Celery counts retries only, not what was delivered again."""
    lines = ledger.read_lines(Path(os.environ["CHAOS_LEDGER"]))
    return sum(line.what == "begin" and line.number == number for line in lines) + 1


def _perform(self: Any, number: int, seconds: float, gate: str, how: str, until: int) -> int:
    attempt = _attempt(number)
    written = Ledger(number, str(self.request.id), attempt)
    perform(written, seconds=seconds, gate=gate, how=how, attempt=attempt, until=until)
    written.write("end")
    return number


@app.task(bind=True, name="tests.chaos.tasks.plain", **TRIES)  # type: ignore[untyped-decorator]
def plain(
    self: Any,
    before: Any = None,
    *,
    number: int,
    seconds: float = 0.0,
    gate: str = "",
    how: str = "fine",
    until: int = 99,
) -> int:
    """Any task."""
    return _perform(self, number, seconds, gate, how, until)


@app.task(bind=True, name="tests.chaos.tasks.idempotent", **TRIES)  # type: ignore[untyped-decorator]
def idempotent(
    self: Any, before: Any = None, *, number: int, key: str, seconds: float = 0.0, gate: str = "", how: str = "fine",
    until: int = 99,
) -> int:  # fmt: skip
    """A task with a key, which Celery does not know."""
    return _perform(self, number, seconds, gate, how, until)


@app.task(bind=True, name="tests.chaos.tasks.limited", soft_time_limit=1.0, time_limit=2.0, **TRIES)  # type: ignore[untyped-decorator]
def limited(
    self: Any,
    before: Any = None,
    *,
    number: int,
    seconds: float = 0.0,
    gate: str = "",
    how: str = "fine",
    until: int = 99,
) -> int:
    """A task with a hard time limit."""
    return _perform(self, number, seconds, gate, how, until)


@app.task(bind=True, name="tests.chaos.tasks.transactional", **TRIES)  # type: ignore[untyped-decorator]
def transactional(
    self: Any, before: Any = None, *, number: int, seconds: float = 0.0, gate: str = "", how: str = "fine",
    until: int = 99, pause: float = 0.0,
) -> int:  # fmt: skip
    """A task whose effect is a row, written in a transaction of its own."""
    attempt = _attempt(number)
    written = Ledger(number, str(self.request.id), attempt)
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute(
                "INSERT INTO chaos_effect (number, job, pid) VALUES (%s, %s, %s)",
                [number, str(self.request.id), written.known[3]],
            )
        perform(written, seconds=seconds + pause, gate=gate, how=how, attempt=attempt, until=until)
    written.write("end")
    return number
