"""Rows 45-49, 140-142 and 150-159: faults that come together, keys and pauses under kills, random schedules."""

from __future__ import annotations

import json
import socket
from collections import defaultdict
from collections.abc import Callable
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

from tests.chaos import schedules
from tests.chaos.children import Process
from tests.chaos.matrix import row
from tests.chaos.stage import Stage

POSTGRES = ("postgres",)
BOTH = ("redis", "rabbitmq")
NO_DATABASE = "plain Celery has no database"
NO_CONDUCTOR = "plain Celery has no conductor"
# Many faults in a row may take the same job's process down; as a poison pill it would end by right.
STUBBORN = {"MAX_LOSSES": 20}


def recovered(stage: Stage) -> None:
    """Require that what was interrupted runs again within the lease and five seconds."""
    stage.settle()
    stage.require(stage.recovery_s <= stage.lease + 5, "runs again within the lease and five seconds")


@row(45, "FLUSHALL while a worker's main process is killed", must="rescued, and all sent again")
def flushed_while_a_worker_dies(stage: Stage) -> None:
    stage.start()
    stage.start_worker()
    stage.mixed(stage.scaled(60, 30), seconds=0.2)
    stage.enqueue(4, seconds=1.0)
    stage.wait_running(2)
    stage.redis.flushall()
    stage.worker.kill_main()
    stage.start_worker()
    recovered(stage)


@row(
    46, "database restarts (immediate) while the broker is killed", must="rescued, and all sent again",
    own_database=True, databases=POSTGRES, celery=NO_DATABASE, may_refuse=True, jobs=STUBBORN,
)  # fmt: skip
def database_and_broker_at_once(stage: Stage) -> None:
    stage.start()
    load = stage.steady_mixed(stage.scaled(80, 40), 10, seconds=0.1)
    stage.wait_running()
    stage.fault()
    stage.broker.kill()
    stage.database.server.restart("immediate")
    stage.sleep(1)
    stage.broker.start()
    stage.wait(lambda: load.done, "the last call has returned")
    recovered(stage)


@row(47, "conductor and worker host die at once", must="rescued by those that come after",
     brokers=BOTH, celery=NO_CONDUCTOR)  # fmt: skip
def conductor_and_worker_at_once(stage: Stage) -> None:
    stage.start()
    stage.mixed(stage.scaled(40, 20), seconds=0.2)
    stage.enqueue(4, "transactional", seconds=1.0)
    later = stage.enqueue(4, options={"countdown": 2})
    stage.wait_running(2)
    stage.conductor.kill()
    stage.worker.kill()
    stage.start_conductor(ready=False)
    stage.start_worker()
    recovered(stage)
    stage.require(stage.begun(later) == len(later), "what was due later runs once")


@row(
    48, "broker frozen while the database restarts", must="goes on when both are back, without losing a connection",
    own_database=True, databases=POSTGRES, celery=NO_DATABASE, may_refuse=True, jobs=STUBBORN,
)  # fmt: skip
def frozen_broker_and_database(stage: Stage) -> None:
    stage.start()
    load = stage.steady_mixed(stage.scaled(80, 40), 8, seconds=0.1)
    stage.wait_running()
    stage.broker.freeze()
    stage.database.server.restart("immediate")
    stage.sleep(stage.scaled(15, 4))
    stage.fault()
    stage.broker.thaw()
    stage.wait(lambda: load.done, "the last call has returned")
    recovered(stage)
    stage.require(all(process.running for process in [*stage.workers, *stage.conductors]), "nobody died of it")


@row(49, "pool child killed while the broker is away", must="given back at once, run when the broker is back")
def child_killed_in_an_outage(stage: Stage) -> None:
    worker = stage.start()
    stage.mixed(stage.scaled(30, 20), seconds=0.2)
    running = stage.enqueue(2, seconds=3.0)
    stage.wait_begun(running, timeout=60)
    stage.broker.kill()
    worker.kill_child(stage.pid_of(running[0]))
    stage.enqueue(5, wait=False)
    stage.sleep(2)
    stage.broker.start()
    recovered(stage)
    stage.require(worker.running, "the worker lives on")


# --- Keys, pauses and retries -----------------------------------------------------------------------------------


class SecondProducer:
    """Another process that enqueues, beside the stage's own."""

    def __init__(self, stage: Stage) -> None:
        self.process: Process = stage.spawn("producer-2", ["-m", "tests.chaos.producer"]).expect("listens on")
        self.port = int(self.process.printed.partition("listens on ")[2].split()[0])

    def begin(self, **order: Any) -> socket.socket:
        """Give an order; its answer is awaited by ``end``."""
        connection = socket.create_connection(("127.0.0.1", self.port), 120)
        connection.sendall(json.dumps(order).encode() + b"\n")
        return connection

    @staticmethod
    def end(connection: socket.socket) -> None:
        """Wait until the order is done."""
        with connection, connection.makefile() as answers:
            answer = json.loads(answers.readline() or "{}")
        assert "error" not in answer, answer


def by_key(stage: Stage) -> dict[str, list[tuple[datetime, datetime]]]:
    """From when to when each job of each key was unfinished, by the rows."""
    rows = stage.database.rows("SELECT key, created_at, finished_at FROM jobs_job WHERE key IS NOT NULL")
    found: dict[str, list[tuple[datetime, datetime]]] = defaultdict(list)
    for key, *times in rows:
        created, finished = (t if isinstance(t, datetime) else datetime.fromisoformat(t) for t in times)
        found[key].append((created, finished))
    return found


@row(140, "two producers enqueue the same keys during kills", must="one job per key while it is unfinished",
     brokers=BOTH, celery="it has no keys")  # fmt: skip
def same_keys_from_two_producers(stage: Stage) -> None:
    worker = stage.start()
    stage.start_worker()
    keys = [f"same-{n}" for n in range(6)]
    specs = [stage._spec("idempotent", key=keys[n % 6], seconds=0.1) for n in range(stage.scaled(240, 120))]
    second, half = SecondProducer(stage), len(specs) // 2
    answer = second.begin(do="enqueue", specs=specs[:half], pause=0.05)
    own = stage._load(specs[half:], 20)
    stage.wait_running()
    worker.kill_child()
    stage.sleep(1)
    worker.kill()
    stage.conductor.kill()
    stage.start_conductor(ready=False)
    stage.start_worker()
    SecondProducer.end(answer)
    stage.wait(lambda: own.done, "the last call has returned")
    stage.settle()
    blur = timedelta(milliseconds=50)
    spans = by_key(stage)
    twice = [key for key, times in spans.items() if any(a[1] > b[0] + blur for a, b in _pairs(times))]
    stage.measure(calls=len(specs), jobs=sum(map(len, spans.values())))
    stage.require(not twice, f"one unfinished job per key (not of {twice})")
    stage.require(sum(map(len, spans.values())) < len(specs), "calls with a taken key add no job")


def _pairs(times: list[tuple[datetime, datetime]]) -> list[tuple[Any, Any]]:
    ordered = sorted(times)
    return list(pairwise(ordered))


@row(141, "a queue paused and resumed through kills", must="nothing starts while it is paused, all run after",
     celery="it cannot pause what is queued")  # fmt: skip
def paused_through_kills(stage: Stage) -> None:
    stage.start()
    stage.enqueue(4, seconds=0.5)
    stage.wait_running(2)
    stage.order(do="operate", verb="pause", queue="default")
    stage.wait(lambda: all(run.ended for run in stage.runs), "what ran has ended")
    held = stage.enqueue(6) + stage.enqueue(3, "transactional") + stage.enqueue(3, options={"countdown": 1})
    stage.worker.kill()
    stage.conductor.kill()
    stage.start_conductor(ready=False)
    stage.start_worker()
    stage.redis.flushall()
    stage.sleep(stage.scaled(10, 4))
    stage.require(stage.begun(held) == 0, "nothing starts while the queue is paused")
    stage.order(do="operate", verb="resume", queue="default")
    stage.fault()
    stage.conductor.kill()
    stage.start_conductor()
    stage.settle()
    stage.require(stage.begun(held) == len(held), "everything runs once after it is resumed")


@row(142, "jobs made due by an operator while conductor and worker die", must="run now, once",
     brokers=BOTH, celery=NO_CONDUCTOR)  # fmt: skip
def made_due_through_kills(stage: Stage) -> None:
    stage.start()
    far = stage.enqueue(stage.scaled(40, 20), options={"countdown": 3600})
    ids = [stage.job_id(number) for number in far]
    stage.order(do="operate", verb="retry", ids=ids[: len(ids) // 2])
    stage.conductor.kill()
    stage.order(do="operate", verb="retry", ids=ids)
    stage.worker.kill()
    stage.start_conductor(ready=False)
    stage.start_worker()
    stage.order(do="operate", verb="retry", ids=ids)
    stage.settle()
    again = stage.begun(far) - len(far)
    stage.measure(begun_again=again)
    stage.require(stage.recovery_s <= stage.lease + 5, "they run soon after")
    stage.require(again <= 2, "nothing runs twice but what the killed worker ran")


# --- Random schedules -------------------------------------------------------------------------------------------

EACH = 5  # schedules in one row


def _random_row(number: int) -> Callable[[Stage], None]:
    def random_schedules(stage: Stage) -> None:
        for index in range(stage.scaled(EACH, 1)):
            schedules.play(stage, index)

    random_schedules.__name__ = f"random_schedules_{number}"
    return random_schedules


for _number in range(150, 160):
    row(
        _number, f"random schedules of faults under load, {_number - 149} of 10", must="nothing lost, nothing doubled",
        own_database=True, may_refuse=True, jobs=STUBBORN, limit=480, celery="it is compared fault by fault",
    )(_random_row(_number))  # fmt: skip
