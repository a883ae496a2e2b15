"""The pools of Celery's: what prefork, solo and gevent must be taught, and what is refused at start.

eventlet's is refused: psycopg 3 does not give way to it, and Celery and eventlet's own authors advise to leave it.
"""

from __future__ import annotations

import functools
import logging
import select
import threading
from time import monotonic
from typing import Any

from celery.exceptions import WorkerShutdown, WorkerTerminate

from jobs import green, grouped, handover, letterbox, solo

logger = logging.getLogger("jobs.worker")

EVENTLET = (
    "the eventlet pool is not supported: each statement to the database would stop all of its bodies, and their leases "
    "could not be renewed. Start it with -P gevent, or with -P threads."
)
UNPATCHED = (
    "the gevent pool is chosen, but Python's sockets and threads were not made cooperative, so that one body that "
    "waits would stop all others. Celery does that before it loads anything when it is started with -P gevent (not by "
    "the setting worker_pool)."
)

SQLITE = (
    "The pool is gevent's, and jobs live in SQLite, which waits for its one writer with the whole process: a body that "
    "waits inside a transaction stops all others of this worker for as long as the database's time-out. "
    "Use PostgreSQL, or -P threads."
)

AT_MOST = 0.001  # seconds
ANSWERS = 2 * handover.SHORT  # seconds
PART, LAST_PART = 0.05, 1.0  # seconds in which the rest of a message comes
SPARE = 10  # connections to Redis for what is no body


def name(instance: Any) -> str:
    """What a worker's pool is called: prefork, thread, solo, gevent."""
    pool = instance.pool_cls
    return pool if isinstance(pool, str) else str(getattr(pool, "__module__", "")).rsplit(".", 1)[-1]


def refusal(instance: Any) -> str:
    """Why a worker cannot keep its promises with the pool that it was told to use, and what to do; empty if it can."""
    pool = name(instance)
    if pool == "eventlet":
        return EVENTLET
    return UNPATCHED if pool == "gevent" and not green.threads() else ""


def advice(instance: Any, database: Any) -> str:
    """What a worker should be told of its pool and its database; empty where they go together."""
    return SQLITE if name(instance) == "gevent" and database.vendor == "sqlite" else ""


def widen(instance: Any) -> None:
    """Let every greenlet or thread acknowledge its message at the same time: kombu keeps ten connections to Redis.

    A message that could not be acknowledged for want of one would hold its slot for ever.
    """
    if name(instance) not in ("gevent", "thread"):
        return
    most = max(instance.concurrency or 0, getattr(instance, "max_concurrency", None) or 0)
    options = instance.app.conf.broker_transport_options or {}
    wide = max(int(options.get("max_connections") or 0), most + SPARE)
    instance.app.conf.broker_transport_options = {**options, "max_connections": wide}


def taught(pool: Any, app: Any) -> Any:
    """A pool as attempts need it."""
    if getattr(pool, "is_green", False):
        return _of_greenlets(pool, app)
    kinds: dict[str, Any] = {
        "celery.concurrency.prefork": _of_children,
        "celery.concurrency.thread": _of_threads,
        "celery.concurrency.solo": solo.taught,
    }
    return kinds.get(pool.__module__, lambda pool: pool)(pool)


def _of_children(pool: Any) -> Any:
    class Taught(pool):  # type: ignore[misc]
        """Gives its children what was claimed for them, and records together what they complete."""

        def on_start(self) -> None:
            letterbox.make()  # before there are children
            super().on_start()
            apply: Any = vars(self)["on_apply"]
            if self.flush is not None:  # there is none where the broker's transport has no event loop
                self.flush: Any = functools.partial(_flush, self._pool, self.flush)

            def on_apply(target: Any, args: Any = (), kwargs: Any = None, callback: Any = None, **options: Any) -> Any:
                if callback is None:
                    return apply(target, args, kwargs or {}, **options)
                request_id = options.get("correlation_id", "")
                told, answered = grouped.begun(request_id), functools.partial(grouped.answered, request_id, callback)
                result = apply(handover.traced, (told, target, *args), kwargs or {}, callback=answered, **options)
                _write_now(self._pool)
                return result

            self.on_apply: Any = on_apply

        def on_stop(self) -> None:
            super().on_stop()
            grouped.end()

    Taught.__module__, Taught.__qualname__ = pool.__module__, pool.__qualname__
    return Taught


def _write_now(pool: Any) -> None:
    """Write to a child that is free what waits to be written, and not only when the event loop has its next turn."""
    loop = grouped.loop()
    if loop is None or loop._loop_thread != threading.get_ident():
        return
    free = _free(pool)
    if free and pool.outbound_buffer:
        loop.consolidate_callback(free)


def _free(pool: Any) -> list[int]:
    """The descriptors of the children that are free, the one first that is given the next job."""
    return sorted(pool._all_inqueues - pool._active_writes - pool._busy_workers)


def next_child(pool: Any) -> int | None:
    """The process id of the child that is given the next job; None while none is free, or others wait for one."""
    free = [] if pool.outbound_buffer else _free(pool)
    child = pool._fileno_to_inq.get(free[0]) if free else None
    return None if child is None else int(child.pid)


def _flush(pool: Any, flush: Any) -> None:
    """The connection to the broker was lost: drop what no child has, and only that.

    Celery drops what no child has begun; but one that was sent a job runs it, and what it answers counts.
    """
    unbegun = [result for result in tuple(pool._cache.values()) if not result._accepted]
    for result in unbegun:
        result._accepted = result._scheduled_for is not None and result not in pool.outbound_buffer
    flush()
    _hear_answers(pool)
    grouped.dropped(result.correlation_id for result in unbegun if not result._accepted)
    grouped.leave()


def _hear_answers(pool: Any) -> None:
    """Read what short bodies answer before the loop stands still: until it runs again, nobody would record it.

    As Celery's loop does it: a message may come in parts, and what was read of it must not be lost.
    """
    handler, poll = pool._result_handler, select.poll()
    reading: dict[int, Any] = {}
    for descriptor in pool._fileno_to_outq:
        poll.register(descriptor, select.POLLIN)
    until = monotonic() + ANSWERS
    last = until + LAST_PART
    while (left := until - monotonic()) > 0 and (pool._cache or reading):
        for descriptor, _ in poll.poll(1000 * left):
            message = reading.pop(descriptor, None)
            if message is None:
                message = handler._recv_message(lambda *_: None, descriptor, handler.on_state_change)
            try:
                next(message)
                reading[descriptor] = message
            except StopIteration:
                continue
            except Exception as error:
                logger.warning("What a child answers cannot be read: %s", error)
                poll.unregister(descriptor)
        if reading:
            until = min(max(until, monotonic() + PART), last)


def _of_threads(pool: Any) -> Any:
    class Taught(pool):  # type: ignore[misc]
        """Gives its threads what was claimed for them, and records together what they complete."""

        uses_semaphore = True  # what no thread is free for waits in the event loop, as with children

        def on_apply(
            self, target: Any, args: Any = (), kwargs: Any = None, callback: Any = None, **options: Any
        ) -> Any:
            if callback is None:
                return super().on_apply(target, args, kwargs or {}, **options)
            request_id = options.get("correlation_id", "")
            told, left = grouped.begun(request_id), functools.partial(grouped.left, request_id, callback)
            result = super().on_apply(handover.traced, (told, target, *args), kwargs or {}, callback=left, **options)
            result.f.add_done_callback(functools.partial(self._freed, request_id))
            return result

        def _freed(self, request_id: str, begun: Any) -> None:
            if begun.cancelled():  # the pool stopped before a thread was free: its claim is for others
                grouped.dropped([request_id])
            loop, semaphore = grouped.loop(), self.options.get("semaphore")
            if loop is not None and semaphore is not None:
                loop.call_soon(_next_one, semaphore)

        def flush(self) -> None:
            """The connection was lost, and with it the messages."""
            grouped.leave()

        def on_stop(self) -> None:
            grouped.leave()  # nobody has turns any more
            super().on_stop()
            grouped.end()

        def on_terminate(self) -> None:
            grouped.leave()
            super().on_terminate()
            grouped.finish(LAST_PART)

    Taught.__module__, Taught.__qualname__ = pool.__module__, pool.__qualname__
    return Taught


def _next_one(semaphore: Any) -> None:
    """A thread is free: for the next that waits, and to have recorded what it left."""
    semaphore.release()
    grouped.go_on()


def _of_greenlets(pool: Any, app: Any) -> Any:

    class Taught(pool):  # type: ignore[misc]
        """Leaves the time limits of jobs to the heartbeat, and survives the bodies that a shutdown ends."""

        def on_apply(self, target: Any, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
            if args and getattr(app.tasks.get(args[0]), "tracked", False):
                # It would strike at any line, of what records the outcome too.
                options["timeout"] = 0
            return super().on_apply(_quiet(target), args, kwargs, **options)

    Taught.__module__, Taught.__qualname__ = pool.__module__, pool.__qualname__
    return Taught


class Attentive:
    """A connection whose consumer, while it may take no more, looks soon again: the end of a body does not wake it."""

    SOON = 0.05  # seconds; Celery's loop for greenlets looks every two

    def __init__(self, connection: Any, consumer: Any) -> None:
        self._connection, self._consumer = connection, consumer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def drain_events(self, timeout: float, **options: Any) -> Any:
        """Take what there is, waiting for up to ``timeout`` seconds. Raises ``socket.timeout`` when nothing came."""
        may_take = getattr(getattr(self._consumer.channel, "qos", None), "can_consume", None)
        full = may_take is not None and not may_take()
        return self._connection.drain_events(timeout=min(timeout, self.SOON) if full else timeout, **options)


def hasten(connection: Any) -> None:
    """Let nobody wait for events on a connection that brings none: Celery's loop for greenlets does, for each message.

    It reads the heartbeats of RabbitMQ off the connection of its own events, and waits a tenth of a second for one.
    """
    drain = connection.drain_events
    connection.drain_events = lambda timeout=None, **options: drain(timeout=min(timeout or AT_MOST, AT_MOST), **options)


def _quiet(target: Any) -> Any:
    """A target whose end by a shutdown ends it alone: gevent hands ``SystemExit`` to the main greenlet."""

    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return target(*args, **kwargs)
        except (WorkerShutdown, WorkerTerminate):
            return False, None, None

    return run
