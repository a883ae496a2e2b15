"""Kombu's Redis transport, made to live through what others put into its lists, and through a broker that fails it.

Of every other transport, the library under it sees to this.
"""

from __future__ import annotations

import logging
from typing import Any
from uuid import NAMESPACE_OID, uuid5

from kombu.transport import redis, virtual
from redis.exceptions import DataError, ResponseError

logger = logging.getLogger("jobs.worker")

# The content type of an envelope around what was in a list and is no message.
RAW = "application/x-mainstay-raw"

# What kombu trips over when the content of a list is no message of its own.
OF_THE_CONTENT = (ValueError, TypeError, LookupError, AttributeError, RecursionError, DataError)


class ForgivingQoS(redis.QoS):  # type: ignore[misc, unused-ignore]
    """Kombu's record of unacknowledged messages, for a broker that went away, or is full, in the middle of a job.

    Kombu 5.7 trips over its own closed connection there, and the whole worker ends. What cannot be given back
    or acknowledged is only a wake-up call: the claim refuses it, or the conductor sends it again.
    """

    def append(self, message: Any, delivery_tag: Any) -> None:
        """Note a message as unacknowledged; where the broker refuses that (it is full), in our memory alone."""
        try:
            super().append(message, delivery_tag)
        except ResponseError as error:
            logger.warning("The broker cannot note which messages are unacknowledged: %s", error)
            virtual.QoS.append(self, message, delivery_tag)

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

    def reject(self, delivery_tag: Any, requeue: bool = False) -> None:
        """Give a message back as the next in line, or forget it."""
        if requeue:
            self.restore_by_tag(delivery_tag)
            virtual.QoS.ack(self, delivery_tag)
        else:
            super().reject(delivery_tag)


class _Careful:
    """Over kombu's channel: what is popped off a list and is no message becomes one, with the content as its body.

    So it is unacknowledged in the broker, as any message, until somebody has seen to it.
    """

    _popped: Any = None

    def _create_client(self, asynchronous: bool = False) -> Any:
        client = super()._create_client(asynchronous)  # type: ignore[misc]
        if asynchronous:
            self._remember_pops(client)
        return client

    def _remember_pops(self, client: Any) -> None:
        parse = client.parse_response

        def remembered(connection: Any, command: Any, **options: Any) -> Any:
            answer = parse(connection, command, **options)
            if command == "BRPOP":
                self._popped = answer
            return answer

        client.parse_response = remembered

    def _brpop_read(self, **options: Any) -> Any:
        self._popped = None
        try:
            return super()._brpop_read(**options)  # type: ignore[misc]
        except OF_THE_CONTENT:
            if not self._popped:
                raise
            key, content = self._popped
            queue = _text(key).rsplit(self.sep, 1)[0]  # type: ignore[attr-defined]
            self.connection._deliver(envelope(content, queue), queue)  # type: ignore[attr-defined]
            return True
        finally:
            self._popped = None


def envelope(content: Any, queue: str) -> dict[str, Any]:
    """A message of kombu's around what is none; the same content has the same tag, so it is noted once."""
    text = _text(content)
    return {
        "body": text, "content-type": RAW, "content-encoding": "utf-8", "headers": {},
        "properties": {
            "delivery_tag": str(uuid5(NAMESPACE_OID, f"{queue}\n{text}")),
            "delivery_info": {"exchange": "", "routing_key": queue}, "priority": 0,
        },
    }  # fmt: skip


def _text(content: Any) -> str:
    return content.decode("utf-8", "backslashreplace") if isinstance(content, bytes) else str(content)


def survive() -> None:
    """Let neither the loss of a broker nor the content of its lists end this worker."""
    for transport in (redis.Transport, redis.SentinelTransport):
        channel: Any = transport.Channel
        if not issubclass(channel, _Careful):
            transport.Channel = type(channel.__name__, (_Careful, channel), {"QoS": ForgivingQoS})
