"""Rows about messages that nobody can run, and bodies that harm their process."""

from __future__ import annotations

import json
import signal
from typing import Any
from uuid import uuid4

from kombu import Connection

from tests.chaos.matrix import row
from tests.chaos.stage import Stage

BOTH = ("redis", "rabbitmq")
HARMFUL = {"memory": "completed", "exit": "completed", "oom": "completed", "overflow": "failed"}


@row(20, "MemoryError, sys.exit and stack overflow in a body", must="attempt failed, worker lives", brokers=BOTH)
def memory_error(stage: Stage) -> None:
    stage.start()
    stage.fault()
    for how, expected in HARMFUL.items():
        stage.enqueue(2, how=how, until=2, expects=expected, effect="none" if expected == "failed" else "end")
    stage.enqueue(20, seconds=0.05)
    stage.settle(40 if stage.celery else None)
    stage.require(stage.worker.running, "the worker lives on")


@row(21, "malformed messages, without id, not JSON", must="worker lives, others flow, each is kept and shown",
     brokers=BOTH)  # fmt: skip
def malformed_messages(stage: Stage) -> None:
    stage.start()
    stage.enqueue(10, seconds=0.05)
    on_redis = stage.broker.url.startswith("redis")
    junk: list[Any] = _junk() if on_redis else _amqp_junk()
    stage.fault()
    for one in junk:
        if on_redis:
            with stage.redis as client:
                client.lpush("default", one)
        else:
            _publish(stage.broker.url, *one)
        stage.enqueue(1, seconds=0.01)
    stage.enqueue(20, seconds=0.05)
    stage.settle(40 if stage.celery else None)
    stage.require(stage.worker.running, "the worker lives on")
    if stage.celery:
        return
    letters = "SELECT count(*) FROM dlq_deadletter WHERE error_type = 'jobs.errors.UnreadableMessage'"
    stage.wait(lambda: stage.database.rows(letters)[0][0] >= len(junk), "each is a dead letter", 30)
    stage.measure(letters=stage.database.rows(letters)[0][0])


def _junk() -> list[bytes]:
    """What somebody may push into a list of Redis."""
    properties = {
        "delivery_tag": str(uuid4()), "body_encoding": "base64", "delivery_mode": 2, "priority": 0,
        "delivery_info": {"exchange": "", "routing_key": "default"},
    }  # fmt: skip
    kind = {"content-type": "application/json", "content-encoding": "utf-8"}
    triple = "W1tdLCB7fSwge31d"  # [[], {}, {}]
    call = {"task": "tests.chaos.tasks.plain", "id": str(uuid4())}
    shapes: list[dict[str, Any]] = [
        {"body": triple, "headers": {"task": call["task"]}, "properties": properties, **kind},
        {"body": "WzEsIDJd", "headers": call, "properties": properties, **kind},
        {"body": "bm90IEpTT04=", "headers": call, "properties": properties, **kind},
        {"body": "W1tdLCBbMV0sIHt9XQ==", "headers": call, "properties": properties, **kind},
        {"body": triple, "headers": {}, "properties": properties, **kind, "content-type": "text/x-poem"},
        {"body": triple, "headers": {**call, "eta": "tomorrow"}, "properties": properties, **kind},
        {"body": triple, "headers": {}, "properties": {}},
    ]
    for number, shape in enumerate(shapes):
        fresh = {**shape["properties"], "delivery_tag": str(uuid4())} if shape["properties"] else {}
        shape |= {"properties": fresh, "headers": {**shape["headers"], "number": number}}
        if "id" in shape["headers"]:
            shape["headers"]["id"] = str(uuid4())
    return [b"not JSON at all", b"\xff\xfe\x00", b"17", b"[1, 2]", *(json.dumps(shape).encode() for shape in shapes)]


def _amqp_junk() -> list[tuple[bytes, str, dict[str, Any]]]:
    """What somebody may publish to a queue of RabbitMQ: body, content type, headers."""
    call = {"task": "tests.chaos.tasks.plain"}
    named = [{**call, "id": str(uuid4())} for _ in range(5)]
    return [
        (b"not JSON at all", "text/plain", {}),
        (b"\xff\xfe\x00", "application/octet-stream", {}),
        (b"[[], {}, {}]", "application/json", call),
        (b"[1, 2]", "application/json", named[0]),
        (b"{nonsense", "application/json", named[1]),
        (b"[[], [1], {}]", "application/json", named[2]),
        (b"[[], {}, {}]", "application/json", {**named[3], "eta": "tomorrow"}),
        (b"no gzip", "application/json", {**named[4], "compression": "application/x-gzip"}),
    ]


def _publish(url: str, body: bytes, content_type: str, headers: dict[str, Any]) -> None:
    with Connection(url) as connection:
        connection.Producer().publish(
            body, exchange="", routing_key="default", content_type=content_type, content_encoding="binary",
            headers=headers,
        )  # fmt: skip


@row(22, "unknown task during a rolling deploy", must="waits for a new worker", brokers=BOTH)
def unknown_task(stage: Stage) -> None:
    stage.start(environ={"CHAOS_FORGET": "plain"})
    old = stage.worker
    unknown = stage.enqueue(20, seconds=0.02)
    known = stage.enqueue(10, "transactional")
    stage.wait_begun(known)
    stage.require(stage.begun(unknown) == 0, "the old worker does not know the task")
    stage.fault()
    stage.start_worker()
    unknown += stage.enqueue(20, seconds=0.02)
    old.signal(signal.SIGTERM)
    stage.settle()
    stage.require(stage.begun(unknown) == len(unknown), "each job runs once")
