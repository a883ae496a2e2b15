"""Many messages in few round trips: in a pipeline where the transport has one, confirmed together on RabbitMQ."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from amqp.exceptions import MessageNacked

from jobs.messages import Message

# One message, or a message and the event that tells of it.
Parcel = Sequence[Message]
Put = Callable[[Message, Any], None]
# Where a parcel stood in the batch, and why it may not have gone.
Failed = dict[int, Exception]

_NEVER_BY_ITSELF = 10**9


def pipelined(producer: Any, parcels: Sequence[Parcel], put: Put, gone: Callable[[Exception], bool]) -> Failed:
    """Send in one round trip; where the transport has no pipelines, in one for each.

    What makes ``gone`` true stands in the way of all that follow; other errors are those of one parcel.
    """
    failed: Failed = {}
    sent = 0
    try:
        with producer.batch(max_size=_NEVER_BY_ITSELF) as batch:
            ends: list[int] = []
            for place, parcel in enumerate(parcels):
                try:
                    for message in parcel:
                        put(message, producer)
                except Exception as error:
                    if gone(error):
                        raise
                    failed[place] = error
                pipeline = getattr(batch.state.session, "pipeline", None)
                ends.append(0 if pipeline is None else len(pipeline))
                sent = place + 1 if pipeline is None else 0
            failed |= _refused(batch.state.session, ends)
    except Exception as error:
        # What was in the pipeline may have arrived, or not.
        failed |= {place: error for place in range(sent, len(parcels)) if place not in failed}
    return failed


def _refused(session: Any, ends: Sequence[int]) -> Failed:
    """Run the pipeline; return the parcels of which the broker refused a part."""
    failed: Failed = {}
    if session is None:
        return failed
    # Not by the batch itself: it would raise the first refusal, and not say what became of the others.
    answers, start = session.pipeline.execute(raise_on_error=False), 0
    for place, end in enumerate(ends):
        for answer in answers[start:end]:
            if isinstance(answer, Exception):
                failed[place] = answer
        start = end
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
        """Publish without waiting; an error of one message is kept, unless it took the channel with it."""
        for self._place, parcel in enumerate(parcels):
            for message in parcel:
                if task_id := message.options.get("correlation_id"):
                    self._places[task_id] = self._place
                try:
                    put(message, producer)
                except Exception as error:
                    if not producer.channel.is_open or isinstance(error, OSError):
                        raise
                    self.failed[self._place] = error
        self._place = len(parcels)

    def missing(self, parcels: int) -> set[int]:
        """The parcels that were not confirmed, or not even published."""
        return set(self.awaited.values()) | set(range(self._place, parcels))

    def _counted(self, message: Any, **options: Any) -> Any:
        self._published += 1
        self.awaited[self._published] = self._place
        return self._publish(message, **options)

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
