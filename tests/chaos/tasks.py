"""The tasks of the matrix, as jobs of the platform. All take ``number``; a canvas may put a result before it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from django.db import connection

from jobs.retry import RetryPolicy
from jobs.task import Breaker, Concurrency, Debounce, IdempotentTask, Rate, TransactionalTask, chunk_task, task
from tests.chaos.bodies import CHECKPOINTED_ROWS, Broken, Ledger, Transient, last_together, perform
from tests.chaos.ledger import NOBODY

POLICY = RetryPolicy(max_attempts=8, base=0.1, cap=1.0, transient=(Transient,), permanent=(Broken,))


def _perform(self: Any, number: int, seconds: float, gate: str, how: str, until: int) -> int:
    attempt, token = _attempt(self)
    written = Ledger(number, str(self.request.id), attempt, token)
    perform(written, seconds=seconds, gate=gate, how=how, attempt=attempt, until=until)
    written.write("end")
    return number


def _attempt(self: Any) -> tuple[int, str]:
    """Number and token of the attempt that runs, as its process knows them."""
    from jobs import heartbeat

    watched = heartbeat.watched(UUID(self.request.id))
    if watched is None:
        return self.request.retries + 1, NOBODY
    return watched.job.attempt, str(watched.job.token)


@task(bind=True, retry_policy=POLICY)
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


@task(bind=True, base=IdempotentTask, key="chaos:{key}", retry_policy=POLICY)
def idempotent(
    self: Any, before: Any = None, *, number: int, key: str, seconds: float = 0.0, gate: str = "", how: str = "fine",
    until: int = 99,
) -> int:  # fmt: skip
    """A task with a key."""
    return _perform(self, number, seconds, gate, how, until)


@task(bind=True, base=TransactionalTask, retry_policy=POLICY)
def transactional(
    self: Any, before: Any = None, *, number: int, seconds: float = 0.0, gate: str = "", how: str = "fine",
    until: int = 99, pause: float = 0.0,
) -> int:  # fmt: skip
    """A task whose effect is a row, written in the transaction that completes the job; ``pause`` is after the row."""
    attempt, token = _attempt(self)
    written = Ledger(number, str(self.request.id), attempt, token)
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO chaos_effect (number, job, pid) VALUES (%s, %s, %s)",
            [number, str(self.request.id), written.known[3]],
        )
    perform(written, seconds=seconds + pause, gate=gate, how=how, attempt=attempt, until=until)
    written.write("end")
    return number


@task(bind=True, soft_time_limit=1.0, time_limit=2.0, retry_policy=POLICY)
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
    """A task with a hard time limit of two seconds."""
    return _perform(self, number, seconds, gate, how, until)


@task(bind=True, limits=[Concurrency("user {user}", 2), Concurrency("{task}", 3)], retry_policy=POLICY)
def guarded(
    self: Any, before: Any = None, *, number: int, user: str = "", seconds: float = 0.0, gate: str = "",
    how: str = "fine", until: int = 99,
) -> int:  # fmt: skip
    """A task of which two run at a time for each user, and three in all."""
    return _perform(self, number, seconds, gate, how, until)


@task(bind=True, limits=[Rate("gateway", "8/s", burst=4)], retry_policy=POLICY)
def through_gateway(
    self: Any, before: Any = None, *, number: int, seconds: float = 0.0, gate: str = "", how: str = "fine",
    until: int = 99,
) -> int:  # fmt: skip
    """A task of which eight start in a second, or four at once after a quiet time."""
    return _perform(self, number, seconds, gate, how, until)


@task(bind=True, breakers=[Breaker("gateway of {user}", failures=3, park=3.0)], retry_policy=POLICY)
def breakable(
    self: Any, before: Any = None, *, number: int, user: str, mended: str, seconds: float = 0.0, gate: str = "",
) -> int:  # fmt: skip
    """A task that fails until the file ``mended`` exists, and from then on works until there is a ``gate``.

    Three failures in a row park its user for three seconds.
    """
    written = Ledger(number, str(self.request.id), *_attempt(self))
    if not Path(mended).exists():
        written.last(seconds)
        raise Transient("the gateway is away")
    written.write("works")
    written.wait_for(gate)
    written.write("end")
    return number


@chunk_task(bind=True, size=10, max_wait=1.0, retry_policy=POLICY)
def gathered(self: Any, payloads: list[dict[str, Any]]) -> Sequence[int]:
    """Ten jobs in one call, which works until there is the ``gate`` of the first."""
    written = [
        Ledger(payload["number"], str(job.pk), job.attempt, str(job.token))
        for payload, job in zip(payloads, self.request.mainstay_chunk, strict=True)
    ]
    last_together(written, payloads[0]["gate"])
    for one in written:
        one.write("end")
    return [payload["number"] for payload in payloads]


@task(bind=True, debounce=Debounce("user {user}", quiet=0.5, longest=2.0), retry_policy=POLICY)
def debounced(self: Any, before: Any = None, *, number: int, user: str) -> int:
    """One run for the calls of a user that come within half a second of each other, two seconds after the first."""
    return _perform(self, number, 0.0, "", "fine", 99)


@task(bind=True, base=IdempotentTask, key="chaos:{key}", key_scope=timedelta(days=1), retry_policy=POLICY)
def daily(
    self: Any, before: Any = None, *, number: int, key: str, seconds: float = 0.0, gate: str = "", how: str = "fine",
    until: int = 99,
) -> int:  # fmt: skip
    """A task whose key holds for a day."""
    return _perform(self, number, seconds, gate, how, until)


@task(bind=True, base=IdempotentTask, key="chaos:{number}", retry_policy=POLICY)
def checkpointed(self: Any, before: Any = None, *, number: int, seconds: float = 0.0) -> int:
    """A task that writes its effect as a step and ten rows behind a cursor; ``seconds`` are between them."""
    written = Ledger(number, str(self.request.id), *_attempt(self))
    self.step("look", abs, -number)
    self.atomic_step("effect", _write_effect, number, str(self.request.id))
    for place in range(self.cursor("rows", 0), CHECKPOINTED_ROWS):
        written.last(seconds / CHECKPOINTED_ROWS)
        with self.advance("rows", place + 1):
            _write_effect(number * 1000 + place, str(self.request.id))
    written.write("end")
    return number


def _write_effect(number: int, job: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO chaos_effect (number, job, pid) VALUES (%s, %s, %s)", [number, job, os.getpid()])
