"""The marker that is left in the broker: it shares the fate of the messages, so it tells when they were lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any, Protocol

from django.db import Error

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

    def leave(self, marker: Marker) -> None:
        """Put this marker in place of the one that was found."""

    def close(self) -> None:
        """Let go, whether the marker was moved on or not."""


class _OnRedis:
    """A field of a hash; the server's run changes with each start and with a failover."""

    def __init__(self, channel: Any) -> None:
        # Commands that kombu knows how to prefix, where environments share a server by ``global_keyprefix``.
        self._client = channel.client
        self.marker = Marker.read(self._client.hget(NAME, "marker"))
        self.server = str(self._client.info("server").get("run_id", ""))

    def leave(self, marker: Marker) -> None:
        self._client.hset(NAME, "marker", str(marker))

    def close(self) -> None:
        """Nothing is held."""


class _OnAmqp:
    """A persistent message in a durable queue of its own, held until the next one lies there."""

    server = ""  # what is durable outlives the server's run, and the marker is as durable as the jobs' messages

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        channel.queue_declare(queue=NAME, durable=True, auto_delete=False)
        self._held = list(islice(iter(lambda: channel.basic_get(NAME), None), COPIES))
        markers = [marker for message in self._held if (marker := Marker.read(message.body))]
        self.marker = max(markers, key=lambda marker: marker.serial, default=None)

    def leave(self, marker: Marker) -> None:
        message = self._channel.prepare_message(str(marker), properties={"delivery_mode": 2})
        self._channel.basic_publish(message, exchange="", routing_key=NAME)
        while self._held:
            self._channel.basic_ack(self._held.pop().delivery_tag)

    def close(self) -> None:
        """What was not replaced goes back."""
        while self._held:
            self._channel.basic_reject(self._held.pop().delivery_tag, requeue=True)


_PLACES: dict[str, Callable[[Any], Place]] = {"redis": _OnRedis, "amqp": _OnAmqp}


@contextmanager
def place() -> Iterator[Place | None]:
    """Where the broker keeps the marker, with what it keeps; None for a kind of broker that can keep none.

    Raises ``BrokerUnavailable``.
    """
    sender = publisher.in_use()
    producer = sender.reached()
    kind = _PLACES.get(producer.connection.transport.driver_type)
    if kind is None:
        yield None
        return
    try:
        here = kind(producer.channel)
        try:
            yield here
        finally:
            here.close()
    except Error:
        raise
    except Exception as error:
        sender.forget()
        raise BrokerUnavailable(f"{type(error).__name__}: {error}") from error
