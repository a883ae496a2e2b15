"""The worker's main process: it tells the database what it holds, and knows at once when a child dies."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from billiard.exceptions import Terminated, TimeLimitExceeded, WorkerLostError
from celery import bootsteps, signals
from celery.worker import state as worker_state
from celery.worker.request import Request as CeleryRequest
from django.db import Error
from kombu.transport.redis import Channel, QoS

from jobs import lifecycle, reconcile, rescue
from jobs.adoption import as_uuid
from jobs.models import Worker

logger = logging.getLogger("jobs.worker")

REPORT_EVERY = 2.0  # seconds
LOOK_EVERY = 0.25  # seconds
COPIES = 20  # looks at what the worker holds, while that changes


class Request(CeleryRequest):
    """A message in the worker's main process, where the death of a child is seen."""

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> Any:
        """A child died, was killed at its limit, or only reported an error: the first two are rescued at once."""
        error = exc_info.exception
        error = getattr(error, "exc", None) or error  # billiard wraps it with its traceback
        if isinstance(error, WorkerLostError | TimeLimitExceeded | Terminated | SystemExit | KeyboardInterrupt):
            _in_background(rescue.lost_child, as_uuid(self.id), self.hostname or "", self.worker_pid, str(error))
        return super().on_failure(exc_info, send_failed_event=send_failed_event, return_ok=return_ok)

    def _announce_revoked(self, reason: str, terminated: bool, signum: Any, expired: bool) -> None:
        """Celery's revoke, from Flower or by remote control, is made durable: it cancels the job."""
        super()._announce_revoked(reason, terminated, signum, expired)  # type: ignore[misc]
        _in_background(rescue.revoked, as_uuid(self.id), reason)


class ForgivingQoS(QoS):
    """Kombu's record of unacknowledged messages, for a broker that went away in the middle of a job.

    Kombu 5.7 trips over its own closed connection there, and the whole worker ends. What cannot be given back
    or acknowledged is only a wake-up call: the claim refuses it, or the conductor sends it again.
    """

    def restore_unacked(self, client: Any = None) -> Any:
        """Give back what was not acknowledged, if there is still somebody to give it to."""
        try:
            return super().restore_unacked(client)
        except Exception as error:
            logger.warning("Messages could not be given back to the broker: %s", error)
            delivered: Any = self._delivered
            delivered.clear()
            return []

    def ack(self, delivery_tag: Any) -> None:
        """Acknowledge a message, unless the connection that it came by is closed."""
        if not self.channel.closed:
            super().ack(delivery_tag)


def survive_lost_brokers() -> None:
    """Let no loss of the broker end this worker."""
    Channel.QoS = ForgivingQoS


class ForkGate:
    """Keeps the pool from forking a child while a thread of this process talks to the database.

    A child would inherit what that thread holds (of SQLite: its locks, for ever).
    """

    PATIENCE = 5.0  # seconds; a database that hangs must not keep the pool from growing

    def __init__(self) -> None:
        self._talking = threading.Lock()
        self._forking = False

    @contextmanager
    def talking(self) -> Iterator[None]:
        """Talk to the database, and leave no connection open."""
        with self._talking:
            try:
                yield
            finally:
                lifecycle.database().close()

    def guard_forks(self) -> None:
        """Watch over every fork of this process from now on."""
        os.register_at_fork(before=self._close, after_in_parent=self._open, after_in_child=self._renew)

    def _close(self) -> None:
        self._forking = self._talking.acquire(timeout=self.PATIENCE)

    def _open(self) -> None:
        if self._forking:
            self._talking.release()

    def _renew(self) -> None:
        self._talking = threading.Lock()


_gate = ForkGate()


def _in_background(act: Any, *args: Any) -> None:
    """Talk to the database beside the event loop: a slow answer must not stop the worker's consuming."""

    def run() -> None:
        with _gate.talking():
            try:
                act(*args)
            except Error as error:
                # The lease ends by itself: the conductor finds what we could not report.
                logger.warning("%s could not reach the database: %s", act.__name__, error)

    threading.Thread(target=run, name=f"mainstay-{act.__name__}", daemon=True).start()


class Children(bootsteps.StartStopStep):
    """Looks for dead children often: the one look that the pool takes when a child dies may come just too early."""

    def start(self, parent: Any) -> None:
        """The consumer starts, or starts again after it lost the broker."""
        pool: Any = getattr(parent.pool, "_pool", None)
        if getattr(parent, "hub", None) is not None and hasattr(pool, "maintain_pool"):
            parent.hub.call_repeatedly(LOOK_EVERY, pool.maintain_pool)


def report_in_background(instance: Any) -> None:
    """Report this worker every two seconds, from when it is ready until it stops."""
    stopping = threading.Event()

    def start(**_: Any) -> None:
        _gate.guard_forks()
        threading.Thread(target=_report_until, args=(instance, stopping), name="mainstay-report", daemon=True).start()

    def stop(**_: Any) -> None:
        stopping.set()

    signals.worker_ready.connect(start, weak=False)
    signals.worker_shutdown.connect(stop, weak=False)


def _report_until(instance: Any, stopping: threading.Event) -> None:
    started = None
    while not stopping.is_set():
        try:
            with _gate.talking():
                started = report(instance, started)
        except Error as error:
            logger.warning("The worker could not report itself: %s", error)
        except Exception:
            # Whoever is silent holds nothing, as far as the conductor knows.
            logger.exception("The worker could not report itself.")
        stopping.wait(REPORT_EVERY)


def report(instance: Any, started: Any = None) -> Any:
    """Write this worker's row; return when it first did."""
    now = lifecycle.database_now()
    requests = {*_copied(worker_state.reserved_requests), *_copied(worker_state.active_requests)}
    holds = {as_uuid(request.id) for request in requests}
    seen = {
        "pid": os.getpid(), "seen_at": now, "started_at": started or now, "holds": sorted(holds),
        "queues": sorted(instance.app.amqp.queues.consume_from), "concurrency": instance.concurrency or 0,
        "pool": getattr(instance.pool_cls, "__module__", "").rsplit(".", 1)[-1],
    }  # fmt: skip
    if started is None:
        _give_up_predecessor(instance.hostname, frozenset(holds))
    Worker.objects.using(lifecycle.alias()).update_or_create(name=instance.hostname, defaults=seen)
    return seen["started_at"]


def _give_up_predecessor(name: str, holds: frozenset[str]) -> None:
    """What the last worker of our name held, and did not begin, is to be sent again: we are not that worker."""
    for predecessor in Worker.objects.using(lifecycle.alias()).filter(name=name):
        reconcile.give_up_hold(predecessor, holds)


def _copied(requests: Iterable[Any]) -> list[Any]:
    """The requests in one of Celery's sets, to which another thread may add while we read."""
    for _ in range(COPIES):
        with suppress(RuntimeError):
            return list(requests)
    raise RuntimeError(f"The worker's requests changed during each of {COPIES} looks at them.")
