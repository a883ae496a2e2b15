"""Rows about workers that die, hang, stop and go on."""

from __future__ import annotations

from tests.chaos.matrix import row
from tests.chaos.stage import Stage

BOTH = ("redis", "rabbitmq")


@row(17, "worker main SIGKILL", must="rescued within the lease", brokers=BOTH)
def main_killed(stage: Stage) -> None:
    stage.start()
    stage.enqueue(20, seconds=0.5)
    stage.enqueue(5, "transactional", seconds=0.5)
    stage.wait_running(2)
    stage.worker.kill_main()
    stage.start_worker()
    stage.settle()
    stage.require(stage.recovery_s <= stage.lease + 5, "runs again within the lease and five seconds")
