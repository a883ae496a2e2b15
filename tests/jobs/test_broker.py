"""The Redis transport: stock kombu's wire format, window and order, with messages and acknowledgements in groups."""

import json
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from kombu import Connection, Consumer, Producer, Queue
from kombu import transport as kombu_transport
from kombu.asynchronous.hub import Hub
from kombu.simple import SimpleQueue
from kombu.transport import redis as stock
from redis import Redis

from jobs import broker as room
from jobs import conf
from jobs import publisher as publishers
from jobs.celery import REDIS, _transport
from jobs.messages import HEADER
from jobs.transport import RAW
from project.servers import RedisServer

SEP = "\x06\x16"
WaitUntil = Callable[..., Any]
Stock = stock.Transport
HUBS: list[Hub] = []


@pytest.fixture
def wire(broker: RedisServer) -> Iterator[Redis]:
    """The broker itself."""
    with Redis.from_url(broker.url) as client:
        yield client


@pytest.fixture
def connect(broker: RedisServer) -> Iterator[Callable[..., Connection]]:
    """Connect by a transport, ours if none is named."""
    opened: list[Connection] = []

    def connection(transport: Any = room.Transport, **options: Any) -> Connection:
        opened.append(Connection(broker.url, transport=transport, transport_options=options))
        return opened[-1]

    yield connection
    for one in opened:
        one.release()
    while HUBS:
        HUBS.pop().close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No slow start: the first look may bring as many as may be held."""
    begin = room.Channel.__init__

    def begun(self: Any, *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **kwargs)
        self._batch = room.MOST

    monkeypatch.setattr(room.Channel, "__init__", begun)


def send(connection: Connection, *bodies: Any, queue: str = "q", priority: int = 0) -> None:
    """Publish bodies to a queue, in order."""
    with connection.channel() as channel:
        producer = Producer(channel)
        for body in bodies:
            producer.publish(body, routing_key=queue, priority=priority, serializer="json")


class Looped:
    """A consumer in an event loop, as a worker has it; it holds what it receives."""

    def __init__(self, connection: Connection, *queues: str, window: int | None = 4, take: Any = None) -> None:
        self.connection, self.hub = connection, Hub()
        HUBS.append(self.hub)
        self.messages: list[Any] = []
        self.channel = connection.default_channel
        if window is not None:
            self.channel.basic_qos(0, window, False)
        self.consumer = Consumer(
            self.channel, [Queue(name) for name in queues or ("q",)],
            on_message=take or self.messages.append, accept=["json", RAW],
        )  # fmt: skip
        connection.transport.register_with_event_loop(connection.connection, self.hub)
        self.consumer.consume()

    @property
    def bodies(self) -> list[Any]:
        return [message.payload for message in self.messages]

    def until(self, condition: Callable[[], Any], timeout: float = 5) -> None:
        """Let the loop have its turns until something is so."""
        self.hub.call_later(0, int)
        end, ticking = time.monotonic() + timeout, self.hub.call_repeatedly(0.01, int)
        while not condition():
            assert time.monotonic() < end, f"not so after {timeout} s; it has {len(self.messages)} messages"
            self.hub.run_once()
        ticking.cancel()

    def settle(self, seconds: float = 0.2) -> None:
        """Let the loop have its turns for a while: what has not happened by then does not."""
        end = time.monotonic() + seconds
        self.until(lambda: time.monotonic() > end)


# --- The wire ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "shop."])
@pytest.mark.parametrize(("old", "new"), [(Stock, room.Transport), (room.Transport, Stock)])
def test_what_one_transport_sends_the_other_receives_and_acknowledges(
    connect: Callable[..., Connection], wire: Redis, old: Any, new: Any, prefix: str
) -> None:
    for priority in (0, 3, 6, 9):
        send(connect(old, global_keyprefix=prefix), f"p{priority}", priority=priority)
    lists = {f"{prefix}q", *(f"{prefix}q{SEP}{step}" for step in (3, 6, 9))}
    assert lists <= {key.decode() for key in wire.scan_iter()}
    worker = Looped(connect(new, global_keyprefix=prefix))
    worker.until(lambda: len(worker.messages) == 4)
    assert worker.bodies == ["p0", "p3", "p6", "p9"]
    assert wire.hlen(f"{prefix}unacked") == wire.zcard(f"{prefix}unacked_index") == 4
    for message in worker.messages:
        message.ack()
    worker.until(lambda: not wire.exists(f"{prefix}unacked", f"{prefix}unacked_index"))


def test_what_is_noted_is_what_kombu_notes(connect: Callable[..., Connection], wire: Redis) -> None:
    noted = []
    for transport in (Stock, room.Transport):
        wire.flushall()
        send(connect(), {"grüße": "a/b"}, "second")
        worker = Looped(connect(transport))
        worker.until(lambda worker=worker: len(worker.messages) == 2)
        entries = [json.loads(entry) for entry in wire.hvals("unacked")]
        scores = [score for _, score in wire.zrange("unacked_index", 0, -1, withscores=True)]
        assert all(abs(score - time.time()) < 10 for score in scores)
        noted.append(sorted((*message, message["body"], *message["headers"], *where) for message, *where in entries))
        worker.connection.collect()
    assert noted[0] == noted[1]


@pytest.mark.parametrize("both", [(Stock, room.Transport), (room.Transport, Stock)])
def test_old_and_new_workers_share_a_queue(connect: Callable[..., Connection], wire: Redis, both: Any) -> None:
    seen: Counter[Any] = Counter()
    threads = []
    stop = threading.Event()

    def work(transport: Any) -> None:
        worker = Looped(connect(transport), take=lambda message: (seen.update([message.payload]), message.ack()))
        worker.until(stop.is_set, timeout=20)
        worker.connection.release()

    threads = [threading.Thread(target=work, args=(transport,)) for transport in both]
    for thread in threads:
        thread.start()
    for start in range(0, 400, 20):
        send(connect(both[start % 40 // 20]), *range(start, start + 20), priority=start % 10)
    end = time.monotonic() + 15
    while len(seen) < 400 and time.monotonic() < end:
        time.sleep(0.01)
    stop.set()
    for thread in threads:
        thread.join()
    assert seen == Counter(range(400))
    assert wire.hlen("unacked") == 0


# --- The window ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [1, 2, 5, 16])
def test_no_more_are_taken_than_may_be_held(connect: Callable[..., Connection], wire: Redis, window: int) -> None:
    send(connect(), *range(40))
    worker = Looped(connect(), window=window)
    worker.until(lambda: len(worker.messages) == window)
    worker.settle()
    assert (worker.bodies, wire.hlen("unacked"), wire.llen("q")) == (list(range(window)), window, 40 - window)
    worker.messages[0].ack()
    worker.until(lambda: len(worker.messages) == window + 1)
    worker.settle()
    assert (len(worker.messages), wire.hlen("unacked"), wire.llen("q")) == (window + 1, window, 39 - window)


def test_a_window_without_end_is_filled_in_portions(connect: Callable[..., Connection]) -> None:
    send(connect(), *range(400))
    sizes = []
    worker = Looped(connect(), window=0)
    hand_over = worker.channel._hand_over
    worker.channel._hand_over = lambda: (sizes.append(len(worker.channel._waiting)), hand_over())
    worker.until(lambda: len(worker.messages) == 400)
    assert worker.bodies == list(range(400))
    assert max(sizes) <= room.MOST + 1


def test_a_client_that_repeats_commands_takes_nothing_by_them(connect: Callable[..., Connection], wire: Redis) -> None:
    send(connect(), *range(9))
    worker = Looped(connect(retry_on_timeout=True), window=4)
    worker.channel.connection.cycle.on_poll_start()
    worker.channel._brpop_read()
    assert (worker.bodies, wire.llen("q")) == ([0], 8)
    worker.until(lambda: len(worker.messages) == 4)
    assert wire.hlen("unacked") == 4


def test_large_messages_are_taken_in_smaller_portions(
    connect: Callable[..., Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "LARGE", 10_000)
    send(connect(), *("x" * 3_000 for _ in range(20)))
    sizes = []
    connection = connect()
    connection.default_channel._batch = 2
    worker = Looped(connection, window=0)
    hand_over = worker.channel._hand_over
    worker.channel._hand_over = lambda: (sizes.append(len(worker.channel._waiting)), hand_over())
    worker.until(lambda: len(worker.messages) == 20)
    assert max(sizes) <= 3


def test_where_somebody_decides_before_each_message_one_is_taken_at_a_time(connect: Callable[..., Connection]) -> None:
    send(connect(), *range(10))
    worker = Looped(connect(), window=8)
    worker.channel.qos.can_consume = lambda: len(worker.messages) < 3
    worker.until(lambda: len(worker.messages) == 3)
    worker.settle()
    assert len(worker.messages) == 3


def test_who_never_said_how_many_receives_one_at_each_look(connect: Callable[..., Connection], wire: Redis) -> None:
    send(connect(), "a", "b", "c")
    received: list[Any] = []
    with Consumer(connection := connect(), [Queue("q")], callbacks=[lambda body, _: received.append(body)]):
        connection.drain_events(timeout=5)
        assert (received, wire.llen("q")) == (["a"], 2)


def test_what_needs_no_acknowledgement_is_never_noted(connect: Callable[..., Connection], wire: Redis) -> None:
    send(connect(), *range(6))
    received: list[Any] = []
    connection = connect()
    connection.default_channel.basic_qos(0, 4, False)
    with Consumer(connection.default_channel, [Queue("q", no_ack=True)], on_message=received.append):
        while len(received) < 6:
            connection.drain_events(timeout=5)
    assert wire.hlen("unacked") == 0


def test_replies_that_were_collected_before_do_not_slow_the_jobs_down(
    connect: Callable[..., Connection], wire: Redis
) -> None:
    """A worker asks its neighbours who they are, by the channel that then consumes."""
    send(connect(), *range(4))
    connection = connect()
    with Consumer(connection.default_channel, [Queue("replies", no_ack=True)]):
        pass
    before = calls(wire)
    worker = Looped(connection, window=4)
    worker.until(lambda: len(worker.messages) == 4)
    assert (calls(wire) - before)["brpop"] == 1


def test_what_was_popped_as_the_last_queue_was_cancelled_is_noted_and_nothing_taken(
    connect: Callable[..., Connection], wire: Redis
) -> None:
    send(connect(), 1)
    fetch = Looped(connect()).channel._fetch([], 3, "tag", "entry")
    assert wire.execute_command("EVAL", room.FETCH, *fetch.arguments) == [0]
    assert (wire.hgetall("unacked"), wire.llen("q")) == ({b"tag": b"entry"}, 1)


def test_a_simple_queue_works(connect: Callable[..., Connection], wire: Redis) -> None:
    queue = SimpleQueue(connect(), "simple")
    queue.put({"x": 1})
    message = queue.get(timeout=5)
    message.ack()
    assert (message.payload, wire.hlen("unacked")) == ({"x": 1}, 0)
    queue.close()


# --- The order ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["round_robin", "priority", "sorted"])
@pytest.mark.parametrize("window", [1, 3, 7, 0])
def test_the_order_is_that_of_kombu(
    connect: Callable[..., Connection], wire: Redis, strategy: str, window: int
) -> None:
    orders = []
    for transport in (Stock, room.Transport):
        wire.flushall()
        for number in range(40):
            queue, priority = ("zeta", "alpha", "mid")[number % 7 % 3], (0, 6, 3, 9)[number % 5 % 4]
            send(connect(), number, queue=queue, priority=priority)
        order: list[Any] = []
        worker = Looped(
            connect(transport, queue_order_strategy=strategy), "zeta", "alpha", "mid", window=window,
            take=lambda message, order=order: (order.append(message.payload), message.ack()),
        )  # fmt: skip
        worker.until(lambda order=order: len(order) == 40, timeout=20)
        orders.append(order)
        worker.connection.release()
    assert orders[0] == orders[1]


def test_a_strategy_that_we_do_not_know_is_asked_before_each_message(connect: Callable[..., Connection]) -> None:
    class Last(room.scheduling.priority_cycle):  # type: ignore[misc, unused-ignore]
        def consume(self, n: int) -> list[str]:
            return list(reversed(self.items[:n]))

    for queue in ("a", "b"):
        send(connect(), f"{queue}1", f"{queue}2", queue=queue)
    worker = Looped(connect(queue_order_strategy=Last), "a", "b")
    worker.until(lambda: len(worker.messages) == 4)
    assert worker.bodies == ["b1", "b2", "a1", "a2"]


def test_many_queues_are_served_in_turn(connect: Callable[..., Connection]) -> None:
    names = [f"q{number}" for number in range(30)]
    for name in names:
        send(connect(), name, name, queue=name)
    worker = Looped(connect(), *names, window=0)
    worker.until(lambda: len(worker.messages) == 60)
    assert worker.bodies == names + names


def test_two_channels_have_windows_of_their_own(connect: Callable[..., Connection], wire: Redis) -> None:
    send(connect(), *range(9), queue="a")
    send(connect(), *range(9), queue="b")
    worker = Looped(connection := connect(), "a", window=2)
    other, received = connection.channel(), []
    other.basic_qos(0, 3, False)
    with Consumer(other, [Queue("b")], on_message=received.append):
        worker.until(lambda: (len(worker.messages), len(received)) == (2, 3))
        worker.settle()
        assert (len(worker.messages), len(received), wire.hlen("unacked")) == (2, 3, 5)


# --- Acknowledgements -----------------------------------------------------------------------------------


def test_acknowledgements_go_out_together_and_soon_without_a_new_message(
    connect: Callable[..., Connection], wire: Redis
) -> None:
    send(connect(), *range(8))
    worker = Looped(connect(), window=8)
    worker.until(lambda: len(worker.messages) == 8)
    worker.settle()
    before = calls(wire)
    for message in worker.messages:
        message.ack()
    assert wire.hlen("unacked") == 8
    began = time.monotonic()
    worker.until(lambda: wire.hlen("unacked") == 0)
    assert time.monotonic() - began < 0.5
    assert calls(wire)["zrem"] - before["zrem"] == 1


def calls(wire: Redis) -> Counter[str]:
    """How often each command has run."""
    stats: Any = wire.info("commandstats")
    return Counter({name.removeprefix("cmdstat_"): int(one["calls"]) for name, one in stats.items()})


def test_as_many_acknowledgements_as_go_together_do_not_wait(connect: Callable[..., Connection], wire: Redis) -> None:
    send(connect(), *range(room.TOGETHER))
    worker = Looped(connect(), window=0)
    worker.until(lambda: len(worker.messages) == room.TOGETHER)
    for message in worker.messages:
        message.ack()
    assert wire.hlen("unacked") == 0


def test_without_an_event_loop_an_acknowledgement_is_sent_at_once(
    connect: Callable[..., Connection], wire: Redis
) -> None:
    send(connect(), *range(3))
    connection, received = connect(), []
    connection.default_channel.basic_qos(0, 3, False)
    with Consumer(connection.default_channel, [Queue("q")], on_message=received.append):
        while len(received) < 3:
            connection.drain_events(timeout=5)
        received[0].ack()
        assert wire.hlen("unacked") == 2


def test_an_acknowledgement_of_another_thread_is_sent_at_once(connect: Callable[..., Connection], wire: Redis) -> None:
    send(connect(), 1)
    worker = Looped(connect())
    worker.until(lambda: worker.messages)
    thread = threading.Thread(target=worker.messages[0].ack)
    thread.start()
    thread.join()
    assert wire.hlen("unacked") == 0


@pytest.mark.parametrize("end", ["close", "cancel", "collect"])
def test_the_end_sends_the_acknowledgements_that_wait(
    connect: Callable[..., Connection], wire: Redis, end: str
) -> None:
    send(connect(), *range(4))
    worker = Looped(connect())
    worker.until(lambda: len(worker.messages) == 4)
    for message in worker.messages[:3]:
        message.ack()
    if end == "cancel":
        worker.consumer.cancel()
        assert wire.hlen("unacked") == 1
    else:
        worker.channel.close() if end == "close" else worker.connection.collect()
        assert (wire.hlen("unacked"), wire.llen("q")) == (0, 1)


def test_what_the_broker_did_not_take_is_acknowledged_later(
    connect: Callable[..., Connection], wire: Redis, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    send(connect(), 1)
    monkeypatch.setattr(room, "RETRY", 0.05)
    worker = Looped(connect())
    worker.until(lambda: worker.messages)
    monkeypatch.setattr(worker.channel.qos, "pipe_or_acquire", failing_once(worker.channel.qos.pipe_or_acquire))
    worker.messages[0].ack()
    worker.until(lambda: wire.hlen("unacked") == 0)
    assert "could not be acknowledged yet" in caplog.text


def failing_once(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method that fails the first time."""
    failures = [ConnectionError("away")]

    def tried(*args: Any, **kwargs: Any) -> Any:
        if failures:
            raise failures.pop()
        return method(*args, **kwargs)

    return tried


def test_what_nobody_acknowledges_is_restored_after_the_visibility_timeout(
    connect: Callable[..., Connection], wire: Redis
) -> None:
    send(connect(), *range(3))
    worker = Looped(connect(visibility_timeout=1))
    worker.until(lambda: len(worker.messages) == 3)
    other = connect(visibility_timeout=0.0).default_channel
    assert wire.llen("q") == 0
    other.qos.restore_visible(interval=1)
    assert (wire.llen("q"), wire.hlen("unacked"), wire.zcard("unacked_index")) == (3, 0, 0)


@pytest.mark.parametrize(("ours", "order"), [(True, [0, 1, 2]), (False, [1, 2, 0])])
def test_a_message_given_back_is_the_next_for_our_workers_and_the_last_for_others(
    connect: Callable[..., Connection], monkeypatch: pytest.MonkeyPatch, ours: bool, order: list[int]
) -> None:
    monkeypatch.setattr(room, "concurrency", (lambda: 1) if ours else None)
    send(connect(), *range(3))
    worker = Looped(connect(), window=1)
    worker.until(lambda: worker.messages)
    worker.messages.pop().requeue()
    received: list[Any] = []
    worker.consumer.on_message = lambda message: (received.append(message), message.ack())
    worker.until(lambda: len(received) == 3)
    assert [message.payload for message in received] == order
    assert received[order.index(0)].delivery_info["redelivered"]


# --- Half a window ----------------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many messages each script was asked for that a full window left to the next look."""
    wanted: list[int] = []
    ask = room.Channel._ask

    def spied(self: Any) -> None:
        wanted.append(self._room())
        ask(self)

    monkeypatch.setattr(room.Channel, "_ask", spied)
    return wanted


def test_a_full_window_is_filled_again_by_half(
    connect: Callable[..., Connection], asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "concurrency", lambda: 2)
    monkeypatch.setattr(room, "HOLD", 60)
    send(connect(), *range(30))
    worker = Looped(connect(), window=8)
    worker.until(lambda: len(worker.messages) == 8)
    for message in worker.messages[:3]:
        message.ack()
        worker.settle(0.05)
    assert (len(worker.messages), asked) == (8, [])
    worker.messages[3].ack()
    worker.until(lambda: len(worker.messages) == 12)
    assert asked == [4]


def test_free_places_wait_for_others_only_for_a_moment(
    connect: Callable[..., Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "concurrency", lambda: 2)
    send(connect(), *range(30))
    worker = Looped(connect(), window=8)
    worker.until(lambda: len(worker.messages) == 8)
    worker.messages[0].ack()
    began = time.monotonic()
    worker.until(lambda: len(worker.messages) == 9)
    assert time.monotonic() - began < 0.5


def test_no_hand_of_the_pool_waits_for_a_message(
    connect: Callable[..., Connection], asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "concurrency", lambda: 8)
    monkeypatch.setattr(room, "HOLD", 60)
    send(connect(), *range(30))
    worker = Looped(connect(), window=8)
    worker.until(lambda: len(worker.messages) == 8)
    worker.messages[0].ack()
    worker.until(lambda: len(worker.messages) == 9)


# --- A consumer that runs the job itself ------------------------------------------------------------------


def test_a_consumer_that_takes_its_time_is_given_one_at_a_time(
    connect: Callable[..., Connection], wire: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "SLOW", 0.01)
    send(connect(), *range(20))
    left = []

    def take(message: Any) -> None:
        left.append(wire.llen("q"))
        time.sleep(0.02)
        message.ack()

    worker = Looped(connect(), window=8, take=take)
    worker.until(lambda: len(left) == 20)
    assert left[:8] == [12] * 8
    assert left[8:] == list(range(11, -1, -1))


def test_what_such_a_consumer_has_acknowledged_is_so_before_it_is_given_the_next(
    connect: Callable[..., Connection], wire: Redis
) -> None:
    """The next one may take hours, and no loop has its turn meanwhile."""
    left = []

    def take(message: Any) -> None:
        left.append(wire.hlen("unacked"))
        message.ack()

    send(connect(), *range(3))
    worker = Looped(connect(), take=take)
    worker.until(lambda: len(left) == 3)
    assert left == [3, 2, 1]


def test_acknowledgements_of_jobs_wait_even_then(connect: Callable[..., Connection], wire: Redis) -> None:
    """A second message of a job is harmless, as its claim refuses it."""
    left = []

    def take(message: Any) -> None:
        left.append(wire.hlen("unacked"))
        message.ack()

    with connect().channel() as channel:
        for name in "abc":
            Producer(channel).publish([], routing_key="q", serializer="json", headers={HEADER: {"job": name}})
    worker = Looped(connect(), take=take)
    worker.until(lambda: len(left) == 3 and wire.hlen("unacked") == 0)
    assert left == [3, 3, 3]


def test_what_waits_for_a_slow_consumer_is_reported(
    connect: Callable[..., Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    with connect().channel() as channel:
        for name in "abc":
            Producer(channel).publish([[], {}, {}], routing_key="q", serializer="json", headers={"id": name})
    seen = []
    worker = Looped(connect(), take=lambda message: seen.append(sorted(room.in_hand())))
    worker.until(lambda: len(seen) == 3)
    assert seen == [["a", "b", "c"], ["b", "c"], ["c"]]
    assert room.in_hand() == []


def test_channels_that_only_send_are_not_looked_through(connect: Callable[..., Connection]) -> None:
    """Any thread may open one while the worker reports what it holds."""
    sender, worker = connect().default_channel, Looped(connect())
    assert worker.channel in room._channels
    assert sender not in room._channels


def test_the_loop_has_its_turn_between_two_slow_messages(connect: Callable[..., Connection]) -> None:
    send(connect(), *range(4))
    events: list[str] = []

    def take(message: Any) -> None:
        events.append("message")
        time.sleep(2 * room.TURN)

    worker = Looped(connect(), take=take)
    worker.hub.on_tick.add(lambda: events.append("turn"))
    worker.until(lambda: events.count("message") == 4)
    assert "message message message" not in " ".join(events)


def test_a_consumer_that_fails_is_given_the_others_all_the_same(connect: Callable[..., Connection]) -> None:
    send(connect(), *range(4))
    received: list[Any] = []

    def take(message: Any) -> None:
        received.append(message.payload)
        if len(received) == 2:
            raise RuntimeError("the second")

    worker = Looped(connect(), take=take)
    worker.channel.connection.cycle.on_poll_start()
    with pytest.raises(RuntimeError, match="the second"):
        worker.channel._brpop_read()
    assert received == [0, 1, 2, 3]


def test_an_end_in_the_midst_gives_the_others_back_in_their_order(
    connect: Callable[..., Connection], wire: Redis
) -> None:
    send(connect(), *range(6))

    def take(message: Any) -> None:
        raise SystemExit

    worker = Looped(connect(), take=take)
    worker.channel.connection.cycle.on_poll_start()
    with pytest.raises(SystemExit):
        worker.channel._brpop_read()
    assert wire.hlen("unacked") == 4
    worker.connection.release()
    assert wire.hlen("unacked") == 0
    again = Looped(connect(), window=6)
    again.until(lambda: len(again.messages) == 6)
    assert again.bodies == list(range(6))


def test_a_queue_that_is_cancelled_in_the_midst_has_its_messages_back_in_their_order(
    connect: Callable[..., Connection], wire: Redis
) -> None:
    for queue in ("kept", "left"):
        send(connect(), *range(6), queue=queue)
    taken = []

    def take(message: Any) -> None:
        taken.append((message.delivery_info["routing_key"], message.payload))
        if len(taken) == 4:
            worker.consumer.cancel_by_queue("left")
        message.ack()

    worker = Looped(connect(), "kept", "left", window=12, take=take)
    worker.until(lambda: sum(queue == "kept" for queue, _ in taken) == 6)
    worker.until(lambda: wire.hlen("unacked") == 0)
    worker.channel.close()
    again = Looped(connect(), "left", window=12)
    again.until(lambda: len(again.messages) + sum(queue == "left" for queue, _ in taken) == 6)
    assert [payload for queue, payload in taken if queue == "left"] + again.bodies == list(range(6))


def test_a_window_that_is_narrowed_with_an_answer_on_its_way_loses_nothing(
    connect: Callable[..., Connection], wire: Redis
) -> None:
    send(connect(), *range(12))
    worker = Looped(connect(), window=4)
    worker.until(lambda: len(worker.messages) == 4)
    for message in worker.messages[:3]:
        message.ack()
    worker.channel.connection.cycle.on_poll_start()
    assert worker.channel._asked
    worker.channel.basic_qos(0, 1, False)

    def acknowledged() -> bool:
        for message in worker.messages:
            if not message.acknowledged:
                message.ack()
        return wire.llen("q") == wire.hlen("unacked") == 0

    worker.until(acknowledged)
    assert worker.bodies == list(range(12))


# --- Failures ---------------------------------------------------------------------------------------------


def test_an_answer_that_is_lost_on_its_way_loses_no_message(connect: Callable[..., Connection], wire: Redis) -> None:
    send(connect(), *range(8))
    worker = Looped(connect(), window=2)
    worker.until(lambda: len(worker.messages) == 2)
    for message in worker.messages:
        message.ack()
    worker.channel.connection.cycle.on_poll_start()
    assert worker.channel._asked
    eventually(lambda: wire.llen("q") == 4)
    worker.channel.client.connection.disconnect()  # the answer lies in its buffer
    worker.until(lambda: len(worker.messages) == 4)
    assert sorted(worker.bodies) == [0, 1, 2, 3]
    assert wire.hlen("unacked") == 2


def test_a_channel_that_is_closed_with_an_answer_on_its_way_gives_back_what_it_brings(
    connect: Callable[..., Connection], wire: Redis
) -> None:
    send(connect(), *range(6))
    worker = Looped(connect(), window=2)
    worker.until(lambda: len(worker.messages) == 2)
    for message in worker.messages:
        message.ack()
    worker.channel.connection.cycle.on_poll_start()
    assert worker.channel._asked
    worker.channel.close()
    assert (wire.llen("q"), wire.hlen("unacked")) == (4, 0)


def test_a_message_popped_just_before_the_connection_is_lost_is_given_back(
    connect: Callable[..., Connection], wire: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Looped(connect())
    worker.channel.connection.cycle.on_poll_start()
    send(connect(), "only")
    monkeypatch.setattr(worker.channel, "_run_script", lambda *_: (_ for _ in ()).throw(ConnectionError("gone")))
    with pytest.raises(ConnectionError):
        worker.channel._brpop_read()
    assert wire.llen("q") == 0
    worker.connection.collect()
    assert wire.llen("q") == 1


def eventually(condition: Callable[[], Any]) -> None:
    """Wait until something is so."""
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_broker_that_forgot_the_script_is_given_it_again(connect: Callable[..., Connection], wire: Redis) -> None:
    wire.script_flush()
    worker = Looped(connect(), take=lambda message: message.ack())
    for number in range(3):
        send(connect(), *range(6))
        worker.until(lambda: wire.llen("q") == 0 and wire.hlen("unacked") == 0)
        wire.script_flush()
        assert number in range(3)


def test_a_broker_that_runs_no_scripts_is_asked_for_one_message_at_a_time(
    connect: Callable[..., Connection], wire: Redis, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(room, "FETCH_SHA", "0" * 40)
    monkeypatch.setattr(room, "FETCH", "return redis.error_reply('ERR unknown command')")
    send(connect(), *range(9))
    worker = Looped(connect(), window=4)
    worker.until(lambda: len(worker.messages) == 4)
    worker.settle()
    assert (worker.bodies, wire.hlen("unacked"), wire.llen("q")) == ([0, 1, 2, 3], 4, 5)
    assert caplog.text.count("runs no scripts") == 1


def test_a_broker_that_is_full_still_hands_out_messages(
    connect: Callable[..., Connection], wire: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    send(connect(), *range(3))
    worker = Looped(connect())
    wire.config_set("maxmemory", 1)
    try:
        worker.until(lambda: len(worker.messages) == 3)
        assert "cannot note" in caplog.text
    finally:
        wire.config_set("maxmemory", 0)


# --- Messages whose job is being claimed ------------------------------------------------------------------


@pytest.fixture
def claimed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was told to who claims the job of each message that was popped alone."""
    told: list[Any] = []

    def arrive(content: Any) -> bool:
        told.append(content)
        return True

    monkeypatch.setattr(room, "arrival", arrive)
    return told


def test_a_message_whose_job_is_claimed_is_handed_over_before_it_is_noted(
    connect: Callable[..., Connection], wire: Redis, claimed: list[Any]
) -> None:
    worker = Looped(connect(), take=lambda message: handed.append((message, wire.hlen("unacked"))))
    handed: list[tuple[Any, int]] = []
    worker.channel.connection.cycle.on_poll_start()
    send(connect(), "only")
    worker.until(lambda: handed)
    assert [(message.payload, noted) for message, noted in handed] == [("only", 0)]
    assert len(claimed) == 1
    worker.settle()
    assert wire.hlen("unacked") == wire.zcard("unacked_index") == 1
    handed[0][0].ack()
    worker.settle()
    assert wire.hlen("unacked") == wire.zcard("unacked_index") == 0


def test_what_lies_behind_such_a_message_comes_with_its_note(
    connect: Callable[..., Connection], wire: Redis, claimed: list[Any]
) -> None:
    send(connect(), *range(6))
    worker = Looped(connect(), window=4)
    worker.until(lambda: len(worker.messages) == 4)
    worker.settle()
    assert (worker.bodies, wire.hlen("unacked"), wire.llen("q")) == ([0, 1, 2, 3], 4, 2)


def test_a_message_that_is_acknowledged_before_its_note_is_answered_is_gone(
    connect: Callable[..., Connection], wire: Redis, claimed: list[Any]
) -> None:
    worker = Looped(connect(), take=lambda message: message.ack())
    for number in range(5):
        send(connect(), number)
        worker.until(lambda number=number: len(claimed) == number + 1)
    worker.settle()
    assert (wire.hlen("unacked"), wire.llen("q")) == (0, 0)


def test_a_message_that_is_refused_before_it_is_noted_is_the_next_in_line(
    connect: Callable[..., Connection], wire: Redis, claimed: list[Any]
) -> None:
    worker = Looped(connect(), take=lambda message: refused.append(message) or message.requeue())
    refused: list[Any] = []
    worker.settle(0.05)
    send(connect(), "first")
    worker.channel._brpop_read()
    assert [message.payload for message in refused] == ["first"]
    worker.connection.collect()
    assert (wire.llen("q"), wire.hlen("unacked")) == (1, 0)


def test_a_note_is_made_by_a_broker_that_forgot_the_script(
    connect: Callable[..., Connection], wire: Redis, claimed: list[Any]
) -> None:
    wire.script_flush()
    worker = Looped(connect())
    send(connect(), "only")
    worker.until(lambda: wire.hlen("unacked") == 1)
    assert worker.bodies == ["only"]


def test_a_note_whose_answer_is_lost_keeps_the_message_and_no_other_is_lost(
    connect: Callable[..., Connection], wire: Redis, claimed: list[Any]
) -> None:
    wire.script_load(room.FETCH)
    worker = Looped(connect(), window=2, take=lambda message: held.append(message))
    held: list[Any] = []
    worker.settle(0.05)  # the loop has run, and the worker waits for a message
    send(connect(), *range(4))
    worker.channel._brpop_read()
    assert worker.channel._asked
    eventually(lambda: wire.hlen("unacked") == 2)
    worker.channel.client.connection.disconnect()  # the answer lies in its buffer, and with it the second message
    worker.until(lambda: len(held) == 2)
    assert [message.payload for message in held] == [0, 1]
    assert wire.hlen("unacked") == 2


def test_a_message_whose_note_cannot_be_sent_is_given_back(
    connect: Callable[..., Connection], wire: Redis, claimed: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Looped(connect())
    worker.settle(0.05)  # the loop has run, and the worker waits for a message
    send(connect(), "only")
    eventually(lambda: wire.llen("q") == 0)
    broken = worker.channel.client.connection

    def break_down(*_: Any) -> None:
        broken.disconnect()
        raise ConnectionError("gone")

    monkeypatch.setattr(broken, "send_command", break_down)
    with pytest.raises(ConnectionError):
        worker.channel._brpop_read()
    worker.connection.collect()
    assert (wire.llen("q"), wire.hlen("unacked")) == (1, 0)


def test_a_broker_that_is_full_hands_out_such_messages_too(
    connect: Callable[..., Connection], wire: Redis, claimed: list[Any]
) -> None:
    send(connect(), *range(3))
    worker = Looped(connect(), take=lambda message: (worker.messages.append(message), message.ack()))
    wire.config_set("maxmemory", 1)
    try:
        worker.until(lambda: len(worker.messages) == 3)
    finally:
        wire.config_set("maxmemory", 0)
    assert worker.bodies == [0, 1, 2]


JUNK = [b"hello", b"\xff\xfe", b"17", b"[1]", b"{}", b'{"properties": {"delivery_tag": 5}}', b"\x00"]


def test_what_is_no_message_comes_in_its_turn_and_is_noted(connect: Callable[..., Connection], wire: Redis) -> None:
    for junk in JUNK:
        send(connect(), "before")
        wire.lpush("q", junk)
    worker = Looped(connect(), window=0)
    worker.until(lambda: len(worker.messages) == 2 * len(JUNK))
    assert [message.content_type == RAW for message in worker.messages] == [False, True] * len(JUNK)
    assert wire.hlen("unacked") == 2 * len(JUNK)
    for message in worker.messages:
        message.ack()
    worker.until(lambda: wire.hlen("unacked") == 0)


def test_what_only_python_cannot_read_is_noted_once(connect: Callable[..., Connection], wire: Redis) -> None:
    send(connect(), "a", "b")
    mutilated = json.loads(wire.lrange("q", 0, 0)[0]) | {"body": "abc"}
    hexadecimal = json.dumps(mutilated).replace('"body": "abc"', '"body": 0x1F')
    wire.lpush("q", json.dumps(mutilated | {"properties": mutilated["properties"] | {"delivery_tag": "t"}}))
    wire.lpush("q", hexadecimal.replace(mutilated["properties"]["delivery_tag"], "u"))
    worker = Looped(connect(), window=0)
    worker.until(lambda: len(worker.messages) == 4)
    assert [message.content_type == RAW for message in worker.messages] == [False, False, True, True]
    worker.until(lambda: wire.hlen("unacked") == 4)
    for message in worker.messages:
        message.ack()
    worker.until(lambda: wire.hlen("unacked") == 0)


def test_what_only_the_broker_could_read_keeps_no_other_from_being_restored(
    connect: Callable[..., Connection], wire: Redis
) -> None:
    """Its worker died between the note and the look into it."""
    send(connect(), "other")
    died = Looped(connect())
    died.until(lambda: len(died.messages) == 1)
    wire.zadd("unacked_index", dict.fromkeys(wire.zrange("unacked_index", 0, -1), 1))
    wire.hset("unacked", "unreadable", '[{"body": 0x1F}, "", "q"]')
    wire.zadd("unacked_index", {"unreadable": 2})
    for _ in range(2):
        connect().default_channel.qos.restore_visible(interval=1, num=None)
    assert (wire.llen("q"), wire.hkeys("unacked")) == (1, [b"unreadable"])


SURROGATE = '{"properties": {"delivery_tag": "\\udc00", "delivery_info": {"exchange": "", "routing_key": "q"}}}'


def test_a_tag_that_cannot_be_written_is_that_of_no_message(connect: Callable[..., Connection], wire: Redis) -> None:
    for _ in range(2):
        send(connect(), "before")
        wire.lpush("q", SURROGATE)
    worker = Looped(connect())
    worker.until(lambda: len(worker.messages) == 4)
    assert [message.content_type == RAW for message in worker.messages] == [False, True, False, True]


def test_what_is_no_list_keeps_no_message_of_another_list(connect: Callable[..., Connection], wire: Redis) -> None:
    worker = Looped(connect(), "q", "other")
    wire.set(f"other{SEP}3", "no list")
    send(connect(), *range(3))
    worker.until(lambda: len(worker.messages) == 3)
    assert worker.bodies == [0, 1, 2]


def test_without_notes_of_what_is_unacknowledged_it_works_as_kombus(
    connect: Callable[..., Connection], wire: Redis
) -> None:
    send(connect(), *range(3))
    worker = Looped(connect(ack_emulation=False))
    worker.until(lambda: len(worker.messages) == 3)
    for message in worker.messages[:2]:
        message.ack()
    worker.consumer.cancel()
    worker.channel.close()
    assert (wire.exists("unacked"), wire.llen("q")) == (0, 1)


# --- Clients, threads, forks ------------------------------------------------------------------------------


def test_commands_share_one_client(connect: Callable[..., Connection]) -> None:
    channel = connect().default_channel
    with channel.conn_or_acquire() as one, channel.conn_or_acquire() as other:
        assert one is other
    channel._disconnect_pools()
    with channel.conn_or_acquire() as another:
        assert another.ping()


def test_threads_publish_by_one_channel(connect: Callable[..., Connection], wire: Redis) -> None:
    channel = connect().default_channel

    def publish(number: int) -> None:
        Producer(channel, auto_declare=False).publish(number, routing_key="q", serializer="json")

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(publish, range(400)))
    worker = Looped(connect(), window=0)
    worker.until(lambda: len(worker.messages) == 400)
    assert sorted(worker.bodies) == list(range(400))


def test_as_many_threads_acknowledge_at_once_as_there_may_be_connections(
    connect: Callable[..., Connection], wire: Redis
) -> None:
    """A worker with threads lets them all have one: ``pools.widen``."""
    send(connect(), *range(40))
    worker = Looped(connect(max_connections=50), window=40)
    worker.until(lambda: len(worker.messages) == 40)
    at_once = threading.Barrier(40)
    with ThreadPoolExecutor(40) as threads:
        list(threads.map(lambda message: at_once.wait() < 0 or message.ack(), worker.messages))
    assert wire.hlen("unacked") == 0


@contextmanager
def forked(act: Callable[[], Any]) -> Iterator[None]:
    """Do this in a child while the block runs; the child must succeed."""
    pid = os.fork()
    if pid == 0:
        try:
            act()
            os._exit(0)
        except BaseException:
            logging.getLogger().exception("in the child")
            os._exit(1)
    yield
    assert os.waitpid(pid, 0)[1] == 0


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_has_connections_of_its_own(connect: Callable[..., Connection], wire: Redis) -> None:
    producer = Producer(connect().default_channel, auto_declare=False)
    producer.publish("first", routing_key="q", serializer="json")

    def publish(who: str) -> None:
        for number in range(200):
            producer.publish(f"{who}{number}", routing_key="q", serializer="json")
        assert producer.channel.client.client_id() == producer.channel.client.client_id()

    with forked(lambda: publish("child")):
        publish("parent")
    assert wire.llen("q") == 401
    worker = Looped(connect(), window=0)
    worker.until(lambda: len(worker.messages) == 401)
    assert len(set(worker.bodies)) == 401


# --- Whom it serves ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["redis", "rediss", "sentinel"])
def test_the_schemes_of_redis_are_served_by_it(scheme: str) -> None:
    served = kombu_transport.get_transport_cls(scheme)
    assert served is getattr(room, REDIS[scheme])
    assert issubclass(served, getattr(stock, REDIS[scheme]))


def test_the_setting_leaves_redis_to_kombu(settings: Any) -> None:
    settings.JOBS = {"FAST_BROKER": False}
    assert kombu_transport.symbol_by_name(_transport("Transport")) is stock.Transport
    assert not conf.current().FAST_BROKER


@pytest.mark.parametrize("urls", ["redis://{0}/0;redis://{0}/1", "redis://{0}/0"])
def test_failover_urls_are_served_too(broker: RedisServer, urls: str) -> None:
    with Connection(urls.format(broker.url.split("//")[1].split("/")[0])) as connection:
        assert type(connection.transport) is room.Transport
        assert connection.default_channel.client.ping()


def test_jobs_are_sent_by_it(broker: RedisServer) -> None:
    assert isinstance(publishers.in_use().reached().channel, room.Channel)
    publishers.in_use().forget()
