"""The marker that is left in the broker: it shares the fate of the messages, so it tells when they were lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any, Protocol

from amqp.exceptions import NotFound
from django.db import Error
from redis.exceptions import ResponseError, WatchError

from jobs import publisher
from jobs.errors import BrokerUnavailable

NAME = "mainstay.epoch"
COPIES = 10  # markers that are read at once, where crashes left more than one


@dataclass(frozen=True, slots=True)
class Marker:
    """How often it was moved on, and when last, by the database's clock."""

    serial: int
    at: datetime

    @classmethod
    def read(cls, text: Any) -> Marker | None:
        """The marker in what a broker kept; None for what is none.

        >>> Marker.read(b"7 2026-11-22T08:00:00+00:00").serial, Marker.read("junk")
        (7, None)
        """
        with suppress(ValueError, AttributeError, TypeError):
            serial, at = (text.decode() if isinstance(text, bytes) else text).split(" ")
            return cls(int(serial), datetime.fromisoformat(at))
        return None

    def __str__(self) -> str:
        return f"{self.serial} {self.at.isoformat()}"


class Place(Protocol):
    """Where a broker keeps the marker."""

    server: str
    marker: Marker | None
    perhaps_held: bool  # by another process that looks at it, where none was found
    others: Marker | None  # that of another installation which uses the same broker

    def leave(self, marker: Marker) -> None:
        """Put this marker in place of the one that was found."""

    def close(self) -> None:
        """Let go, whether the marker was moved on or not."""


class _OnRedis:
    """A field of a hash; the server's run changes with each start and with a failover.

    Where two installations share a database of Redis by mistake, the first has the field, the other one of its own.
    """

    perhaps_held = False

    def __init__(self, channel: Any, us: str) -> None:
        # Commands that kombu knows how to prefix, where environments share a server by ``global_keyprefix``.
        self._seen = channel.client.pipeline()
        self._seen.watch(NAME)
        self._us = us
        self._first = (self._seen.hget(NAME, "owner") or us.encode()) == us.encode()
        self.marker = self._read("marker" if self._first else us)
        self.others = self._read("beside" if self._first else "marker")
        self.server = _run_of(channel.client)

    def _read(self, field: str) -> Marker | None:
        return Marker.read(self._seen.hget(NAME, field))

    def leave(self, marker: Marker) -> None:
        text = str(marker)
        fields = {"marker": text, "owner": self._us} if self._first else {self._us: text, "beside": text}
        self._seen.multi()
        self._seen.hset(NAME, mapping=fields)
        # Flushed since we looked, or moved on by another conductor while this one stood still: the next look tells.
        with suppress(WatchError):
            self._seen.execute()

    def close(self) -> None:
        self._seen.reset()


def _run_of(client: Any) -> str:
    """Which run of the server this is; nothing where it may not be asked, as a user with few rights may not."""
    try:
        return str(client.info("server").get("run_id", ""))
    except ResponseError:
        return ""


class _OnAmqp:
    """A persistent message in a durable queue of its own, held until the next one lies there."""

    others: Marker | None = None  # installations have virtual hosts of their own there
    server = ""  # what is durable outlives the server's run, and the marker is as durable as the jobs' messages

    def __init__(self, channel: Any, us: str) -> None:
        self._channel = channel
        # The queue goes with a node that was reset. While it is there and empty, a conductor that stands still may
        # have the marker: RabbitMQ hands it out again when that one's connection is gone.
        self.perhaps_held = _has_queue(channel)
        if not self.perhaps_held:
            channel.queue_declare(queue=NAME, durable=True, auto_delete=False)
        self._held = list(islice(iter(lambda: channel.basic_get(NAME), None), COPIES))
        markers = [marker for message in self._held if (marker := Marker.read(message.body))]
        self.marker = max(markers, key=lambda marker: marker.serial, default=None)

    def leave(self, marker: Marker) -> None:
        message = self._channel.prepare_message(
            str(marker).encode(), content_type="text/plain", content_encoding="utf-8", properties={"delivery_mode": 2}
        )
        self._channel.basic_publish(message, exchange="", routing_key=NAME)
        while self._held:
            self._channel.basic_ack(self._held.pop().delivery_tag)

    def close(self) -> None:
        """What was not replaced goes back."""
        while self._held:
            self._channel.basic_reject(self._held.pop().delivery_tag, requeue=True)


def _has_queue(channel: Any) -> bool:
    asking = channel.connection.channel()  # RabbitMQ closes it to say no
    try:
        asking.queue_declare(queue=NAME, passive=True)
    except NotFound:
        return False
    asking.close()
    return True


_PLACES: dict[str, Callable[[Any, str], Place]] = {"redis": _OnRedis, "amqp": _OnAmqp}


@contextmanager
def place(us: str) -> Iterator[Place | None]:
    """Where the broker keeps the marker of this installation, with what it keeps; None where it can keep none.

    Raises ``BrokerUnavailable``.
    """
    sender = publisher.in_use()
    producer = sender.reached()
    kind = _PLACES.get(producer.connection.transport.driver_type)
    if kind is None:
        yield None
        return
    try:
        here = kind(producer.channel, us)
        try:
            yield here
        finally:
            here.close()
    except Error:
        raise
    except Exception as error:
        sender.forget()
        raise BrokerUnavailable(f"{type(error).__name__}: {error}") from error
