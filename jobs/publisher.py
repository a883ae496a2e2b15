"""Handing a job's message to the broker, in bounded time. The message is only a wake-up call."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from amqp.exceptions import ChannelError, MessageNacked, NotFound, PreconditionFailed
from kombu.exceptions import OperationalError

from jobs import conf, payload
from jobs.errors import BrokerUnavailable, OptionError, Unsendable
from jobs.states import Priority

if TYPE_CHECKING:
    from jobs.models import Job

HEADER = "mainstay"
UNTRACKED = {"tracked": False}

# Ours count down to 0 as the most urgent; brokers disagree: 0 on Redis, 9 on RabbitMQ.
_REDIS = {Priority.CRITICAL: 0, Priority.HIGH: 3, Priority.NORMAL: 6, Priority.LOW: 9}
_AMQP = {Priority.CRITICAL: 9, Priority.HIGH: 6, Priority.NORMAL: 3, Priority.LOW: 0}

# What transports count among the broker's failures for the sake of their consumers. To a sender an unknown queue
# (a KeyError), and a queue or an exchange that RabbitMQ has not, or has otherwise, are faults of the one message.
_OF_THE_MESSAGE = (LookupError, NotFound, PreconditionFailed)
NO_ROUTE = 312


class Publisher:
    """One Celery app's way to the broker: kept connections, short time-outs, no retries inline."""

    def __init__(self, app: Any, send_task: Callable[..., Any]) -> None:
        self.app = app
        self._send_task = send_task
        self._kept = threading.local()
        self._paused_until = 0.0

    @property
    def paused(self) -> bool:
        """Whether the broker failed a moment ago, so that trying again would only cost the caller time."""
        return time.monotonic() < self._paused_until

    def publish(self, job: Job) -> None:
        """Send one message.

        Raises ``BrokerUnavailable`` after about ``SEND_TIMEOUT`` seconds, and is ``paused`` for ``SEND_PAUSE``.
        Raises ``Unsendable`` when the fault is this job's own; others can be sent.
        """
        try:
            self._send_fresh_or_kept(job)
        except BrokerUnavailable:
            self._paused_until = time.monotonic() + conf.current().SEND_PAUSE
            raise

    def depth(self, queue: str, priority: int | None = None) -> int:
        """How many messages wait in a queue. Raises ``BrokerUnavailable``.

        Where the broker keeps a list for each priority, only those are counted which a job of this priority may be in;
        all of them otherwise.
        """
        try:
            channel = self._producer().channel
            if priority is not None and hasattr(channel, "_q_for_pri"):
                lists = {channel._q_for_pri(queue, self._priority(one)) for one in (priority, _sooner(priority))}
                return sum(int(channel.client.llen(one)) for one in lists)
            declared = channel.queue_declare(queue=queue, passive=True)
            return int(declared.message_count)
        except ChannelError as error:
            if self._on_amqp:
                self.forget()  # RabbitMQ has closed the channel
            if error.code == 404 or "NOT_FOUND" in str(error):
                return 0  # Redis keeps no empty list; on RabbitMQ the queue itself is gone
            raise BrokerUnavailable(_sentence(error)) from error
        except Exception as error:
            self.forget()
            raise BrokerUnavailable(_sentence(error)) from error

    def forget(self) -> None:
        """Drop this thread's connection; the next message opens a new one."""
        producer, self._kept.producer = self._producer_here(), None
        if producer is not None:
            with suppress(Exception):  # it is being thrown away because it is broken
                # Only the socket is closed: RabbitMQ would be asked to say goodbye, and it may not answer.
                producer.connection.collect() if self._on_amqp else producer.close()

    def _send_fresh_or_kept(self, job: Job) -> None:
        started, kept = time.monotonic(), self._producer_here() is not None
        try:
            self._send(job)
        except (BrokerUnavailable, Unsendable):
            # A kept connection may simply have gone stale: then a new one succeeds at once.
            if not kept or time.monotonic() - started >= conf.current().SEND_TIMEOUT / 2:
                raise
            self._send(job)

    def _send(self, job: Job) -> None:
        """Try once, and keep no connection on which anything failed."""
        producer = self.reached()
        try:
            self._send_declaring(self._message(job), producer)
        except Exception as raised:
            error = _unwrapped(raised)
            unavailable = isinstance(error, _failures_of(producer)) and not isinstance(error, _OF_THE_MESSAGE)
            self.forget()
            raise (BrokerUnavailable if unavailable else Unsendable)(_sentence(error)) from error

    def _send_declaring(self, message: dict[str, Any], producer: Any) -> None:
        """Send, and once more when it turns out that RabbitMQ does not have the queue."""
        try:
            self._send_task(**message, producer=producer)
        except ChannelError as returned:
            if not self._leads_nowhere(returned, message):
                raise
            self._send_task(**message, producer=self._declared(message["queue"]))

    def _leads_nowhere(self, error: ChannelError, message: dict[str, Any]) -> bool:
        """Whether RabbitMQ gave a message back because its queue, or the exchange before it, is not there."""
        return self._on_amqp and "queue" in message and error.reply_code in (NO_ROUTE, NotFound.code)

    def _declared(self, queue: str) -> Any:
        """A fresh producer, once the queue is there: nobody has declared it so far, or it was deleted."""
        self.forget()  # a late confirmation on the old channel could be taken for that of the next message
        producer = self.reached()
        self.app.amqp.queues[queue](producer.channel).declare()
        return producer

    def reached(self) -> Any:
        """This thread's producer, connected. Raises ``BrokerUnavailable``."""
        try:
            producer = self._producer()
            producer.channel  # noqa: B018  (connects)
            return producer
        except Exception as error:
            self.forget()
            raise BrokerUnavailable(_sentence(error)) from error

    def _message(self, job: Job) -> dict[str, Any]:
        """What ``send_task`` is to be given."""
        content = payload.decode(job.payload)
        carried = payload.from_json(job.delivery) if job.delivery else {}
        headers = {
            **(carried.pop("headers", None) or {}),
            HEADER: {"job": str(job.pk), "correlation_id": job.correlation_id},
        }
        if not carried.get("exchange"):
            carried["queue"] = job.queue
            carried.update(self._in_return())
        return {
            **carried, "name": job.task, "args": list(content.args), "kwargs": content.kwargs, "task_id": str(job.pk),
            "headers": headers, "priority": self._priority(_urgency(job)), "root_id": _text(job.root_id),
            "parent_id": _text(job.parent_id), "group_id": _text(job.group_id), "group_index": job.group_index,
            "time_limit": job.time_limit, "soft_time_limit": job.soft_time_limit,
            "ignore_result": True, "add_to_parent": False, "retry": False,
        }  # fmt: skip

    def _in_return(self) -> dict[str, Any]:
        """What RabbitMQ is asked for: to say at once that it has the message, or that there is no such queue.

        It drops what it has no queue for, and says nothing. Queues are declared when one is missing: whoever declares
        a queue that exists with other arguments is refused.
        """
        if not self._on_amqp:
            return {}
        seconds = conf.current().SEND_TIMEOUT
        return {"mandatory": True, "declare": [], "timeout": seconds, "confirm_timeout": seconds}

    def _producer(self) -> Any:
        producer = self._producer_here()
        if producer is None:
            seconds = conf.current().SEND_TIMEOUT
            limits = {"socket_timeout": seconds, "socket_connect_timeout": seconds, "max_retries": 0,
                      "read_timeout": seconds, "write_timeout": seconds, "retry_on_timeout": False}  # fmt: skip
            if self._on_amqp:
                limits["confirm_publish"] = True  # without it, RabbitMQ loses messages and says nothing
            connection = self.app.connection_for_write(connect_timeout=seconds, transport_options=limits)
            producer = self.app.amqp.Producer(connection, auto_declare=False)
            self._kept.producer, self._kept.pid = producer, os.getpid()
        return producer

    def _producer_here(self) -> Any:
        # A forked child must not write to its parent's socket.
        if getattr(self._kept, "pid", None) != os.getpid():
            return None
        return getattr(self._kept, "producer", None)

    @property
    def _on_amqp(self) -> bool:
        url = str(self.app.conf.broker_write_url or self.app.conf.broker_url or "")
        return url.startswith(("amqp", "pyamqp"))

    def _priority(self, priority: int) -> int:
        return (_AMQP if self._on_amqp else _REDIS)[Priority(priority)]


def _urgency(job: Job) -> int:
    """The priority of a job's message: one step up for a job that had left its line before.

    Its runner or its message was lost. At the end of a deep queue it would wait for its turn a second time.
    """
    return _sooner(job.priority) if job.losses or job.sends > 1 else job.priority


def _sooner(priority: int) -> int:
    return max((other for other in Priority if other < priority), default=priority)


_in_use: Publisher | None = None


def use(publisher: Publisher) -> None:
    """Send through this publisher from now on."""
    global _in_use
    _in_use = publisher


def app_in_use() -> Any:
    """The Celery app that Mainstay is installed on, None while there is none."""
    return None if _in_use is None else _in_use.app


def in_use() -> Publisher:
    """The publisher in use. Raises ``OptionError`` when Mainstay is not installed on a Celery app."""
    if _in_use is None:
        raise OptionError(
            "Mainstay is not installed on a Celery app. Add to the module of the app: "
            "from jobs.celery import install; install(app)."
        )
    return _in_use


def _failures_of(producer: Any) -> tuple[type[Exception], ...]:
    """The errors by which a transport says that the broker failed."""
    connection = producer.connection
    known = (OperationalError, OSError, BrokerUnavailable, MessageNacked)
    return (*known, *connection.connection_errors, *connection.channel_errors)


def _unwrapped(error: Exception) -> Exception:
    """What kombu calls an ``OperationalError`` may be any of the errors that a transport lists."""
    cause = error.__cause__ if isinstance(error, OperationalError) else None
    return cause if isinstance(cause, Exception) else error


def _sentence(error: Exception) -> str:
    """An error in one line that every database can keep."""
    return "".join(c if c.isprintable() else " " for c in f"{type(error).__name__}: {error}")


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
