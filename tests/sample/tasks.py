"""A menu of behaviour and misbehaviour, and a witness that writes down who started and ended."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from celery import shared_task
from django.contrib.auth.models import Group

from jobs.errors import PermanentError, RateLimited, Snooze, TransientError
from jobs.retry import RetryPolicy
from jobs.task import FOREVER, NO_KEY, IdempotentTask, Task, TransactionalTask, task

QUICK = RetryPolicy(max_attempts=3, base=0.05, cap=0.2)


def witness(line: str) -> None:
    """Append a line to the file that the tests read; one write, so that lines of many processes do not mix."""
    path = os.environ.get("WITNESS")
    if path:
        with Path(path).open("a") as file:
            file.write(line + "\n")


@task
def add(a: int, b: int) -> int:
    return a + b


@task
def note(line: str) -> str:
    witness(line)
    return line


@task
def total(numbers: list[int]) -> int:
    witness(f"total {sum(numbers)}")
    return sum(numbers)


@task(retry_policy=QUICK, bind=True)
def misbehave(self: Any, how: str, until: int = 99, name: str = "") -> str:
    """Misbehave in attempts before ``until``, then return."""
    from jobs import heartbeat

    attempt = heartbeat.watched(__import__("uuid").UUID(self.request.id)).job.attempt  # type: ignore[union-attr]
    witness(f"start:{name or how}:{attempt}")
    if attempt < until:
        _MENU[how]()
    witness(f"end:{name or how}:{attempt}")
    return f"{how} {attempt}"


def _raise(error: BaseException) -> Any:
    raise error


_MENU: dict[str, Any] = {
    "transient": lambda: _raise(TransientError("try again")),
    "permanent": lambda: _raise(PermanentError("no use")),
    "unclassified": lambda: _raise(ValueError("odd")),
    "ambiguous": lambda: _raise(TimeoutError("did it?")),
    "rate": lambda: _raise(RateLimited(retry_after=0.1)),
    "snooze": lambda: _raise(Snooze(0.1)),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "exit": lambda: _raise(SystemExit(3)),
    "memory": lambda: _raise(MemoryError("full")),
    "hang": lambda: time.sleep(600),
    "fine": lambda: None,
}


@task
def nap(seconds: float, name: str = "nap") -> None:
    witness(f"start:{name}")
    time.sleep(seconds)
    witness(f"end:{name}")


class Charge(IdempotentTask):
    """An idempotent task with a typed body."""

    key = "charge:{order}"
    queue = "payments"
    priority = "high"
    retry_policy = QUICK

    def run(self, order: int, amount: float = 1.0) -> str:
        witness(f"charge:{order}:{self.idempotency_token}")
        return f"{order}:{amount}"


class Once(IdempotentTask):
    """A task whose key holds for ever."""

    key = "once:{name}"
    key_scope = FOREVER

    def run(self, name: str) -> str:
        witness(f"once:{name}")
        return name


class Enrol(TransactionalTask):
    """Writes a row and then does as told."""

    retry_policy = QUICK

    def run(self, name: str, how: str = "fine") -> str:
        Group.objects.create(name=name)
        _MENU[how]()
        return name


class Unkeyed(IdempotentTask):
    """Says explicitly that it has no key."""

    key = NO_KEY

    def run(self, seconds: float) -> None:
        time.sleep(seconds)


class Count(Task):
    """Counts with progress, slowly enough to be watched."""

    def run(self, to: int, pause: float = 0.05) -> int:
        for done in range(to):
            self.progress(done + 1, to, unit="steps", message=f"step {done + 1}")
            time.sleep(pause)
        return to


@shared_task
def plain(a: int, b: int = 2) -> int:
    """A task of somebody who never heard of us."""
    witness(f"plain:{a}:{b}")
    return a * b


@shared_task(tracked=False)
def untracked(line: str) -> str:
    witness(line)
    return line


@shared_task(bind=True, max_retries=2, default_retry_delay=0)
def celery_retry(self: Any, name: str) -> None:
    witness(f"try:{name}")
    raise self.retry(exc=RuntimeError("again"), countdown=0.05)


@shared_task(autoretry_for=(RuntimeError,), retry_backoff=False, retry_kwargs={"max_retries": 2, "countdown": 0})
def auto_retry(name: str) -> None:
    witness(f"auto:{name}")
    raise RuntimeError("again")


@task(bind=True)
def replaced(self: Any, a: int) -> Any:
    return self.replace(add.s(a, 10) | add.s(100))


@task
def remember_failure(job_id: str) -> None:
    witness(f"errback:{job_id}")


@task
def spawn(count: int) -> list[str]:
    """Enqueue children."""
    return [str(add.delay(n, n).id) for n in range(count)]


@shared_task
def on_error(request: Any, exc: Any, traceback: Any) -> None:
    """An error callback of the form that Celery documents."""
    witness(f"on_error:{request.id}:{type(exc).__name__}:{exc}:{bool(traceback)}")
