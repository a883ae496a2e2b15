"""Rows 228-230: jobs that go together, in chunks and bursts, while workers, the broker and conductors die."""

from __future__ import annotations

from collections import Counter, defaultdict

from tests.chaos import ledger
from tests.chaos.children import Process
from tests.chaos.ledger import Asked, Run
from tests.chaos.matrix import row
from tests.chaos.observer import SECOND
from tests.chaos.rows.conductor import BOTH, depth, leader
from tests.chaos.rows.order import emptied
from tests.chaos.rows.parked import OPENS, Gateway
from tests.chaos.stage import Stage

NO_CHUNKS = "plain Celery calls a body for one message"
NO_BURSTS = "plain Celery runs each call"
SIZE = 10  # of a chunk of the task "gathered"
HANDS = 2
QUIET, LONGEST = 0.5, 2.0  # of the task "debounced"
SOON = 5.0  # seconds in which a burst goes once somebody leads, on a busy machine


# --- Chunks -------------------------------------------------------------------------------------------------------


def in_hand(stage: Stage, pids: list[int]) -> list[Run]:
    """The bodies that run in these processes."""
    return [run for run in stage.runs if run.ended is None and run.pid in pids]


def wait_full(stage: Stage, worker: Process) -> None:
    """Wait until each hand of a worker has a chunk, and works on all of it."""

    def full() -> bool:
        held = in_hand(stage, worker.group())
        return len({run.pid for run in held}) == HANDS and all(run.last > run.began for run in held)

    stage.wait(full, "each hand has a chunk", timeout=60)


@row(228, "a child and a worker killed with chunks in hand", must="each job loses one attempt for each death, and runs",
     brokers=BOTH, celery=NO_CHUNKS, limit=240)  # fmt: skip
def killed_with_chunks(stage: Stage) -> None:
    gate, worker = stage.gate(), stage.start(concurrency=HANDS)
    numbers = stage.bulk(stage.scaled(8, 4) * SIZE, "gathered", gate=gate.path)
    wait_full(stage, worker)
    held = in_hand(stage, worker.group())
    stage.require(len(held) == HANDS * SIZE, f"{SIZE} jobs are one call")
    lost = Counter(run.number for run in held if run.pid == worker.kill_child(held[0].pid))
    wait_full(stage, worker)
    lost += Counter(run.number for run in in_hand(stage, worker.group()))
    worker.kill()
    stage.start_worker(concurrency=HANDS, ready=False)
    gate.open()
    emptied(stage)
    counted = losses(stage, numbers)
    stage.measure(lost=lost.total(), counted=counted.total())
    stage.require(counted == lost, "each job of a chunk counts the death of its runner, and no other job does")
    stage.require(stage.begun(numbers) == len(numbers) + lost.total(), "each job runs once, and once more for each")
    stage.require(not stage.database.rows("SELECT 1 FROM jobs_chunkmember"), "nothing is left of a chunk")


def losses(stage: Stage, numbers: list[int]) -> Counter[int]:
    """How often each job lost its runner, by its row."""
    found = dict(stage.database.rows("SELECT CAST(id AS varchar(36)), losses FROM jobs_job"))
    plain = {str(job).replace("-", ""): many for job, many in found.items()}
    return +Counter({number: plain[stage.job_id(number).replace("-", "")] for number in numbers})


@row(229, "FLUSHALL and a restart of Redis while chunks and parked jobs wait",
     must="chunks are sent again, what is parked stays parked", celery=NO_CHUNKS, limit=240)  # fmt: skip
def flushed_while_they_wait(stage: Stage) -> None:
    gateway, gate = Gateway(stage), stage.gate("chunks")
    gate.open()
    worker = stage.start(concurrency=HANDS, queues="default,reports")
    gateway.flood(OPENS)
    gateway.wait_open()
    gateway.flood(10)
    worker.stop()
    chunks = stage.bulk(stage.scaled(8, 4) * SIZE, "gathered", gate=gate.path, options={"queue": "reports"})
    stage.wait(lambda: depth(stage, "reports"), "a chunk is in the broker", timeout=60)
    stage.fault()
    stage.redis.flushall()
    stage.broker.kill()
    stage.broker.start()
    stage.start_worker(concurrency=HANDS, queues="default,reports")
    stage.wait_begun(chunks, timeout=90)
    tried = stage.begun(gateway.numbers)
    probes = stage.database.rows("SELECT openings FROM jobs_circuit")[0][0]
    stage.measure(tried=tried, openings=probes)
    stage.require(tried <= OPENS + probes, f"of an open circuit nothing starts but its probes ({tried} did)")
    gateway.mended.open()
    gateway.gate.open()
    emptied(stage)
    stage.require(stage.begun(chunks) == len(chunks), "each job of a chunk runs once")
    stage.require(not losses(stage, chunks), "no job lost an attempt")


# --- Bursts -------------------------------------------------------------------------------------------------------


@row(230, "leading conductor killed again and again in the middle of bursts",
     must="one run for the calls of a burst, with the latest payload", celery=NO_BURSTS, limit=240)  # fmt: skip
def failover_in_bursts(stage: Stage) -> None:
    stage.start()
    stage.start_conductor()
    count = stage.scaled(120, 60)
    users = {user: stage.steady(count, 10, kinds=("debounced",), user=user) for user in ("ann", "bob", "eve")}
    for part in range(1, stage.scaled(6, 3) + 1):
        stage.wait(lambda: len(stage.runs) >= 3 * part, "bursts go", timeout=60)  # noqa: B023
        leader(stage).kill()
        stage.start_conductor(ready=False)
    stage.wait(lambda: all(load.done for load in users.values()), "the last call has returned")
    emptied(stage)
    late = [judge_bursts(stage, load.numbers) for load in users.values()]
    stage.measure(bursts=len(stage.runs), calls=3 * count, late_s=round(max(late), 2))
    office = float(stage.world.jobs.get("LEADER_LEASE", 5.0))
    stage.require(
        max(late) <= office + SOON, f"a burst goes soon after somebody leads (one was {max(late):.1f} s late)"
    )
    stage.require(len(stage.runs) <= count, "many calls are one run")


def judge_bursts(stage: Stage, numbers: list[int]) -> float:
    """Hold that each burst of a user ran once, as late as it must and with its latest payload; how late one was."""
    asked = ledger.read_intake(stage.world.intake).asked
    stands = dict(stage.database.rows("SELECT CAST(id AS varchar(36)), CAST(follows_id AS varchar(36)) FROM jobs_job"))
    follows = {plain(job): plain(other) for job, other in stands.items() if other}
    bursts: dict[str, list[Asked]] = defaultdict(list)
    for number in numbers:
        job = plain(asked[number].job)
        bursts[follows.get(job, job)].append(asked[number])
    ran: dict[str, list[Run]] = defaultdict(list)
    for run in stage.runs:
        ran[plain(run.job)].append(run)
    latest = 0.0
    for job, calls in bursts.items():
        stage.require(len(ran[job]) == 1, f"one run for a burst of {len(calls)} calls ({len(ran[job])})")
        for run in ran[job]:
            last = max(calls, key=lambda call: call.number)
            stage.require(run.number == last.number, f"the latest payload ({last.number}, not {run.number})")
            due = min(last.at + QUIET * SECOND, calls[0].at + LONGEST * SECOND)
            stage.require(run.began >= due, "none before it was quiet, or had waited for long enough")
            latest = max(latest, (run.began - due) / SECOND - last.took)
    return latest


def plain(job: str) -> str:
    """An id as every database writes it."""
    return job.replace("-", "")
