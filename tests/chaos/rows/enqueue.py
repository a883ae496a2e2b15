"""Rows about the way in: callers that die, brokers that do not answer when a job is enqueued."""

from __future__ import annotations

from tests.chaos.matrix import row
from tests.chaos.stage import Stage

BOTH = ("redis", "rabbitmq")
# The send timeout is a second; the rest is for a machine that is busy with other rows.
AT_ONCE = 3.0


@row(1, "caller dies after COMMIT before publish", must="the job runs all the same", brokers=BOTH)
def caller_dies_before_publish(stage: Stage) -> None:
    stage.start()
    dying = [stage.enqueue(1, in_transaction=True, die=True)[0] for _ in range(3)]
    stage.fault()
    alive = stage.enqueue(10)
    stage.wait_begun(alive)
    stage.settle()
    stage.require(stage.begun(dying) == len(dying), "what was committed runs once")


@row(2, "broker down at enqueue", must="enqueue returns at once; published when it is back", brokers=BOTH)
def broker_down_at_enqueue(stage: Stage) -> None:
    stage.start()
    stage.enqueue(5)
    stage.fault()
    stage.broker.stop()
    down = stage.enqueue(stage.scaled(20, 10))
    stage.broker.start()
    stage.settle()
    _require_quick(stage, down)


@row(3, "broker half-open at enqueue", must="enqueue returns within its timeout", brokers=BOTH)
def broker_half_open_at_enqueue(stage: Stage) -> None:
    stage.start()
    proxy = stage.proxy_broker()
    stage.producer_through(proxy)
    stage.enqueue(2)
    stage.fault()
    proxy.half_open()
    mute = stage.enqueue(stage.scaled(6, 3))
    stage.settle(30)
    proxy.heal()
    stage.enqueue(2)
    stage.settle()
    _require_quick(stage, mute)


@row(40, "duplicate publish of the same job", must="one run", brokers=("redis",))
def duplicate_publish(stage: Stage) -> None:
    stage.start()
    gate = stage.gate()
    stage.enqueue(2, gate=gate.path)
    stage.wait_running(2)
    numbers = [*stage.enqueue(10), *stage.enqueue(10, "transactional")]
    with stage.redis as client:
        waiting = {name: client.lrange(name, 0, -1) for name in stage.lists}
        stage.require(any(waiting.values()), "messages wait in the broker")
        stage.fault()
        for name in [name for name, messages in waiting.items() if messages] * 2:
            client.lpush(name, *waiting[name])
    gate.open()
    stage.settle()
    stage.require(stage.begun(numbers) == len(numbers), "each job runs once")


def _require_quick(stage: Stage, numbers: list[int]) -> None:
    slowest = max(stage.took(numbers))
    stage.measure(slowest_enqueue_s=round(slowest, 2))
    stage.require(slowest < AT_ONCE, "no call takes much longer than the send timeout")
