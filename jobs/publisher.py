"""Handing a job's message to the broker, in bounded time. The message is only a wake-up call."""

from __future__ import annotations

import functools
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import UUID

from amqp.exceptions import ChannelError, MessageNacked, NotFound, PreconditionFailed
from django.core.signals import setting_changed
from kombu.exceptions import OperationalError

from jobs import batches, conf
from jobs.batches import Failed, Parcel
from jobs.errors import BrokerUnavailable, OptionError, Unsendable
from jobs.messages import HEADER as HEADER
from jobs.messages import Configured, Maker, Message, asked
from jobs.states import Priority

if TYPE_CHECKING:
    from jobs.models import Job

UNTRACKED = {"tracked": False}

# Ours count down to 0 as the most urgent; brokers disagree: 0 on Redis, 9 on RabbitMQ.
_REDIS: dict[int, int] = {Priority.CRITICAL: 0, Priority.HIGH: 3, Priority.NORMAL: 6, Priority.LOW: 9}
_AMQP: dict[int, int] = {Priority.CRITICAL: 9, Priority.HIGH: 6, Priority.NORMAL: 3, Priority.LOW: 0}

# What transports count among the broker's failures for the sake of their consumers. To a sender an unknown queue
# (a KeyError), and a queue or an exchange that RabbitMQ has not, or has otherwise, are faults of the one message.
_OF_THE_MESSAGE = (LookupError, NotFound, PreconditionFailed)
# So says Redis where somebody keeps something else under the name of a queue.
_OF_THE_QUEUE = "WRONGTYPE Operation"
NO_ROUTE = 312

# The jobs whose message may not have gone, and why.
Failures = dict[UUID, BrokerUnavailable | Unsendable]

# How much goes out in one round trip, and how many times ``SEND_TIMEOUT`` many round trips may take together.
AT_ONCE, BYTES_AT_ONCE = 1000, 1_000_000
PATIENCE = 4


@dataclass(slots=True)
class Way:
    """A thread's connection to the broker, and what is known of it."""

    producer: Any
    on_amqp: bool
    in_return: dict[str, Any]
    pid: int = field(default_factory=os.getpid)
    declared: dict[int, Any] = field(default_factory=dict)

    def declare(self, entity: Any) -> None:
        """Declare a queue unless it was; kombu knows it too, and takes long to say so."""
        if self.declared.get(id(entity)) is not entity:
            self.producer.maybe_declare(entity)
            if entity.can_cache_declaration:
                self.declared[id(entity)] = entity

    def priority(self, priority: int) -> int:
        """One of our priorities as the broker's."""
        return (_AMQP if self.on_amqp else _REDIS)[priority]

    def close(self) -> None:
        """Throw it away, because it is broken."""
        with suppress(Exception):
            # Only the socket is closed: RabbitMQ would be asked to say goodbye, and it may not answer.
            self.producer.connection.collect() if self.on_amqp else self.producer.close()


class Publisher:
    """One Celery app's way to the broker: kept connections, short time-outs, no retries inline."""

    def __init__(self, app: Any, send_task: Callable[..., Any]) -> None:
        self.app = app
        self._send_task = send_task
        self._maker = Maker(app)
        self._here = threading.local()
        self._resting: list[Way] = []
        self._paused_until = 0.0

    @property
    def paused(self) -> bool:
        """Whether the broker failed a moment ago, so that trying again would only cost the caller time."""
        return time.monotonic() < self._paused_until

    @property
    def configured(self) -> Configured:
        """What Celery's configuration says to each call."""
        return self._maker.configured

    def configure(self) -> None:
        """Ask Celery's configuration again: Django's settings, in which it stands, have changed."""
        self._maker.configure()

    @property
    def watched(self) -> bool:
        """Whether somebody is told of each message that is sent, or takes part in making it."""
        return self._maker.watched or not self._maker.makes_alone(self._send_task)

    def publish(self, job: Job) -> None:
        """Send one message.

        Raises ``BrokerUnavailable`` after about ``SEND_TIMEOUT`` seconds, and is ``paused`` for ``SEND_PAUSE``.
        Raises ``Unsendable`` when the fault is this job's own; others can be sent.
        """
        try:
            self._send_fresh_or_kept(job)
        except BrokerUnavailable:
            self._pause()
            raise

    def publish_many(self, jobs: Sequence[Job]) -> Failures:
        """Send many messages, in order and in few round trips; return which jobs' may not have gone, and why.

        Takes up to ``PATIENCE`` times ``SEND_TIMEOUT``, and ends at the first answer that takes longer than one.
        Whatever is not returned is in the broker. What is returned may be there all the same: a spare message is
        harmless. Paused for ``SEND_PAUSE`` if the broker was at fault (``BrokerUnavailable``); ``Unsendable`` is one
        job's own fault, and the others go.
        """
        failed: Failures = {}
        started, kept = time.monotonic(), self._way_here() is not None
        made = self._made(jobs, failed)
        again = self._send_all(made, started)
        if again and kept and time.monotonic() - started < conf.current().SEND_TIMEOUT / 2:
            again = self._send_all([(job, parcel) for job, parcel in made if job.pk in again], started)
        failed |= again
        if any(isinstance(error, BrokerUnavailable) for error in failed.values()):
            self._pause()
        return failed

    def depth(self, queue: str, priority: int | None = None) -> int:
        """How many messages wait in a queue. Raises ``BrokerUnavailable``.

        Where the broker keeps a list for each priority, only those are counted which a job of this priority may be in;
        all of them otherwise.
        """
        try:
            channel = self._way().producer.channel
            if priority is not None and hasattr(channel, "_q_for_pri"):
                lists = {channel._q_for_pri(queue, self._way().priority(one)) for one in (priority, _sooner(priority))}
                return sum(int(channel.client.llen(one)) for one in lists)
            declared = channel.queue_declare(queue=queue, passive=True)
            return int(declared.message_count)
        except ChannelError as error:
            if self._way().on_amqp:
                self.forget()  # RabbitMQ has closed the channel
            if error.code == 404 or "NOT_FOUND" in str(error):
                return 0  # Redis keeps no empty list; on RabbitMQ the queue itself is gone
            raise BrokerUnavailable(_sentence(error)) from error
        except Exception as error:
            self.forget()
            raise BrokerUnavailable(_sentence(error)) from error

    def forget(self) -> None:
        """Drop this thread's connection; the next message opens a new one."""
        self._resting.clear()  # what is broken here is so there
        way, self._here.way = self._way_here(), None
        if way is not None:
            way.close()

    def rest(self) -> None:
        """Leave the connection of a thread or greenlet that is about to end to the next one that has none."""
        way, self._here.way = self._way_here(), None
        if way is not None:
            self._resting.append(way)

    def reached(self) -> Any:
        """This thread's producer, connected. Raises ``BrokerUnavailable``."""
        return self._reached().producer

    # --- One ---

    def _send_fresh_or_kept(self, job: Job) -> None:
        started, kept = time.monotonic(), self._way_here() is not None
        try:
            self._send(job)
        except (BrokerUnavailable, Unsendable):
            # A kept connection may simply have gone stale: then a new one succeeds at once.
            if not kept or time.monotonic() - started >= conf.current().SEND_TIMEOUT / 2:
                raise
            self._send(job)

    def _send(self, job: Job) -> None:
        """Try once, and keep no connection on which anything failed."""
        way = self._reached()
        try:
            self._send_declaring(self._asked(job, way), way)
        except Exception as error:
            self.forget()
            raise _judged(error, way) from _unwrapped(error)

    def _send_declaring(self, message: dict[str, Any], way: Way) -> None:
        """Send, and once more when it turns out that RabbitMQ does not have the queue."""
        try:
            self._send_made(message, way)
        except ChannelError as returned:
            if not _leads_nowhere(returned, message, way):
                raise
            self._send_made(message, self._declared(message["queue"]))

    def _send_made(self, message: dict[str, Any], way: Way) -> None:
        """Send a copy of a message like it, or let Celery make it."""
        connection = way.producer.connection
        copy = None if self._maker.watched else self._maker.copied(message, self._send_task, connection)
        if copy is None:
            self._send_task(**message, producer=way.producer)
        else:
            _put(way, copy, way.producer)

    def _declared(self, queue: str) -> Way:
        """A fresh connection, once the queue is there: nobody has declared it so far, or it was deleted."""
        self.forget()  # a late confirmation on the old channel could be taken for that of the next message
        way = self._reached()
        self.app.amqp.queues[queue](way.producer.channel).declare()
        return way

    # --- Many ---

    def _made(self, jobs: Sequence[Job], failed: Failures) -> list[tuple[Job, Parcel]]:
        """The messages of jobs, but for those that cannot be made; these are noted as failed."""
        made: list[tuple[Job, Parcel]] = []
        watched, way = self._maker.watched, None
        for job in jobs:
            try:
                way = way or self._way()
                connection = way.producer.connection
                made.append((job, self._maker.made(self._asked(job, way), self._send_task, connection, watched)))
            except Exception as error:
                failed[job.pk] = _judged(error, way)
        return made

    def _send_all(self, made: Sequence[tuple[Job, Parcel]], started: float) -> Failures:
        """Try once, slice by slice while the broker answers and time is left."""
        until = started + PATIENCE * conf.current().SEND_TIMEOUT
        failed: Failures = {}
        error: BrokerUnavailable | None = None
        for part in _slices(made):
            if error is None and time.monotonic() > until:
                error = BrokerUnavailable(f"it took longer than {until - started:g} s for a part of the messages")
            if error is None:
                failed |= self._send_slice(part, until)
                error = next((e for e in failed.values() if isinstance(e, BrokerUnavailable)), None)
            else:
                failed |= dict.fromkeys((job.pk for job, _ in part), error)
        return failed

    def _send_slice(self, made: Sequence[tuple[Job, Parcel]], until: float) -> Failures:
        try:
            way = self._reached()
        except BrokerUnavailable as error:
            return {job.pk: error for job, _ in made}
        failed = _sent(way, [parcel for _, parcel in made])
        if failed:
            self.forget()
        judged = {made[place][0].pk: _judged(error, way) for place, error in failed.items()}
        if way.on_amqp:
            self._one_by_one([made[p][0] for p in sorted(failed) if isinstance(failed[p], ChannelError)], judged, until)
        return judged

    def _one_by_one(self, jobs: Iterable[Job], failed: Failures, until: float) -> None:
        """Send again what RabbitMQ gave back, or dropped with the channel that it closed for one message's sake."""
        for job in jobs:
            if time.monotonic() > until:
                failed[job.pk] = BrokerUnavailable("RabbitMQ closed the channel, and no time was left to try again")
                continue
            try:
                self._send(job)
                del failed[job.pk]
            except Unsendable as error:
                failed[job.pk] = error
            except BrokerUnavailable as error:
                failed[job.pk] = error
                until = 0.0

    # --- The broker ---

    def _pause(self) -> None:
        self._paused_until = time.monotonic() + conf.current().SEND_PAUSE

    def _asked(self, job: Job, way: Way) -> dict[str, Any]:
        """What ``send_task`` is to be given."""
        return asked(job, way.priority(_urgency(job)), way.in_return)

    def _reached(self) -> Way:
        """This thread's connection, open. Raises ``BrokerUnavailable``."""
        try:
            way = self._way()
            way.producer.channel  # noqa: B018  (connects)
            return way
        except Exception as error:
            self.forget()
            raise BrokerUnavailable(_sentence(error)) from error

    def _way(self) -> Way:
        way = self._way_here()
        if way is None:
            seconds, on_amqp = conf.current().SEND_TIMEOUT, self._is_amqp()
            limits = {"socket_timeout": seconds, "socket_connect_timeout": seconds, "max_retries": 0,
                      "read_timeout": seconds, "write_timeout": seconds, "retry_on_timeout": False}  # fmt: skip
            if on_amqp:
                limits["confirm_publish"] = True  # without it, RabbitMQ loses messages and says nothing
            connection = self.app.connection_for_write(connect_timeout=seconds, transport_options=limits)
            producer = self.app.amqp.Producer(connection, auto_declare=False)
            way = self._here.way = Way(producer, on_amqp, _in_return(seconds) if on_amqp else {})
        return way

    def _way_here(self) -> Way | None:
        way: Way | None = getattr(self._here, "way", None)
        # A forked child must not write to its parent's socket.
        return way if way is not None and way.pid == os.getpid() else self._rested()

    def _rested(self) -> Way | None:
        """A connection that was left to whoever needs one, None if there is none."""
        with suppress(IndexError):
            way = self._resting.pop()
            if way.pid == os.getpid():
                self._here.way = way
                return way
        return None

    def _is_amqp(self) -> bool:
        url = str(self.app.conf.broker_write_url or self.app.conf.broker_url or "")
        return url.startswith(("amqp", "pyamqp"))


def _in_return(seconds: float) -> dict[str, Any]:
    """What RabbitMQ is asked for: to say at once that it has the message, or that there is no such queue.

    It drops what it has no queue for, and says nothing. Queues are declared when one is missing: whoever declares
    a queue that exists with other arguments is refused.
    """
    return {"mandatory": True, "declare": [], "timeout": seconds, "confirm_timeout": seconds}


def _slices(made: Sequence[tuple[Job, Parcel]]) -> Iterator[Sequence[tuple[Job, Parcel]]]:
    """Parts that are small enough to be sent at once."""
    start = size = 0
    for place, (job, _) in enumerate(made):
        size += len(job.payload)
        if place - start == AT_ONCE or (size > BYTES_AT_ONCE and place > start):
            yield made[start:place]
            start, size = place, len(job.payload)
    if start < len(made):
        yield made[start:]


def _put(way: Way, message: Message, producer: Any) -> None:
    for entity in message.declares:
        way.declare(entity)
    producer.publish(message.body, declare=[], **message.options)


def _sent(way: Way, parcels: Sequence[Parcel]) -> Failed:
    """Send parcels together; return those that failed, by their place."""
    put = functools.partial(_put, way)
    if way.on_amqp:
        return batches.confirmed(way.producer, parcels, put, conf.current().SEND_TIMEOUT)
    return batches.sent(way.producer, parcels, put, lambda error: isinstance(_judged(error, way), BrokerUnavailable))


def _leads_nowhere(error: ChannelError, message: dict[str, Any], way: Way) -> bool:
    """Whether RabbitMQ gave a message back because its queue, or the exchange before it, is not there."""
    return way.on_amqp and "queue" in message and error.reply_code in (NO_ROUTE, NotFound.code)


def _urgency(job: Job) -> int:
    """The priority of a job's message: one step up for a job that had left its line before.

    Its runner or its message was lost. At the end of a deep queue it would wait for its turn a second time.
    So is one that goes in its turn before plain jobs which lie there already. One that has waited too long goes before
    all others.
    """
    if getattr(job, "overdue", False):
        return Priority.CRITICAL
    sooner = job.losses or job.sends > 1 or getattr(job, "sooner", False)
    return _sooner(job.priority) if sooner else job.priority


def _sooner(priority: int) -> int:
    return max((other for other in Priority if other < priority), default=priority)


_in_use: Publisher | None = None


def _configure(*, setting: str, **_: Any) -> None:
    if _in_use is not None and setting.upper().startswith("CELERY"):
        _in_use.configure()


setting_changed.connect(_configure)


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


def _judged(raised: Exception, way: Way | None) -> BrokerUnavailable | Unsendable:
    """Whose fault an error is: the broker's, or that of the one message."""
    error = _unwrapped(raised)
    of_the_message = isinstance(error, _OF_THE_MESSAGE) or _OF_THE_QUEUE in str(error)
    unavailable = way is None or (isinstance(error, _failures_of(way)) and not of_the_message)
    judged = (BrokerUnavailable if unavailable else Unsendable)(_sentence(error))
    judged.__cause__ = error
    return judged


def _failures_of(way: Way) -> tuple[type[Exception], ...]:
    """The errors by which a transport says that the broker failed."""
    connection = way.producer.connection
    known = (OperationalError, OSError, BrokerUnavailable, MessageNacked)
    return (*known, *connection.connection_errors, *connection.channel_errors)


def _unwrapped(error: Exception) -> Exception:
    """What kombu calls an ``OperationalError`` may be any of the errors that a transport lists."""
    cause = error.__cause__ if isinstance(error, OperationalError) else None
    return cause if isinstance(cause, Exception) else error


def _sentence(error: Exception) -> str:
    """An error in one line that every database can keep."""
    return "".join(c if c.isprintable() else " " for c in f"{type(error).__name__}: {error}")
