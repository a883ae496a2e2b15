"""Many messages in few round trips: in a pipeline where the transport has one, confirmed together on RabbitMQ."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from amqp.exceptions import AMQPError, MessageNacked

from jobs.messages import Message

# One message, or a message and the event that tells of it.
Parcel = Sequence[Message]
Put = Callable[[Message, Any], None]
# Where a parcel stood in the batch, and why it may not have gone.
Failed = dict[int, Exception]


def sent(producer: Any, parcels: Sequence[Parcel], put: Put, gone: Callable[[Exception], bool]) -> Failed:
    """Send in one round trip; where the transport has no pipelines, in one for each.

    What makes ``gone`` true stands in the way of all that follow; other errors are those of one parcel.
    """
    if getattr(producer.channel, "supports_batch_publish", False):
        return _pipelined(producer, parcels, put, gone)
    return _put_each(range(len(parcels)), parcels, lambda _, message: put(message, producer), gone)


def _put_each(
    places: Sequence[int], parcels: Sequence[Parcel], put: Callable[[int, Message], None],
    gone: Callable[[Exception], bool],
) -> Failed:  # fmt: skip
    failed: Failed = {}
    for place in places:
        try:
            for message in parcels[place]:
                put(place, message)
        except Exception as error:
            if gone(error):
                return failed | dict.fromkeys(range(place, len(parcels)), error)
            failed[place] = error
    return failed


def _pipelined(producer: Any, parcels: Sequence[Parcel], put: Put, gone: Callable[[Exception], bool]) -> Failed:
    basket = _Basket(producer.channel)
    filling = type(producer)(basket, auto_declare=False)

    def into_the_basket(place: int, message: Message) -> None:
        basket.place = place
        put(message, filling)

    failed = _put_each(range(len(parcels)), parcels, into_the_basket, gone)
    try:
        return basket.sent() | failed
    except Exception as error:
        # What was on its way may have arrived, or not.
        return dict.fromkeys(range(len(parcels)), error) | failed


class _Basket:
    """A channel that keeps the commands which would bring messages to the broker; kombu knows them, and the keys."""

    def __init__(self, channel: Any) -> None:
        self.place = 0
        self._channel = channel
        self._commands: list[tuple[str, list[Any], list[int]]] = []
        self._lists: dict[Any, tuple[str, list[Any], list[int]]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._channel, name)

    def basic_publish(self, message: Any, **options: Any) -> Any:
        """Take a message in; the channel calls ``add`` with its commands."""
        return self._channel.basic_publish(message, _publish_batch=self, **options)

    def add(self, command: str, key: Any, *values: Any) -> None:
        """Keep a command. What goes to the same list goes with one."""
        if command == "lpush" and key in self._lists:
            _, arguments, places = self._lists[key]
            arguments += values
            places.append(self.place)
            return
        self._commands.append((command, [key, *values], [self.place]))
        if command == "lpush":
            self._lists[key] = self._commands[-1]

    def sent(self) -> Failed:
        """Bring everything to the broker at once; return the places of what it refused."""
        failed: Failed = {}
        with self._channel.conn_or_acquire() as client, client.pipeline(transaction=False) as pipeline:
            for command, arguments, _ in self._commands:
                getattr(pipeline, command)(*arguments)
            for answer, (_, _, places) in zip(pipeline.execute(raise_on_error=False), self._commands, strict=True):
                if isinstance(answer, Exception):
                    failed |= dict.fromkeys(places, answer)
        return failed


def confirmed(producer: Any, parcels: Sequence[Parcel], put: Put, seconds: float) -> Failed:
    """Send all, then wait until RabbitMQ has confirmed or returned each; it may be silent for ``seconds`` at most."""
    try:
        channel = producer.connection.channel()
        channel.confirm_select()
    except Exception as error:
        return dict.fromkeys(range(len(parcels)), error)
    confirmations = _Confirmations(channel)
    try:
        confirmations.publish_all(type(producer)(channel, auto_declare=False), parcels, put)
        while confirmations.awaited:
            producer.connection.drain_events(timeout=seconds)
    except Exception as error:
        return confirmations.failed | dict.fromkeys(confirmations.missing(len(parcels)), error)
    with suppress(Exception):  # it has done its work
        channel.close()
    return confirmations.failed


class _Confirmations:
    """What RabbitMQ says of the messages that were published on a channel of their own."""

    def __init__(self, channel: Any) -> None:
        self.failed: Failed = {}
        self.awaited: dict[int, int] = {}
        self._published = 0
        self._place = 0
        self._places: dict[str, int] = {}
        # That of its class, which does not wait for a confirmation of each message.
        self._publish = functools.partial(type(channel).basic_publish, channel)
        channel.basic_publish = self._counted
        for event in ("basic_ack", "basic_nack", "basic_return"):
            channel.events[event].add(getattr(self, f"_{event}"))

    def publish_all(self, producer: Any, parcels: Sequence[Parcel], put: Put) -> None:
        """Publish without waiting; the error of a message is kept, unless it was RabbitMQ's, and so the channel's."""
        for self._place, parcel in enumerate(parcels):
            for message in parcel:
                if task_id := message.options.get("correlation_id"):
                    self._places[task_id] = self._place
                try:
                    put(message, producer)
                except Exception as error:
                    if isinstance(error, AMQPError | OSError):
                        raise  # the channel is a new one now, on which nothing is confirmed
                    self.failed[self._place] = error
        self._place = len(parcels)

    def missing(self, parcels: int) -> set[int]:
        """The parcels that were not confirmed, or not even published."""
        return set(self.awaited.values()) | set(range(self._place, parcels))

    def _counted(self, message: Any, **options: Any) -> Any:
        answer = self._publish(message, **options)
        # Only now: what could not be written has no number at RabbitMQ, and nothing will be heard of it.
        self._published += 1
        self.awaited[self._published] = self._place
        return answer

    def _basic_ack(self, tag: int, multiple: bool) -> None:
        self._settled(tag, multiple)

    def _basic_nack(self, tag: int, multiple: bool) -> None:
        for place in self._settled(tag, multiple):
            self.failed[place] = MessageNacked()

    def _settled(self, tag: int, multiple: bool) -> list[int]:
        tags = [one for one in self.awaited if one <= tag] if multiple else [tag]
        return [self.awaited.pop(one) for one in tags if one in self.awaited]

    def _basic_return(self, error: Exception, exchange: str, routing_key: str, message: Any) -> None:
        place = self._places.get(message.properties.get("correlation_id", ""))
        if place is not None:
            self.failed[place] = error
