"""The worker's main process: it tells the database what it holds, and knows at once when a child dies."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from billiard.einfo import ExceptionInfo
from billiard.exceptions import Terminated, TimeLimitExceeded, WorkerLostError
from celery import bootsteps, signals
from celery.exceptions import InvalidTaskError
from celery.utils.imports import symbol_by_name
from celery.worker import state as worker_state
from celery.worker.request import Request as CeleryRequest
from django.db import Error

from jobs import broker, gate, grouped, lifecycle, pools, rescue, shutdown, slots, solo, strays
from jobs.adoption import as_uuid
from jobs.attempt import JobFailed, by_sigterm
from jobs.consumer import careful, check_call
from jobs.pace import Pace
from jobs.roll import Entry

logger = logging.getLogger("jobs.worker")

REPORT_EVERY = 2.0  # seconds
LOOK_EVERY = 0.25  # seconds
PREFORK, SOLO = "celery.concurrency.prefork", "celery.concurrency.solo"
SIGN_OFF = 5.0  # seconds that the last word to the database may take


class Request(CeleryRequest):
    """A message in the worker's main process, where the death of a child is seen."""

    def __init__(self, message: Any, **options: Any) -> None:
        super().__init__(message, **options)
        named: Any = self.id
        if not named or not isinstance(named, str | int):
            raise InvalidTaskError("it has no id")
        check_call(self.args, self.kwargs, self._payload[2])  # type: ignore[attr-defined]
        _check_times(self)

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> Any:
        """A child died, was killed at its limit, or only reported an error: the first two are rescued at once."""
        error = exc_info.exception
        error = getattr(error, "exc", None) or error  # billiard wraps it with its traceback
        if isinstance(error, Terminated | WorkerLostError) and shutdown.cutting():
            worker_state.task_ready(self)  # we ended it ourselves, and its job is handed back
            return None
        if shutdown.stopping() and (by_sigterm(error) or "SIGTERM" in str(error)):
            # The whole process group was told to stop.
            gate.in_background(shutdown.hand_back, self.hostname or "", [self.worker_pid], as_uuid(self.id))
        elif isinstance(error, WorkerLostError | TimeLimitExceeded | Terminated | SystemExit | KeyboardInterrupt):
            who = as_uuid(self.id), self.hostname or "", self.worker_pid
            gate.in_background(rescue.lost_child, *who, str(error), grouped.lost(self.id))
        if isinstance(error, MemoryError):
            exc_info = _reported(error)  # Celery would end the worker
        return super().on_failure(exc_info, send_failed_event=send_failed_event, return_ok=return_ok)

    def _announce_revoked(self, reason: str, terminated: bool, signum: Any, expired: bool) -> None:
        """Celery's revoke, from Flower or by remote control, is made durable: it cancels the job."""
        super()._announce_revoked(reason, terminated, signum, expired)  # type: ignore[misc]
        claims = grouped.given_back([self])
        if claims:
            gate.in_background(shutdown.unclaim, claims)  # the job does not run: it need not wait for its runner
        gate.in_background(rescue.revoked, as_uuid(self.id), reason)

    def terminate(self, pool: Any, signal: Any = None) -> None:
        """End the child, unless it has answered: it may be at another job by now."""
        if not grouped.has_answered(self.id):
            super().terminate(pool, signal)

    def cancel(self, pool: Any, signal: Any = None, emit_retry: bool = True) -> None:
        """The same, where the connection to the broker was lost."""
        if not grouped.has_answered(self.id):
            super().cancel(pool, signal, emit_retry)


def _check_times(request: Request) -> None:
    """Raise ``InvalidTaskError`` for times that would only fail later, where nobody keeps the message."""
    limits: Any = request.time_limits
    pair = isinstance(limits, list | tuple) and len(limits) == 2
    if not pair or not all(isinstance(number, int | float | None) for number in limits):
        raise InvalidTaskError(f"its time limits are not two numbers but {limits!r}")
    if request.eta is not None:
        try:
            request.eta.astimezone()
        except (ValueError, OverflowError, AttributeError) as error:
            raise InvalidTaskError(f"its eta {request.eta!r} is no time: {error}") from None


def _reported(error: MemoryError) -> ExceptionInfo:
    """An error of memory as one that says so, for a main process that has memory enough."""
    try:
        raise JobFailed(f"MemoryError: {error}")
    except JobFailed:
        return ExceptionInfo()


class Main(bootsteps.StartStopStep):
    """A step of the worker: it makes the consumer careful, teaches the pool, and signs off when the worker ends."""

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        parent.consumer_cls = careful(symbol_by_name(parent.consumer_cls))
        parent.pool_cls = pools.taught(parent.pool_cls, parent.app)

    def terminate(self, parent: Any) -> None:
        """A cold end; after a warm one Celery sends a signal."""
        sign_off()


class Children(bootsteps.StartStopStep):
    """Looks for dead children often: the one look that the pool takes when a child dies may come just too early."""

    def start(self, parent: Any) -> None:
        """The consumer starts, or starts again after it lost the broker."""
        if getattr(parent, "hub", None) is None:
            return
        parent.hub.call_repeatedly(LOOK_EVERY, shutdown.look, parent)
        if broker.pace is not None:
            parent.hub.call_repeatedly(LOOK_EVERY, shutdown.give_back_surplus, parent, broker.pace)
            grouped.join(_workplace(parent, broker.pace))
            broker.arrival = grouped.arrive if parent.pool.__module__ == PREFORK else None
            solo.LINE.join(parent.hub, broker.pace, shutdown.let_others)
        pool: Any = getattr(parent.pool, "_pool", None)
        if hasattr(pool, "maintain_pool"):
            parent.hub.call_repeatedly(LOOK_EVERY, pool.maintain_pool)


def _workplace(consumer: Any, pace: Pace) -> grouped.Workplace:
    own = solo.LINE if consumer.pool.__module__ == SOLO else None
    return grouped.Workplace(
        hub=consumer.hub, hostname=consumer.hostname, pace=pace,
        slots=lambda: broker.concurrency() if broker.concurrency and own is None else 1,
        waiting=own.waiting if own is not None else lambda: shutdown.waiting(consumer),
        received=lambda: len(worker_state.reserved_requests), hand_back=shutdown.hand_back_claims,
        decide=own.decide if own is not None else lambda count: None,
        child=lambda: pools.next_child(consumer.pool._pool) if own is None else None,
        runs=lambda task: not shutdown.stopping() and task in consumer.strategies and not consumer.task_buckets[task],
    )  # fmt: skip


_reporter: list[Callable[[], None]] = []


def sign_off() -> None:
    """Say that this worker is gone, and holds nothing."""
    while _reporter:
        _reporter.pop()()


def report_in_background(instance: Any) -> None:
    """Report this worker every two seconds, from when it is ready until it stops."""
    stopping = threading.Event()
    thread = threading.Thread(target=_report_until, args=(instance, stopping), name="mainstay-report", daemon=True)

    def start(**_: Any) -> None:
        gate.guard_forks()
        _reporter.append(stop)
        thread.start()

    def stop() -> None:
        stopping.set()
        thread.join(SIGN_OFF)

    signals.worker_ready.connect(start, weak=False)
    signals.worker_shutdown.connect(lambda **_: sign_off(), weak=False)
    shutdown.finally_do(sign_off)


def _report_until(instance: Any, stopping: threading.Event) -> None:
    entry = Entry(instance.hostname)
    while not stopping.is_set():
        with _tolerant():
            report(instance, entry)
        stopping.wait(REPORT_EVERY)
    with _tolerant():
        entry.strike()


@contextmanager
def _tolerant() -> Iterator[None]:
    """Whoever is silent holds nothing, as far as the conductor knows: nothing ends the reports."""
    try:
        with gate.talking():
            yield
        gate.database.over()
    except Error as error:
        gate.database.failed(error)
    except Exception:
        logger.exception("The worker could not report itself.")


def report(instance: Any, entry: Entry) -> None:
    """Write this worker's row."""
    first = entry.started_at is None
    holds = {as_uuid(task_id) for task_id in broker.in_hand()}
    holds |= {as_uuid(request.id) for request in _received(getattr(instance, "consumer", None))}
    pool = pools.name(instance)
    entry.write({
        "pid": os.getpid(), "seen_at": lifecycle.database_now(), "holds": sorted(holds),
        "queues": sorted(instance.app.amqp.queues.consume_from), "concurrency": instance.concurrency or 0,
        "pool": pool, "stuck": slots.held_for_good(1 if pool == "solo" else instance.concurrency or 0),
    })  # fmt: skip
    if first:
        strays.wake(list(instance.app.tasks))


def _received(consumer: Any) -> list[Any]:
    """The requests that this worker has received and not finished."""
    state = shutdown.worker_state
    sets = (state.scheduled_requests, state.reserved_requests, state.active_requests)
    # Those that wait for a rate limit first: they may become reserved while we look.
    waiting = shutdown.rate_limited(consumer) if consumer is not None else []
    return [*waiting, *(request for requests in sets for request in shutdown.copied(requests))]
