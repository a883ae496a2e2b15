"""Messages that no worker can run: they end no worker and are never lost. A job waits, everything else is shown."""

import base64
import json
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery
from redis import Redis

from dlq.models import DeadLetter
from jobs.models import Job
from jobs.publisher import HEADER
from jobs.states import State
from project.servers import RedisServer
from tests.children import Child
from tests.platform import Platform, fresh
from tests.sample.tasks import misbehave, note

pytestmark = [pytest.mark.one_database]

WaitUntil = Callable[..., Any]


@pytest.fixture
def wire(platform: Platform, broker: RedisServer) -> Iterator[Redis]:
    """The broker itself, to put into its lists what nobody expects."""
    with Redis.from_url(broker.url) as client:
        yield client


@pytest.fixture
def foreign(broker: RedisServer) -> Iterator[Celery]:
    """A Celery app that never heard of Mainstay, on the same broker."""
    app = Celery("foreign", broker=broker.url, set_as_current=False)
    app.conf.task_default_queue = "default"
    yield app
    app.close()


def message(body: Any, headers: Any = None, *, raw: bytes | None = None, content_type: str = "application/json") -> str:
    """A message as kombu puts it into a list of Redis."""
    text = base64.b64encode(json.dumps(body).encode() if raw is None else raw).decode()
    return json.dumps(
        {
            "body": text, "content-encoding": "utf-8", "content-type": content_type,
            "headers": {} if headers is None else headers,
            "properties": {
                "delivery_tag": str(uuid4()), "body_encoding": "base64", "delivery_mode": 2, "priority": 0,
                "delivery_info": {"exchange": "", "routing_key": "default"}, "correlation_id": "x",
            },
        }
    )  # fmt: skip


def call(**headers: Any) -> dict[str, Any]:
    """The headers of a call of a known task."""
    return {"lang": "py", "task": note.name, "id": str(uuid4()), **headers}


EMPTY: list[Any] = [["x"], {}, {}]

JUNK: dict[str, Any] = {
    "not JSON": b"hello, is anybody there?",
    "not UTF-8": b"\xff\xfe\x00binary",
    "cut JSON": b'{"body": "abc", "headers": {"task": ',
    "a number": b"17",
    "a list": b"[1, 2, 3]",
    "an object without properties": b'{"body": "e30=", "headers": {}}',
    "no delivery tag": json.dumps({"body": "e30=", "headers": {}, "properties": {"delivery_info": {}}}),
    "headers that are a text": message(EMPTY, "no headers"),
    "a body that is not base64": json.dumps(json.loads(message(EMPTY, call())) | {"body": "%%%"}),
    "no headers": message(EMPTY),
    "not a call": message({"hello": "world"}),
    "no id": message(EMPTY, {"lang": "py", "task": note.name}),
    "an id that is an object": message(EMPTY, call(id={"a": 1})),
    "a body that is no triple": message([1, 2], call()),
    "a body that is a number": message(5, call()),
    "args that are a number": message([5, {}, {}], call()),
    "kwargs that are a list": message([[], [1], {}], call()),
    "embed that is a number": message([["x"], {}, 5], call()),
    "an eta that is no time": message(EMPTY, call(eta="tomorrow")),
    "an eta beyond time": message(EMPTY, call(eta="9999-12-31T23:59:59-23:59")),
    "time limits that are texts": message(EMPTY, call(timelimit=["soon", "later"])),
    "a body that is not JSON": message(None, call(), raw=b"{nonsense"),
    "a body that is not UTF-8": message(None, call(), raw=b'["\xff\xfe"]'),
    "a body nested too deeply": message(None, call(), raw=b"[" * 100_000 + b"]" * 100_000),
    "a body of NaN": message(None, call(), raw=b"[[NaN], {}, {}]"),
    "compressed garbage": message(None, call(compression="application/x-gzip"), raw=b"no gzip"),
    "a pickle": message(EMPTY, call(), content_type="application/x-python-serialize"),
    "an unknown type": message(EMPTY, call(), content_type="text/x-poem"),
    "NUL and surrogates": message(["\x00\ud800"], {"weird\x00": "\ud800\x00", "task": 7}),
    "an old call without an id": message({"task": note.name, "args": ["x"], "kwargs": {}}),
    "an unknown task without a triple": message([1], {"task": "no.such.task", "id": str(uuid4())}),
    "a huge body": message(None, call(), raw=b"x" * 3_000_000),
}  # fmt: skip


@pytest.mark.parametrize("name", JUNK)
def test_junk_is_kept_as_a_letter_and_the_worker_goes_on(
    platform: Platform, wire: Redis, wait_until: WaitUntil, name: str
) -> None:
    assert platform.worker is not None
    pid = platform.worker.pid
    wire.lpush("default", JUNK[name])
    letter = wait_until(lambda: DeadLetter.objects.first())
    after = note.delay("after")
    wait_until(lambda: fresh(after).state == State.COMPLETED)
    assert (platform.worker.pid, platform.worker.running, letter.is_open) == (pid, True, True)
    assert letter.error_message
    assert "RestartFreqExceeded" not in platform.worker.log
    wait_until(lambda: wire.hlen("unacked") == 0)


def test_all_junk_at_once_delays_nobody_and_is_kept_once(
    platform: Platform, wire: Redis, wait_until: WaitUntil
) -> None:
    letters = 0
    for _ in range(2):
        wire.lpush("default", *JUNK.values())
        jobs = [note.delay(f"among junk {n}") for n in range(10)]
        wait_until(lambda jobs=jobs: all(fresh(job).state == State.COMPLETED for job in jobs), timeout=30)
        wait_until(lambda: messages(wire) == 0 and wire.hlen("unacked") == 0, timeout=30)
        assert letters in (0, DeadLetter.objects.count())
        letters = DeadLetter.objects.count()
    assert letters > len(JUNK) / 2


def messages(wire: Redis) -> int:
    """How many messages wait in the queue."""
    return int(wire.llen("default"))


def test_a_letter_of_junk_says_what_is_wrong_and_holds_the_text(wire: Redis, wait_until: WaitUntil) -> None:
    wire.lpush("default", b"hello, is anybody there?")
    letter = wait_until(lambda: DeadLetter.objects.first())
    assert letter.payload == "hello, is anybody there?"
    assert "not a message of Celery's" in letter.error_message
    assert (letter.queue, letter.error_type) == ("default", "jobs.errors.UnreadableMessage")


def test_our_message_that_arrives_mutilated_is_sent_afresh(
    platform: Platform, wire: Redis, wait_until: WaitUntil
) -> None:
    platform.witness.forget()
    job = note.apply_async(("mended",), countdown=3600)
    from jobs import lifecycle

    lifecycle.move(fresh(job), State.RESERVED, sends=1, sent_at=lifecycle.NOW)
    wire.lpush("default", message([1], call(id=job.id, **{HEADER: {"job": job.id}})))
    wait_until(lambda: fresh(job).state == State.COMPLETED)
    assert platform.witness.lines == ["mended"]
    assert not DeadLetter.objects.exists()


def test_a_call_of_the_old_protocol_runs(platform: Platform, wire: Redis, wait_until: WaitUntil) -> None:
    wire.lpush("default", message({"task": note.name, "id": str(uuid4()), "args": ["old"], "kwargs": {}}))
    wait_until(lambda: platform.witness.lines == ["old"])
    wait_until(lambda: Job.objects.get().state == State.COMPLETED)


# --- Unknown tasks ----------------------------------------------------------------------------------------------

FUTURE = "tests.sample.future.tomorrow"


def test_a_job_of_an_unknown_task_waits_for_a_worker_that_knows_it(
    platform: Platform, worker: Callable[..., Child], wait_until: WaitUntil
) -> None:
    from project.celery import app

    result = app.send_task(FUTURE, ("x",), queue="default")
    wait_until(lambda: fresh(result).reason == "no worker here knows its task yet", timeout=5)
    worker(name="newer", include=["tests.sample.future"], env=platform.environ)
    assert platform.worker is not None
    platform.worker.stop()
    wait_until(lambda: fresh(result).state == State.COMPLETED, timeout=15)
    assert platform.witness.lines == ["tomorrow:x"]
    assert fresh(result).attempt == 1


def test_a_foreign_call_of_an_unknown_task_waits_too(
    platform: Platform, worker: Callable[..., Child], foreign: Celery, wait_until: WaitUntil
) -> None:
    sent = foreign.send_task(FUTURE, ("y",))
    job = wait_until(lambda: Job.objects.first())
    assert (str(job.pk), job.task) == (sent.id, FUTURE)
    worker(name="newer", include=["tests.sample.future"], env=platform.environ)
    assert platform.worker is not None
    platform.worker.stop()
    wait_until(lambda: fresh(job).state == State.COMPLETED, timeout=15)
    assert platform.witness.lines == ["tomorrow:y"]


@pytest.mark.parametrize("foreign_call", [False, True])
def test_a_task_that_nobody_ever_knows_ends_as_a_letter_that_says_so(
    platform: Platform, worker: Callable[..., Child], conductor: Callable[..., Child], foreign: Celery,
    wait_until: WaitUntil, foreign_call: bool,
) -> None:  # fmt: skip
    from project.celery import app

    for other in (platform.worker, platform.conductor):
        assert other is not None
        other.stop()
    env = {"TEST_JOBS": json.dumps({"MAX_SENDS": 3, "TICK": 0.05})}
    child = worker(env=env)
    conductor(env=env)
    (foreign if foreign_call else app).send_task("no.such.task", (1,), queue="default")
    job = wait_until(lambda: Job.objects.filter(state=State.FAILED).first(), timeout=20)
    letter = DeadLetter.objects.get(job=job)
    assert letter.reason == "sent 3 times; no worker here knows its task yet"
    for words in ("'default'", "no.such.task", "3 times"):
        assert words in letter.error_message
    assert child.running


# --- A database or a broker that does not help --------------------------------------------------------------------


def test_a_full_broker_does_not_end_the_worker(platform: Platform, wire: Redis, wait_until: WaitUntil) -> None:
    assert platform.worker is not None
    pid = platform.worker.pid
    wire.config_set("maxmemory-policy", "noeviction")
    before = note.apply_async(("before",), countdown=3600)
    wire.config_set("maxmemory", "1")
    try:
        from jobs import control

        control.retry(fresh(before).pk, by="ann")
        job = note.delay("full")
        wait_until(lambda: "maxmemory" in platform.worker.log or fresh(job).state == State.PENDING)
    finally:
        wire.config_set("maxmemory", "0")
    wait_until(lambda: fresh(job).state == State.COMPLETED, timeout=30)
    assert (platform.worker.pid, platform.worker.running) == (pid, True)


# --- What kills other workers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["memory", "exit", "recursion", "stack"])
def test_a_body_that_harms_its_process_harms_no_worker(platform: Platform, wait_until: WaitUntil, how: str) -> None:
    assert platform.worker is not None
    pid = platform.worker.pid
    job = misbehave.delay(how, until=2)
    wait_until(lambda: fresh(job).finished_at is not None, timeout=20)
    expected = State.FAILED if how == "recursion" else State.COMPLETED
    after = note.delay("after")
    wait_until(lambda: fresh(after).state == State.COMPLETED)
    assert (fresh(job).state, platform.worker.pid, platform.worker.running) == (expected, pid, True)


@pytest.mark.parametrize("how", ["memory", "exit"])
def test_an_untracked_body_that_harms_its_process_harms_no_worker(
    platform: Platform, wait_until: WaitUntil, how: str
) -> None:
    from tests.sample.tasks import careless

    assert platform.worker is not None
    pid = platform.worker.pid
    careless.delay(how)
    wait_until(lambda: f"careless:{how}" in platform.witness.lines)
    after = [note.delay(f"after {n}") for n in range(4)]
    wait_until(lambda: all(fresh(job).state == State.COMPLETED for job in after))
    assert (platform.worker.pid, platform.worker.running) == (pid, True)
