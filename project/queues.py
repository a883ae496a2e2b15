"""The queues of the project, declared as its broker wants them."""

from typing import Literal

from kombu import Exchange, Queue

Kind = Literal["classic", "quorum"]

NAMES = ("default", "payments", "mail", "media", "reports", "suppliers")
# RabbitMQ keeps a list for each priority up to this one; Mainstay uses four of them, 9 for what is critical.
HIGHEST = 9


def queues(broker_url: str, kind: Kind = "classic") -> list[Queue]:
    """All queues; on RabbitMQ of this kind, durable, and with priorities where the kind has them.

    >>> [queue.queue_arguments for queue in queues("amqp://rabbit", "quorum")][0]
    {'x-queue-type': 'quorum'}
    """
    return [_queue(name, _arguments(kind) if on_rabbitmq(broker_url) else None) for name in NAMES]


def on_rabbitmq(broker_url: str) -> bool:
    """Whether this is the address of a RabbitMQ."""
    return broker_url.partition("://")[0] in {"amqp", "amqps", "pyamqp"}


def _queue(name: str, arguments: dict[str, object] | None) -> Queue:
    # Celery gives a queue without an exchange those of the default queue: each message would go everywhere.
    return Queue(name, Exchange(name), routing_key=name, queue_arguments=arguments)


def _arguments(kind: Kind) -> dict[str, object]:
    return {"x-queue-type": "quorum"} if kind == "quorum" else {"x-max-priority": HIGHEST}
