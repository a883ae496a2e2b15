"""A plugin for pytest: our transport in the place of kombu's, for every test that imports it."""

from typing import Any

from kombu.transport import redis
from kombu.utils import eventio

from jobs import broker

PLACES = ("QoS", "Channel", "Transport", "SentinelChannel", "SentinelTransport")

kombu: Any = redis
for place in PLACES:
    setattr(kombu, place, getattr(broker, place))

# The unit tests put a poller of their own in its place before they import the transport. We were earlier.
kombu.poll = lambda *given: eventio.poll(*given)
