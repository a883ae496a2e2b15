"""The worker's main process: it tells the database what it holds, and knows at once when a child dies."""

from __future__ import annotations

import logging
import os
import threading
from typing import Any

from billiard.exceptions import Terminated, TimeLimitExceeded, WorkerLostError
from celery import signals
from celery.worker import state as worker_state
from celery.worker.request import Request as CeleryRequest
from django.db import Error, connection

from jobs import lifecycle, rescue
from jobs.models import Worker

logger = logging.getLogger("jobs.worker")

REPORT_EVERY = 2.0  # seconds


class Request(CeleryRequest):
    """A message in the worker's main process, where the death of a child is seen."""

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> Any:
        """A child died, was killed at its limit, or only reported an error: the first two are rescued at once."""
        error = exc_info.exception
        error = getattr(error, "exc", None) or error  # billiard wraps it with its traceback
        if isinstance(error, WorkerLostError | TimeLimitExceeded | Terminated | SystemExit | KeyboardInterrupt):
            _in_background(rescue.lost_child, self.id, self.worker_pid, str(error))
        return super().on_failure(exc_info, send_failed_event=send_failed_event, return_ok=return_ok)

    def _announce_revoked(self, reason: str, terminated: bool, signum: Any, expired: bool) -> None:
        """Celery's revoke, from Flower or by remote control, is made durable: it cancels the job."""
        super()._announce_revoked(reason, terminated, signum, expired)  # type: ignore[misc]
        _in_background(rescue.revoked, self.id, reason)


def _in_background(act: Any, *args: Any) -> None:
    """Talk to the database beside the event loop: a slow answer must not stop the worker's consuming."""

    def run() -> None:
        try:
            act(*args)
        except Error as error:
            # The lease ends by itself: the conductor finds what we could not report.
            logger.warning("%s could not reach the database: %s", act.__name__, error)
        finally:
            connection.close()

    threading.Thread(target=run, name=f"mainstay-{act.__name__}", daemon=True).start()


def report_in_background(instance: Any) -> None:
    """Report this worker every two seconds, from when it is ready until it stops."""
    stopping = threading.Event()

    def start(**_: Any) -> None:
        threading.Thread(target=_report_until, args=(instance, stopping), name="mainstay-report", daemon=True).start()

    def stop(**_: Any) -> None:
        stopping.set()

    signals.worker_ready.connect(start, weak=False)
    signals.worker_shutdown.connect(stop, weak=False)


def _report_until(instance: Any, stopping: threading.Event) -> None:
    started = None
    while not stopping.is_set():
        try:
            started = report(instance, started)
        except Error as error:
            logger.warning("The worker could not report itself: %s", error)
            connection.close()
        stopping.wait(REPORT_EVERY)
    connection.close()


def report(instance: Any, started: Any = None) -> Any:
    """Write this worker's row; return when it first did."""
    now = lifecycle.database_now()
    holds = {request.id for request in tuple(worker_state.reserved_requests)} | {
        request.id for request in tuple(worker_state.active_requests)
    }
    seen = {
        "pid": os.getpid(), "seen_at": now, "started_at": started or now, "holds": sorted(holds),
        "queues": sorted(instance.app.amqp.queues.consume_from), "concurrency": instance.concurrency or 0,
        "pool": getattr(instance.pool_cls, "__module__", "").rsplit(".", 1)[-1],
    }  # fmt: skip
    Worker.objects.using(lifecycle.alias()).update_or_create(name=instance.hostname, defaults=seen)
    return seen["started_at"]
