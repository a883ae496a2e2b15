"""Handing a job's message to the broker, in bounded time. The message is only a wake-up call."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from amqp.exceptions import ChannelError

from jobs import conf, payload
from jobs.errors import BrokerUnavailable, OptionError
from jobs.states import Priority

if TYPE_CHECKING:
    from jobs.models import Job

HEADER = "mainstay"
UNTRACKED = {"tracked": False}

# Ours count down to 0 as the most urgent; brokers disagree: 0 on Redis, 9 on RabbitMQ.
_REDIS = {Priority.CRITICAL: 0, Priority.HIGH: 3, Priority.NORMAL: 6, Priority.LOW: 9}
_AMQP = {Priority.CRITICAL: 9, Priority.HIGH: 6, Priority.NORMAL: 3, Priority.LOW: 0}


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
        """
        started = time.monotonic()
        fresh = self._producer_here() is None
        try:
            self._send(job)
        except Exception as error:
            self.forget()
            # A kept connection may simply have gone stale: then a new one succeeds at once.
            stale = not fresh and time.monotonic() - started < conf.current().SEND_TIMEOUT / 2
            if not stale or not self._sent_afresh(job):
                self._paused_until = time.monotonic() + conf.current().SEND_PAUSE
                raise BrokerUnavailable(f"{type(error).__name__}: {error}") from error

    def depth(self, queue: str) -> int:
        """How many messages wait in a queue, of all priorities. Raises ``BrokerUnavailable``."""
        try:
            channel = self._producer().channel
            declared = channel.queue_declare(queue=queue, passive=True)
            return int(declared.message_count)
        except ChannelError as error:
            if self._on_amqp:
                self.forget()  # RabbitMQ has closed the channel
            if error.code == 404 or "NOT_FOUND" in str(error):
                return 0  # Redis keeps no empty list; on RabbitMQ the queue itself is gone
            raise BrokerUnavailable(f"{type(error).__name__}: {error}") from error
        except Exception as error:
            self.forget()
            raise BrokerUnavailable(f"{type(error).__name__}: {error}") from error

    def forget(self) -> None:
        """Drop this thread's connection; the next message opens a new one."""
        producer, self._kept.producer = self._producer_here(), None
        if producer is not None:
            with suppress(Exception):  # it is being thrown away because it is broken
                producer.connection.collapse() if hasattr(producer.connection, "collapse") else producer.close()

    def _sent_afresh(self, job: Job) -> bool:
        try:
            self._send(job)
        except Exception:
            self.forget()
            return False
        return True

    def _send(self, job: Job) -> None:
        content = payload.decode(job.payload)
        carried = payload.from_json(job.delivery) if job.delivery else {}
        headers = {
            **(carried.pop("headers", None) or {}),
            HEADER: {"job": str(job.pk), "correlation_id": job.correlation_id},
        }
        if not carried.get("exchange"):
            carried["queue"] = job.queue
        self._send_task(
            job.task, list(content.args), content.kwargs, task_id=str(job.pk), producer=self._producer(),
            headers=headers, priority=self._priority(job.priority), root_id=_text(job.root_id),
            parent_id=_text(job.parent_id), group_id=_text(job.group_id),
            group_index=job.group_index, time_limit=job.time_limit,
            soft_time_limit=job.soft_time_limit, ignore_result=True, add_to_parent=False, retry=False, **carried,
        )  # fmt: skip

    def _producer(self) -> Any:
        producer = self._producer_here()
        if producer is None:
            seconds = conf.current().SEND_TIMEOUT
            limits = {"socket_timeout": seconds, "socket_connect_timeout": seconds, "max_retries": 0,
                      "read_timeout": seconds, "write_timeout": seconds, "retry_on_timeout": False}  # fmt: skip
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


_in_use: Publisher | None = None


def use(publisher: Publisher) -> None:
    """Send through this publisher from now on."""
    global _in_use
    _in_use = publisher


def in_use() -> Publisher:
    """The publisher in use. Raises ``OptionError`` when Mainstay is not installed on a Celery app."""
    if _in_use is None:
        raise OptionError(
            "Mainstay is not installed on a Celery app. Add to the module of the app: "
            "from jobs.celery import install; install(app)."
        )
    return _in_use


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
