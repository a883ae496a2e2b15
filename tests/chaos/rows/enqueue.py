"""Rows about the way in: callers that die, brokers that do not answer when a job is enqueued."""

from __future__ import annotations

from tests.chaos.matrix import row
from tests.chaos.stage import Stage


@row(1, "caller dies after COMMIT before publish", must="the job runs all the same")
def caller_dies_before_publish(stage: Stage) -> None:
    stage.start()
    dying = [stage.enqueue(1, in_transaction=True, die=True)[0] for _ in range(3)]
    stage.fault()
    alive = stage.enqueue(10)
    stage.wait_begun(alive)
    stage.settle()
    stage.require(stage.begun(dying) == len(dying), "what was committed runs once")


@row(
    2,
    "broker down at enqueue",
    must="enqueue returns at once, the job runs when it is back",
    brokers=("redis", "rabbitmq"),
)
def broker_down_at_enqueue(stage: Stage) -> None:
    stage.start()
    stage.enqueue(5)
    stage.fault()
    stage.broker.stop()
    down = stage.enqueue(stage.scaled(50, 20))
    slowest = max(stage.took(down))
    stage.broker.start()
    stage.settle()
    stage.measure(slowest_enqueue_s=round(slowest, 2))
    stage.require(slowest < 2.5, "no enqueue takes longer than the send timeout")
