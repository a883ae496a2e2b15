"""A worker refuses the pools with which it could not keep its promises, and says what to do instead."""

import os
import pickle
import threading
from types import MethodType, SimpleNamespace
from typing import Any

import pytest
from celery.concurrency import get_implementation
from celery.concurrency.asynpool import ResultHandler
from celery.concurrency.prefork import TaskPool as Prefork
from celery.concurrency.thread import TaskPool as ThreadPool
from celery.exceptions import WorkerTerminate
from django.db import connection

from jobs import pools


def worker(pool: object) -> SimpleNamespace:
    return SimpleNamespace(pool_cls=pool)


def test_eventlet_is_refused_with_what_to_do() -> None:
    assert "-P gevent" in pools.refusal(worker("eventlet"))


def test_gevent_is_refused_where_sockets_and_threads_are_not_cooperative() -> None:
    gevent = pytest.importorskip("celery.concurrency.gevent")
    assert "started with -P gevent" in pools.refusal(worker(gevent.TaskPool))


def test_other_pools_are_taken_as_they_are() -> None:
    assert pools.refusal(worker(Prefork)) == ""
    assert pools.advice(worker(Prefork), connection) == ""


class Greenlets:
    """A pool that runs what it is given at once, and remembers its options."""

    is_green = True
    options: dict[str, object]

    def on_apply(self, target: object, args: object = None, kwargs: object = None, **options: object) -> object:
        self.options = options
        assert callable(target)
        return target()


APP = SimpleNamespace(tasks={"job": SimpleNamespace(tracked=True), "other": SimpleNamespace(tracked=False)})


@pytest.mark.parametrize(("task", "timeout"), [("job", 0), ("other", 5)])
def test_time_limits_of_jobs_are_left_to_the_heartbeat(task: str, timeout: int) -> None:
    pool = pools.taught(Greenlets, APP)()
    pool.on_apply(lambda: None, (task,), timeout=5)
    assert pool.options == {"timeout": timeout}


def test_a_body_that_a_shutdown_ends_does_not_end_the_loop_too() -> None:
    def body() -> None:
        raise WorkerTerminate(1)

    assert pools.taught(Greenlets, APP)().on_apply(body, ("job",)) == (False, None, None)


@pytest.mark.parametrize(
    ("pool", "given", "kept"),
    [
        ("gevent", {}, 60),
        ("gevent", {"max_connections": 99}, 99),
        ("prefork", {}, None),
        (get_implementation("threads"), {}, 60),
    ],
)
def test_every_greenlet_or_thread_can_acknowledge_at_once(pool: Any, given: dict[str, int], kept: int | None) -> None:
    conf = SimpleNamespace(broker_transport_options=given)
    pools.widen(SimpleNamespace(pool_cls=pool, concurrency=50, app=SimpleNamespace(conf=conf)))
    assert conf.broker_transport_options.get("max_connections") == kept


class Silent:
    """A connection on which nothing comes."""

    def drain_events(self, timeout: float) -> float:
        return timeout


@pytest.mark.parametrize(("free", "waits"), [(True, 2.0), (False, pools.Attentive.SOON)])
def test_a_consumer_that_may_take_no_more_looks_soon_again(free: bool, waits: float) -> None:
    qos = SimpleNamespace(can_consume=lambda: free)
    consumer = SimpleNamespace(channel=SimpleNamespace(qos=qos))
    assert pools.Attentive(Silent(), consumer).drain_events(timeout=2.0) == waits


def test_nobody_waits_on_the_connection_of_celerys_events() -> None:
    events, waited = SimpleNamespace(), list[float]()
    events.drain_events = lambda timeout: waited.append(timeout)
    pools.hasten(events)
    events.drain_events(timeout=0.1)
    events.drain_events()
    assert waited == [pools.AT_MOST, pools.AT_MOST]


class Pool:
    """What a pool of processes knows of one child, whose answers come over a pipe."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.reader, False)
        self.heard: list[Any] = []
        self._cache = {1: "a job"}
        self._fileno_to_outq = {self.reader: "a child"}
        self._result_handler = SimpleNamespace(handle_event=None, on_state_change=self._on_answer)
        self._result_handler._recv_message = MethodType(ResultHandler._recv_message, self._result_handler)

    def _on_answer(self, answer: Any) -> None:
        self.heard.append(answer)
        self._cache.clear()


@pytest.mark.parametrize("cut", [0, 2, 4, 9])
def test_an_answer_that_comes_in_parts_is_heard_before_the_loop_stands_still(cut: int) -> None:
    pool, body = Pool(), pickle.dumps(["an answer"])
    message = len(body).to_bytes(4, "big") + body
    os.write(pool.writer, message[:cut])
    rest = threading.Timer(0.03, os.write, [pool.writer, message[cut:]])
    rest.start()
    pools._hear_answers(pool)
    assert pool.heard == [["an answer"]]


def test_what_a_child_never_ends_to_say_is_not_waited_for() -> None:
    pool = Pool()
    os.write(pool.writer, b"\0\0")
    pools._hear_answers(pool)
    assert pool.heard == []


def test_a_child_that_is_gone_ends_no_worker() -> None:
    pool = Pool()
    os.close(pool.writer)
    pools._hear_answers(pool)
    assert pool.heard == []


class Blocking:
    """Celery's pool of processes where the transport has no event loop: it has nothing to flush."""

    def on_start(self) -> None:
        self._pool, self.on_apply, self.flush = object(), print, None


def test_a_pool_that_has_nothing_to_flush_is_asked_for_nothing() -> None:
    pool = pools._of_children(Blocking)()
    pool.on_start()
    assert pool.flush is None


def test_a_call_that_no_thread_began_lets_go_of_its_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    dropped: list[str] = []
    monkeypatch.setattr(pools.grouped, "dropped", dropped.extend)
    pool = pools.taught(ThreadPool, None)(1)
    begun, gate = threading.Event(), threading.Event()

    def body(*_: Any) -> Any:
        begun.set()
        return gate.wait(10)

    for name in ("runs", "waits"):
        pool.on_apply(body, (name,), callback=lambda answer: None, correlation_id=name)
    assert begun.wait(10)
    threading.Timer(0.1, gate.set).start()
    pool.on_stop()
    assert dropped == ["waits"]
