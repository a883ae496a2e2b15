"""The consumer of a worker: what Celery would drop, or end the worker for, is handed to those who keep it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from queue import SimpleQueue
from typing import Any
from uuid import UUID

from celery import signals
from celery.exceptions import InvalidTaskError
from celery.worker.consumer import Consumer as CeleryConsumer
from kombu.exceptions import ContentDisallowed

from jobs import gate, lifecycle, outage, pools, shutdown, strays
from jobs.adoption import as_uuid
from jobs.outage import Outage
from jobs.publisher import HEADER
from jobs.strays import Call, Stray
from jobs.transport import RAW

logger = logging.getLogger("jobs.worker")

# What a message's content makes Celery and kombu raise. A connection that breaks raises others, which pass.
_OF_THE_CONTENT = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError, MemoryError)

TASK_LIMIT = 255  # characters of a task's name


class Careful:
    """Over a consumer of Celery's: no message ends the worker, and none is dropped before it is kept."""

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Any:
        """What is called with each message."""
        receive = super().create_task_handler(*args, **kwargs)  # type: ignore[misc]

        def received(message: Any) -> None:
            if shutdown.returns(self, message):
                return
            try:
                receive(message)
            except _OF_THE_CONTENT as error:
                logger.warning("A message could not be received: %s: %s", type(error).__name__, error)
                self._keep(message, error)

        return received

    def loop_args(self) -> tuple[Any, ...]:
        """What the event loop is given."""
        itself, connection, consumer, *rest = super().loop_args()  # type: ignore[misc]
        green = getattr(self.pool, "is_green", False)  # type: ignore[attr-defined]
        events = getattr(self, "event_dispatcher", None)
        if green and events is not None and events.connection is not None:
            pools.hasten(events.connection)
        return (itself, pools.Attentive(connection, consumer) if green else connection, consumer, *rest)

    def on_unknown_message(self, body: Any, message: Any) -> None:
        """It is no message of Celery's."""
        self._keep(message, None)
        signals.task_rejected.send(sender=self, message=message, exc=None)

    def on_unknown_task(self, body: Any, message: Any, exc: BaseException) -> None:
        """Its task is not known to this worker; perhaps to the next release."""
        self._keep(message, exc, unknown=True)
        name, task_id = _named(message)
        signals.task_unknown.send(sender=self, message=message, exc=exc, name=name, id=task_id)

    def on_invalid_task(self, body: Any, message: Any, exc: BaseException) -> None:
        """It is not what Celery's protocol says."""
        self._keep(message, exc)
        signals.task_rejected.send(sender=self, message=message, exc=exc)

    def on_decode_error(self, message: Any, exc: BaseException) -> None:
        """Its body cannot be decoded."""
        self._keep(message, exc)
        signals.task_rejected.send(sender=self, message=message, exc=exc)

    def _keep(self, message: Any, error: BaseException | None, *, unknown: bool = False) -> None:
        queues = self.app.amqp.queues  # type: ignore[attr-defined]
        _keeper.take(self, message, stray_from(message, error, unknown=unknown, queues=queues))


class Consumer(Careful, CeleryConsumer):  # type: ignore[misc, unused-ignore]
    """Celery's consumer, careful."""


def careful(consumer: Any) -> Any:
    """The same class of consumers, careful."""
    return consumer if issubclass(consumer, Careful) else type(consumer.__name__, (Careful, consumer), {})


class Keeper:
    """Keeps strays one after the other, beside the event loop; each is acknowledged once it is in the database.

    Until then it stays unacknowledged in the broker, so that a crash, or a database that is away, loses none.
    """

    def __init__(self) -> None:
        self._waiting: SimpleQueue[tuple[Any, Any, Stray]] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def take(self, consumer: Any, message: Any, stray: Stray) -> None:
        """Keep this one when its turn comes."""
        self._waiting.put((consumer, message, stray))
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, name="mainstay-strays", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while True:
            consumer, message, stray = self._waiting.get()
            try:
                _kept(stray)
            except Exception:
                logger.exception("A message could not be kept; only its text is.")
                _kept(stray.bare())
            consumer.call_soon(message.ack_log_error, logger, consumer.connection_errors)


_keeper = Keeper()


def _kept(stray: Stray) -> None:
    """Keep a stray, waiting for the database as long as it takes."""
    away = Outage(logger, "A message that cannot be run stays unacknowledged until it can be kept.")

    def act() -> None:
        with gate.talking():
            strays.keep(stray)

    outage.patiently(lifecycle.database(), act, away)


# --- Reading a message, whatever it is ------------------------------------------------------------------------


def stray_from(message: Any, error: BaseException | None, *, unknown: bool, queues: Any) -> Stray:
    """What can be read of a message; nothing in it makes this raise."""
    headers = message.headers if isinstance(message.headers, Mapping) else {}
    properties = message.properties if isinstance(message.properties, Mapping) else {}
    name, task_id = _named(message)
    stray: dict[str, Any] = {
        "task": name, "id": UUID(as_uuid(task_id)) if task_id else None, "queue": _queue(message, queues),
        "body": message.body if isinstance(message.body, bytes | str) else repr(message.body),
        "headers": headers, "unknown": unknown, "job": _job(headers),
        "properties": {
            "content_type": message.content_type, "content_encoding": message.content_encoding, **properties,
        },
    }  # fmt: skip
    if unknown and stray["job"] is None:
        try:
            return Stray(wrong="", call=_call(message, headers, name, task_id, stray["queue"]), **stray)
        except Exception as unreadable:
            return Stray(wrong=_wrong(message, unreadable), **stray)
    return Stray(wrong=_wrong(message, error), **stray)


def _named(message: Any) -> tuple[str, str]:
    """The task and the id that a message names, in the headers or, of the old protocol, in the body; or nothing."""
    for place in _places(message):
        name, task_id = place.get("task"), place.get("id")
        if isinstance(name, str) and name:
            return name, str(task_id) if isinstance(task_id, str | int) else ""
    return "", ""


def _places(message: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(message.headers, Mapping):
        yield message.headers
    with suppress(Exception):
        body = message.payload
        if isinstance(body, Mapping):
            yield body


def _queue(message: Any, queues: Any) -> str:
    """The queue that a message came by, where its routing key names one."""
    info = message.delivery_info
    key = info.get("routing_key") if isinstance(info, Mapping) else None
    return key if isinstance(key, str) and key in queues else ""


def _job(headers: Mapping[str, Any]) -> UUID | None:
    """The job whose message it is, where it is one of ours."""
    ours = headers.get(HEADER)
    try:
        return UUID(str(ours["job"])) if isinstance(ours, Mapping) else None
    except (KeyError, ValueError):
        return None


def _call(message: Any, headers: Mapping[str, Any], name: str, task_id: str, queue: str) -> Call:
    """What a foreign message asks for. Raises for one that Celery could not run either."""
    if not task_id or len(name) > TASK_LIMIT:
        raise InvalidTaskError("it has no id" if not task_id else "the name of its task is too long")
    body = message.payload
    says: Mapping[str, Any]
    if isinstance(body, Mapping):
        says, args, kwargs, embed = {**body, **headers}, body.get("args", ()), body.get("kwargs", {}), body
    else:
        says, (args, kwargs, embed) = headers, body
    check_call(args, kwargs, embed)
    embed = embed or {}
    options = {
        "task_id": as_uuid(task_id),
        "root_id": as_uuid(says.get("root_id")), "parent_id": as_uuid(says.get("parent_id")),
        "link": embed.get("callbacks"), "link_error": embed.get("errbacks"), "chain": embed.get("chain"),
        "queue": queue, "eta": says.get("eta"), "expires": says.get("expires"),
    }  # fmt: skip
    return Call(list(args), dict(kwargs), {key: value for key, value in options.items() if value})


def check_call(args: Any, kwargs: Any, embed: Any) -> None:
    """Raise ``InvalidTaskError`` for what is no call: it would fail in the pool, where nobody keeps it."""
    if not isinstance(args, list | tuple):
        raise InvalidTaskError(f"its args are not a list but {type(args).__name__}")
    if not isinstance(kwargs, dict) or not all(isinstance(key, str) for key in kwargs):
        raise InvalidTaskError(f"its kwargs are not an object by parameter name but {type(kwargs).__name__}")
    if embed is not None and not isinstance(embed, Mapping):
        raise InvalidTaskError(f"what follows it is not an object but {type(embed).__name__}")


def _wrong(message: Any, error: BaseException | None) -> str:
    """What is wrong with a message, in a sentence for people."""
    detail = f" ({type(error).__name__}: {error})" if error is not None and str(error) else ""
    if message.content_type == RAW:
        return "This text was in the queue; it is not a message of Celery's, nor of kombu's."
    if isinstance(error, ContentDisallowed):
        return f"Its content type {message.content_type!r} is not accepted here: jobs are JSON only{detail}."
    try:
        body = message.payload
    except Exception as broken:
        return f"Its body cannot be decoded ({type(broken).__name__}: {broken})."
    name, task_id = _named(message)
    if not name:
        return "It names no task, so it is not a message of Celery's."
    if not task_id:
        return "It has no id."
    if not isinstance(body, Mapping) and not (isinstance(body, list | tuple) and len(body) == 3):
        return "Its body is not a list of args, kwargs and what follows."
    return f"It is not what Celery's protocol says{detail}."
