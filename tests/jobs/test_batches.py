"""Many messages at once: what the broker has is known job by job, whatever becomes of a part of them."""

import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
from celery import signals
from django.db.models import F
from redis import Redis

from jobs import batches, conf, publisher, release
from jobs.errors import BrokerUnavailable, Unsendable
from jobs.models import Job
from jobs.publisher import Publisher
from jobs.states import State
from project.servers import RedisServer
from tests.environment import DATABASE
from tests.platform import fresh, hurry
from tests.sample.tasks import echo, note

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def unpaused(broker: RedisServer) -> Iterator[Publisher]:
    """A publisher that has seen no failure yet."""
    before = publisher.in_use()
    publisher.use(Publisher(before.app, before._send_task))
    yield publisher.in_use()
    publisher.in_use().forget()
    publisher.use(before)


def due(count: int, task: Any = note, args: tuple[Any, ...] = ("x",), **changes: Any) -> list[Job]:
    """Jobs that wait and are due, the first created first."""
    first = fresh(task.apply_async(args, countdown=60))
    fields = {f.attname: getattr(first, f.attname) for f in Job._meta.concrete_fields if f.attname != "id"}
    more = [Job(**(fields | {"due_at": first.due_at + timedelta(milliseconds=n)})) for n in range(1, count)]
    Job.objects.bulk_create(more)
    if changes:
        Job.objects.filter(pk=more[count // 2].pk).update(**changes)
    Job.objects.update(due_at=F("due_at") - timedelta(hours=1))
    return list(Job.objects.order_by("due_at"))


def sent(broker: RedisServer, queue: str = "default") -> list[str]:
    """The ids of the jobs whose messages are in a queue, the first sent first."""
    with Redis.from_url(broker.url) as client:
        return [json.loads(raw)["headers"]["id"] for raw in reversed(client.lrange(f"{queue}\x06\x166", 0, -1))]


def states() -> Counter[str]:
    return Counter(Job.objects.values_list("state", flat=True))


def nothing_is_lost(broker: RedisServer) -> None:
    """Each job waits in the database, or is reserved and has a message; none has two."""
    messages = Counter(sent(broker))
    reserved = {str(pk) for pk in Job.objects.filter(state=State.RESERVED).values_list("pk", flat=True)}
    assert reserved <= messages.keys()
    assert set(messages.values()) <= {1}
    assert set(states()) <= {State.RESERVED, State.PENDING}


def test_all_that_is_due_goes_in_its_order(broker: RedisServer) -> None:
    jobs = due(1000)
    assert release.release() == 1000
    assert sent(broker) == [str(job.pk) for job in jobs]
    assert states() == {State.RESERVED: 1000}


def test_a_release_is_one_statement_or_two_and_one_round_trip(
    broker: RedisServer, django_assert_num_queries: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    due(500)
    trips: list[int] = []
    at_once = batches._Basket.sent
    monkeypatch.setattr(batches._Basket, "sent", lambda self: trips.append(1) or at_once(self))
    # Whether anything waits in line, and what does not: PostgreSQL is asked both at once.
    with django_assert_num_queries(2 if DATABASE == "sqlite" else 1):
        assert release.release() == 500
    assert trips == [1]


def test_what_is_too_large_for_one_round_trip_takes_some(broker: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "BYTES_AT_ONCE", 5000)
    jobs = due(20, echo, ("x" * 2000,))
    assert release.release() == 20
    assert sent(broker) == [str(job.pk) for job in jobs]


# --- A part of them fails ----------------------------------------------------------------------------


def test_one_that_cannot_be_sent_among_a_thousand_holds_up_no_other(unpaused: Publisher, broker: RedisServer) -> None:
    due(1000, queue="renamed")
    assert release.release() == 999
    (waits,) = Job.objects.filter(state=State.PENDING)
    assert waits.queue == "renamed"
    assert waits.reason.startswith("cannot be sent: QueueNotFound: ")
    assert not unpaused.paused
    nothing_is_lost(broker)


@pytest.mark.parametrize("changes", [{"payload": "{"}, {"delivery": '{"delivery_mode": "durable"}'}, {"priority": 7}])
def test_so_does_one_whose_message_cannot_be_made(broker: RedisServer, changes: dict[str, Any]) -> None:
    due(5, **changes)
    assert release.release() == 4
    nothing_is_lost(broker)


def test_a_queue_that_the_broker_refuses_keeps_only_its_own_jobs(broker: RedisServer, unpaused: Publisher) -> None:
    due(5, queue="mail")
    with Redis.from_url(broker.url) as client:
        client.set("mail\x06\x166", "not a list")
    assert release.release() == 4
    (waits,) = Job.objects.filter(state=State.PENDING)
    assert waits.reason.startswith("cannot be sent: ResponseError: ")
    assert not unpaused.paused
    nothing_is_lost(broker)


@pytest.fixture
def full(broker: RedisServer) -> Iterator[Callable[[int], None]]:
    """Let the broker have so many bytes more than it has."""
    with Redis.from_url(broker.url) as client:
        yield lambda more: client.config_set("maxmemory", client.info("memory")["used_memory"] + more)
        client.config_set("maxmemory", 0)


def test_a_broker_that_becomes_full_keeps_what_it_took(
    broker: RedisServer, full: Callable[[int], None], unpaused: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher, "AT_ONCE", 10)
    due(100, echo, ("x" * 20_000,))
    release.release(1)
    full(500_000)
    gone = release.release()
    assert 0 < gone < 99
    assert states() == {State.RESERVED: 1 + gone, State.PENDING: 99 - gone}
    assert "OutOfMemory" in Job.objects.filter(state=State.PENDING)[0].reason
    assert unpaused.paused
    nothing_is_lost(broker)


# --- The broker goes -----------------------------------------------------------------------------------


class Cut:
    """A way to the broker that takes so many bytes, over all connections, and then closes for good."""

    def __init__(self, left: int, port: int) -> None:
        self.left, self.port = left, port
        self.server = socket.create_server(("127.0.0.1", 0))
        self.address = f"redis://127.0.0.1:{self.server.getsockname()[1]}/0"
        self.ends: list[socket.socket] = [self.server]
        in_background(self.accept)

    def accept(self) -> None:
        with suppress(OSError):
            while True:
                client, upstream = self.server.accept()[0], socket.create_connection(("127.0.0.1", self.port))
                self.ends += [client, upstream]
                in_background(self.forth, client, upstream)
                in_background(self.back, upstream, client)

    def forth(self, client: socket.socket, upstream: socket.socket) -> None:
        with suppress(OSError):
            while content := client.recv(4096):
                upstream.sendall(content[: self.left])
                self.left -= len(content)
                if self.left <= 0:
                    self.close()

    def back(self, upstream: socket.socket, client: socket.socket) -> None:
        with suppress(OSError):
            while content := upstream.recv(4096):
                client.sendall(content)

    def close(self) -> None:
        for end in self.ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


def in_background(act: Callable[..., None], *arguments: Any) -> None:
    threading.Thread(target=act, args=arguments, daemon=True).start()


@pytest.mark.parametrize("after", [400, 5_000, 100_000, 300_000])
def test_a_broker_that_dies_in_the_middle_loses_no_job(
    broker: RedisServer, unpaused: Publisher, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = due(1000)
    monkeypatch.setattr(publisher, "AT_ONCE", 100)
    way = Cut(after, broker.port)
    monkeypatch.setattr(unpaused.app.conf, "broker_write_url", way.address)
    gone = release.release()
    way.close()
    assert states()[State.RESERVED] == gone < 1000
    assert states()[State.PENDING] == 1000 - gone
    assert unpaused.paused
    nothing_is_lost(broker)
    monkeypatch.undo()
    publisher.use(Publisher(unpaused.app, unpaused._send_task))
    hurry()
    assert release.release() == 1000 - gone
    assert {str(job.pk) for job in jobs} == set(sent(broker))


def test_a_broker_that_says_nothing_is_left_alone_after_a_moment(broker: RedisServer, unpaused: Publisher) -> None:
    due(100)
    assert release.release(1) == 1
    broker.freeze()
    began = time.monotonic()
    assert release.release() == 0
    assert time.monotonic() - began < 3 * conf.current().SEND_TIMEOUT
    assert unpaused.paused
    assert states() == {State.RESERVED: 1, State.PENDING: 99}


def test_a_connection_that_went_stale_is_renewed_without_a_failure(broker: RedisServer, unpaused: Publisher) -> None:
    jobs = due(10)
    release.release(5)
    broker.restart()
    assert release.release() == 5
    assert sent(broker) == [str(job.pk) for job in jobs[5:]]
    assert not unpaused.paused


def test_a_job_that_was_taken_back_counts_as_not_sent(broker: RedisServer) -> None:
    due(3)
    broker.stop()
    assert release.release() == 0
    assert set(Job.objects.values_list("state", "sends")) == {(State.PENDING, 0)}


def test_without_a_broker_no_time_is_lost_on_the_rest(broker: RedisServer, unpaused: Publisher) -> None:
    jobs = due(2500)
    broker.stop()
    failed = unpaused.publish_many(jobs)
    assert failed.keys() == {job.pk for job in jobs}
    assert {type(error) for error in failed.values()} == {BrokerUnavailable}


# --- Other ways to send -----------------------------------------------------------------------------------


def test_a_transport_without_pipelines_sends_one_after_the_other(
    unpaused: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpaused.app.conf, "broker_write_url", "memory://")
    jobs = due(20, queue="renamed")
    failed = unpaused.publish_many(jobs)
    assert [type(error) for error in failed.values()] == [Unsendable]
    assert unpaused.depth("default") == 19


def test_who_is_told_of_each_message_may_change_it(broker: RedisServer, unpaused: Publisher) -> None:
    told: list[str] = []

    def mark(headers: Any = None, **_: Any) -> None:
        headers["x-marked"] = True

    def note_it(headers: Any = None, **_: Any) -> None:
        told.append(headers["id"])

    jobs = due(5)
    unpaused.publish_many(jobs[:1])
    signals.before_task_publish.connect(mark)
    signals.after_task_publish.connect(note_it)
    try:
        assert release.release() == 5
    finally:
        signals.before_task_publish.disconnect(mark)
        signals.after_task_publish.disconnect(note_it)
    assert told == [str(job.pk) for job in jobs]
    with Redis.from_url(broker.url) as client:
        raw = client.lrange("default\x06\x166", 0, -1)
    assert [json.loads(one)["headers"].get("x-marked") for one in raw] == [True] * 5 + [None]


def test_an_event_goes_with_each_message_where_the_project_wants_one(
    broker: RedisServer, unpaused: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(unpaused.app.conf, "task_send_sent_event", True)
    jobs = due(3)
    with Redis.from_url(broker.url) as client, client.pubsub() as events:
        events.psubscribe("/0.celeryev*")
        assert events.get_message(timeout=5)
        assert release.release() == 3
        heard = [events.get_message(timeout=5) for _ in jobs]
    assert [event["type"] for event in heard if event] == ["pmessage"] * 3
    assert sent(broker) == [str(job.pk) for job in jobs]
