"""Rows 164-170: conductors that die, hang and meet, and what they find: deep, flushed and swallowed messages."""

from __future__ import annotations

import json
import time
from typing import Any

from project import processes
from tests.chaos.children import Process
from tests.chaos.matrix import row
from tests.chaos.rows.database import cpu_seconds
from tests.chaos.stage import OutOfTime, Stage

NO_CONDUCTOR = "plain Celery has no conductor"
BOTH = ("redis", "rabbitmq")
NORMAL = "default\x06\x166"  # the list of a queue's normal priority
# One tick a second does every chore once, so that the n-th statement is the same one in each run.
BY_HAND = {"TICK": 1.0, "LEASE": 3, "HEARTBEAT": 0.5, "CANCEL_GRACE": 1, "LOST_AFTER": 1, "LEADER_LEASE": 1}
A_ROUND = 6.0  # seconds in which such a conductor has done all that there is to do


def depth(stage: Stage, queue: str = "default") -> int:
    """How many messages of normal priority wait in the broker."""
    with stage.redis as client:
        return int(client.llen(queue if stage.celery else NORMAL.replace("default", queue)))  # type: ignore[arg-type]


def sends(stage: Stage) -> dict[Any, tuple[Any, Any]]:
    """When and how often each reserved job was sent."""
    rows = stage.database.rows("SELECT id, sent_at, sends FROM jobs_job WHERE state = 'reserved'")
    return {job: (sent_at, times) for job, sent_at, times in rows}


def occupied(stage: Stage, slots: int = 2) -> Any:
    """Keep all slots of the workers busy; return the gate that frees them."""
    gate = stage.gate(f"gate-{len(stage.workers)}")
    stage.wait_begun(stage.enqueue(slots, gate=gate.path), timeout=60)
    return gate


# --- At each statement ------------------------------------------------------------------------------------------


class Desk:
    """Jobs in every state of which a conductor has to make something, laid out anew before each death."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.once: list[int] = []
        self.lost: list[int] = []

    def lay_out(self, round_: int) -> None:
        """Due, expired, lost lease, cancelled while running, lost message; now and then a broker set back."""
        stage = self.stage
        due = stage.enqueue(1, options={"countdown": 0.5})
        expired = stage.enqueue(1, options={"expires": 0.5}, expects="cancelled")
        self._claim(self.lost[-8:])  # those that were lost before are lost again, until they are given up
        lost = stage.enqueue(1, expects="any") + stage.enqueue(1, "transactional", expects="any", effect="none")
        self.lost += lost
        chain = stage.enqueue(1, "chain")
        cancelled = stage.enqueue(1)
        self._claim([*lost, chain[0], *cancelled])
        stage.cancel(cancelled)
        self.once += stage.enqueue(1) + due
        stage.expect(expired, "cancelled")
        with stage.redis as client:
            client.delete(NORMAL)
            if round_ % 3 == 2:
                client.delete("mainstay.epoch")

    def _claim(self, numbers: list[int]) -> None:
        ids = [self.stage.job_id(number) for number in numbers]
        self.stage.order(do="claim", ids=[job for job in ids if job])


@row(164, "conductor killed at each of its statements", must="the next one goes on, nothing is done twice",
     celery=NO_CONDUCTOR, jobs={**BY_HAND, "MAX_LOSSES": 2}, limit=2400)  # fmt: skip
def conductor_dies_at_seams(stage: Stage) -> None:
    desk, deaths, tried = Desk(stage), 0, 0
    numbers = sorted(stage.random.sample(range(1, 60), 5)) if stage.quick else range(1, 400)
    for number in numbers:
        reached = False
        for when in ("before", "after"):
            desk.lay_out(tried)
            reached |= conduct_until(stage, f"{number}:{when}")
            tried += 1
            deaths += not stage.conductor.running
            stage.conductor.end()
        if not reached and not stage.quick:
            break
    stage.measure(deaths=deaths)
    if stage.quick:
        stage.leave_out(f"{len(numbers)} statements instead of all")
    stage.require(deaths, "some conductor died")
    stage.start()
    stage.settle()
    stage.require(stage.begun(desk.once) == len(desk.once), "what was due or lost runs once")


def conduct_until(stage: Stage, where: str) -> bool:
    """Start a conductor that dies at this statement; whether it got there."""
    stage.arm("main MainThread")
    stage.start_conductor(ready=False, die=where)
    processes.wait_until(lambda: not stage.conductor.running, A_ROUND)
    reached = not stage.world.armed.exists()
    stage.world.armed.unlink(missing_ok=True)
    return reached


# --- Several conductors -----------------------------------------------------------------------------------------


def leader(stage: Stage) -> Process:
    """The conductor that leads, by the row of its office."""
    found: list[Process] = []

    def known() -> bool:
        rows = stage.database.rows("SELECT holder FROM jobs_leader")
        pids = {int(str(holder).split(":")[-2]) for (holder,) in rows}
        found[:] = [one for one in stage.conductors if one.pid in pids and one.running]
        return bool(found)

    stage.wait(known, "a conductor leads", timeout=30)
    return found[0]


def released(stage: Stage, numbers: list[int]) -> int:
    """How often jobs of these were reserved beyond the one time that each was due."""
    ids = {stage.job_id(number).replace("-", "") for number in numbers}
    rows = stage.database.rows(
        "SELECT job, count(*) FROM chaos_audit WHERE new_state = 'reserved' AND old_state <> 'reserved' GROUP BY job"
    )
    return sum(count - 1 for job, count in rows if str(job).replace("-", "") in ids)


@row(165, "leading conductor frozen past its office, then continued", must="nothing is released twice for one due",
     brokers=BOTH, celery=NO_CONDUCTOR)  # fmt: skip
def frozen_leader(stage: Stage) -> None:
    stage.start()
    stage.start_conductor()
    numbers: list[int] = []
    for _ in range(stage.scaled(6, 3)):
        first = leader(stage)
        numbers += stage.enqueue(stage.scaled(60, 30), options={"countdown": 0.6})
        first.freeze()
        stage.wait(lambda: leader(stage) is not first, "another conductor leads", timeout=30)  # noqa: B023
        more = stage.enqueue(5, options={"countdown": 0.2})
        stage.wait_begun(more, timeout=30)
        numbers += more
        first.thaw()
        stage.sleep(1)
    stage.settle()
    again = released(stage, numbers)
    stage.measure(released_again=again, begun_again=stage.begun(numbers) - len(numbers))
    stage.require(stage.begun(numbers) == len(numbers), "each runs once")
    # Frozen between mark and send, a conductor leaves a job that the other one finds and sends.
    stage.require(again <= stage.scaled(60, 30), "nothing but what was being sent is released again")


@row(166, "three conductors under load, the leader killed again and again", must="each job runs once",
     brokers=BOTH, celery=NO_CONDUCTOR)  # fmt: skip
def conductors_killed_in_turn(stage: Stage) -> None:
    stage.start()
    for _ in range(2):
        stage.start_conductor(ready=False)
    load = stage.steady(stage.scaled(150, 80), 12, options={"countdown": 0.3})
    for _ in range(stage.scaled(6, 3)):
        leader(stage).kill()
        stage.start_conductor(ready=False)
        stage.sleep(1.5)
    stage.wait(lambda: load.done, "the last call has returned")
    stage.settle()
    stage.require(stage.begun(load.numbers) == len(load.numbers), "each job runs once")


# --- Deep, flushed, swallowed -------------------------------------------------------------------------------------


@row(167, "healthy deep backlog behind long-running jobs", must="nothing is sent twice", celery=NO_CONDUCTOR,
     limit=2400)  # fmt: skip
def deep_backlog(stage: Stage) -> None:
    stage.start()
    gate = occupied(stage)
    began, count = time.monotonic(), stage.scaled(100_000, 5_000)
    stage.bulk(count)
    stage.measure(jobs=count, enqueued_per_s=round(count / (time.monotonic() - began)))
    stage.wait(lambda: depth(stage) + 10 >= stage.states()["reserved"] >= count, "the broker holds them all")
    before, waiting, span = sends(stage), depth(stage), stage.scaled(40, 14)
    used = cpu_seconds([stage.conductor.pid])
    stage.sleep(span)
    used = cpu_seconds([stage.conductor.pid]) - used
    stage.measure(conductor_cpu_per_s=round(used / span, 3))
    stage.require(sends(stage) == before, "nothing is sent again while it waits in a healthy broker")
    stage.require(depth(stage) == waiting, "the broker's list stays as it is")
    come_and_go(stage, stage.scaled(3, 2))
    gate.open()
    stage.settle()


def come_and_go(stage: Stage, times: int) -> None:
    """Let workers join and leave in good order, their slots busy; what they gave back is all that goes out again."""
    more = stage.start_worker(concurrency=1)
    for _ in range(times):
        stage.sleep(3)
        more.stop()
        more = stage.start_worker(concurrency=1)
    stage.sleep(3)
    more.stop()
    rows = stage.database.rows("SELECT count(*) FROM jobs_job WHERE sends > 1")
    stage.measure(given_back=rows[0][0])
    stage.require(rows[0][0] <= 8 * (times + 1), "only what a leaving worker gave back goes out again")


@row(168, "FLUSHALL with a deep backlog waiting", must="all sent again within 30 s, each runs once", limit=900)
def flushed_with_a_backlog(stage: Stage) -> None:
    stage.start()
    gate = occupied(stage)
    count = stage.scaled(10_000, 1_500)
    numbers = stage.bulk(count)
    stage.wait(lambda: depth(stage) >= count - 20, "the broker holds them all")
    stage.sleep(2)  # the marker is moved on every second
    held = depth(stage)
    stage.fault()
    began = time.monotonic()
    stage.redis.flushall()
    if not stage.celery:
        stage.wait(lambda: depth(stage) >= held, "the broker holds them all again", timeout=90)
        took = time.monotonic() - began
        stage.measure(jobs=count, all_sent_again_s=round(took, 1))
        stage.require(took <= 30, "all are sent again within 30 s")
    gate.open()
    stage.settle()
    stage.require(stage.begun(numbers) == count, "each runs once")


@row(169, "worker dies with a deep prefetch", must="found without the visibility timeout, its queue deep")
def dead_prefetch(stage: Stage) -> None:
    stage.start()
    gate = occupied(stage)
    greedy = stage.start_worker(args=["--prefetch-multiplier", "6"])
    busy = occupied(stage)
    held = stage.enqueue(10)
    backlog = stage.bulk(stage.scaled(3000, 600))
    if not stage.celery:
        wanted = {stage.job_id(number).replace("-", "") for number in held}
        stage.wait(lambda: len(wanted & holds(stage, greedy)) >= 6, "it says what it holds", timeout=20)
        missing = wanted & holds(stage, greedy)
    began = time.monotonic()
    greedy.kill()
    if not stage.celery:
        stage.wait(lambda: missing <= sent_again(stage), "what it held is sent again", timeout=90)
        took = time.monotonic() - began
        stage.measure(held=len(missing), sent_again_s=round(took, 1), queue=depth(stage))
        stage.require(took <= stage.lease + 5, "found within the lease and five seconds")
        stage.require(depth(stage) >= len(backlog), "without an empty queue")
    gate.open()
    busy.open()
    stage.settle()
    stage.require(stage.begun(held) == len(held), "what it held and had not begun runs once")


def holds(stage: Stage, worker: Process) -> set[str]:
    """What a worker says it has received."""
    rows = stage.database.rows("SELECT holds, pid FROM jobs_worker")
    found = [json.loads(told) if isinstance(told, str) else told for told, pid in rows if pid == worker.pid]
    return {str(job).replace("-", "") for told in found for job in told}


def sent_again(stage: Stage) -> set[str]:
    """The jobs that were sent more than once."""
    rows = stage.database.rows("SELECT id FROM jobs_job WHERE sends > 1")
    return {str(job).replace("-", "") for (job,) in rows}


@row(170, "message lost between broker and a frozen worker (BRPOP gap), the queue deep", must="found behind others")
def swallowed_with_a_deep_queue(stage: Stage) -> None:
    worker = stage.start()
    swallowed = swallow(stage, worker)
    load = stage.steady(stage.scaled(500, 320), 16, seconds=0.08)
    stage.sleep(2)
    worker.kill()
    stage.start_worker(concurrency=1)
    if not stage.celery:
        began, lost = time.monotonic(), stage.job_id(swallowed[0]).replace("-", "")
        stage.wait(lambda: lost in sent_again(stage), "it is found and sent again", timeout=100)
        stage.measure(found_s=round(time.monotonic() - began, 1), queue=depth(stage))
        stage.require(depth(stage) > 20, "found without an empty queue")
    stage.start_worker(concurrency=2)
    stage.wait(lambda: load.done, "the last call has returned")
    stage.settle()


def swallow(stage: Stage, worker: Process) -> list[int]:
    """Freeze a worker, and let the broker write a message to it; that it waits for one is a matter of luck."""
    stage.wait_begun(stage.enqueue(2), timeout=30)
    for _ in range(20):
        stage.sleep(stage.random.uniform(0.2, 0.8))
        worker.freeze()
        given = stage.enqueue(1)
        stage.sleep(0.2)
        if depth(stage) == 0:
            return given
        worker.thaw()
        stage.wait_begun(given, timeout=30)
    raise OutOfTime("the broker gave no message to the frozen worker")
