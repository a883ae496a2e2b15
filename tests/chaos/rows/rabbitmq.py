"""Rows about RabbitMQ: nodes that die, hang or take no messages, queues and channels that go."""

from __future__ import annotations

from tests.chaos.matrix import row
from tests.chaos.stage import Stage

ONLY = ("rabbitmq",)
COMPARED = "plain Celery is compared on Redis"
AT_ONCE = 3.0


@row(42, "RabbitMQ: kill -9 of the node, restart", must="confirms and the reconciler", brokers=ONLY, celery=COMPARED)
def node_killed(stage: Stage) -> None:
    worker = stage.start()
    gate = stage.gate()
    stage.enqueue(2, gate=gate.path)
    stage.wait_running(2)
    stage.mixed(stage.scaled(40, 15))
    stage.fault()
    stage.broker.kill()
    stage.enqueue(5)
    gate.open()
    stage.broker.start()
    stage.settle()
    stage.require(worker.running, "the worker lives on")


@row(
    43, "RabbitMQ: memory alarm, then disk alarm", must="enqueue is bounded, the jobs run afterwards", brokers=ONLY,
    celery=COMPARED,
)  # fmt: skip
def alarms(stage: Stage) -> None:
    worker = stage.start()
    stage.enqueue(5)
    stage.settle()
    during: list[int] = []
    for command, alarm, none in (
        ("set_vm_memory_high_watermark", ("absolute", "1"), ("0.4",)),
        ("set_disk_free_limit", ("mem_relative", "1000.0"), ("50MB",)),
    ):
        _control(stage, command, *alarm)
        stage.fault()
        during += stage.enqueue(stage.scaled(10, 5))
        _control(stage, command, *none)
        stage.settle()
    stage.require(max(stage.took(during)) < AT_ONCE, f"each call returns within {AT_ONCE:g} s")
    stage.require(worker.running, "the worker lives on")


@row(
    44, "RabbitMQ: consumer_timeout during a long job", must="no worker death spiral, one outcome", brokers=ONLY,
    celery=COMPARED, rabbitmq={"consumer_timeout": 2000},
)  # fmt: skip
def consumer_timeout(stage: Stage) -> None:
    # How often it looks is no line of rabbitmq.conf: once a minute, by default.
    stage.broker.control("eval", "application:set_env(rabbit, channel_tick_interval, 1000).")
    worker = stage.start()
    stage.enqueue(1, seconds=8)
    stage.wait_running(1)
    stage.fault()
    stage.enqueue(10, seconds=0.2)
    stage.settle()
    stage.require("PRECONDITION_FAILED" in worker.printed, "the channel was closed")
    stage.require(worker.running, "the worker lives on")
    stage.require(len(stage.runs) == 11, "nothing ran twice")


@row(210, "RabbitMQ: the queues are purged with jobs waiting", must="sent again", brokers=ONLY, celery=COMPARED)
def purged(stage: Stage) -> None:
    stage.start()
    gate = stage.gate()
    stage.enqueue(2, gate=gate.path)
    stage.wait_running(2)
    stage.mixed(stage.scaled(60, 20))
    stage.fault()
    _control(stage, "purge_queue", "default")
    gate.open()
    stage.settle()


@row(
    211, "RabbitMQ: the queue is deleted under a worker", must="declared and sent again", brokers=ONLY,
    celery=COMPARED,
)  # fmt: skip
def deleted(stage: Stage) -> None:
    worker = stage.start()
    gate = stage.gate()
    stage.enqueue(2, gate=gate.path)
    stage.wait_running(2)
    stage.mixed(stage.scaled(60, 20))
    stage.fault()
    _control(stage, "delete_queue", "default")
    stage.enqueue(5)
    gate.open()
    stage.settle()
    stage.require(worker.running, "the worker lives on")


@row(
    212, "RabbitMQ: a quorum queue drops messages at its delivery limit", must="sent again", brokers=ONLY,
    celery=COMPARED,
)  # fmt: skip
def delivery_limit(stage: Stage) -> None:
    quorum = {"environ": {"RABBITMQ_QUEUES": "quorum"}}
    _control(stage, "set_policy", "limit", ".*", '{"delivery-limit": 1}', "--apply-to", "queues")
    stage.start(**quorum)
    stage.enqueue(8, seconds=1.0)
    for _ in range(2):
        stage.wait_running(1)
        stage.fault()
        stage.worker.kill()
        stage.start_worker(**quorum)
    stage.settle()


@row(213, "RabbitMQ: the node hangs 20 s (SIGSTOP)", must="finish, record, resume", brokers=ONLY, celery=COMPARED)
def node_frozen(stage: Stage) -> None:
    worker = stage.start()
    stage.enqueue(6, seconds=1.0)
    stage.wait_running(1)
    stage.broker.freeze()
    stage.fault()
    frozen = stage.enqueue(3)
    stage.sleep(20)
    stage.broker.thaw()
    stage.enqueue(3)
    stage.settle()
    stage.require(max(stage.took(frozen)) < AT_ONCE, f"each call returns within {AT_ONCE:g} s")
    stage.require(worker.running, "the worker lives on")


@row(214, "RabbitMQ: all connections closed, thrice, under load", must="no loss", brokers=ONLY, celery=COMPARED)
def connections_closed(stage: Stage) -> None:
    worker = stage.start()
    stage.steady_mixed(stage.scaled(60, 24), 8)
    for _ in range(3):
        stage.wait_running(1)
        _control(stage, "close_all_connections", "chaos")
        stage.fault()
        stage.sleep(2)
    stage.settle()
    stage.require(worker.running, "the worker lives on")


def _control(stage: Stage, *words: str) -> None:
    control = getattr(stage.broker, "control", None)
    if control is None:
        stage.skip("it needs a RabbitMQ of its own")
    else:
        control(*words)
