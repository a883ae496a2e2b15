"""Rows 220-224: limits, rates, pauses, fairness and ageing, while workers, conductors and brokers die."""

from __future__ import annotations

import itertools

from tests.chaos import checker, ledger, observer
from tests.chaos.matrix import row
from tests.chaos.observer import SECOND
from tests.chaos.rows.conductor import leader
from tests.chaos.stage import Stage

BOTH = ("redis", "rabbitmq")
NO_LIMITS = "plain Celery knows no limit, tenant or pause across workers"
PER_USER, IN_ALL = 2, 3  # of the task "guarded"
RATE, BURST = 8.0, 4.0  # of the task "through gateway"
BLUR = 0.5  # seconds between a decision and what is seen of it, on a busy machine
AHEAD = 25  # jobs that may go first: those in the workers' hands, and those in the broker
SOON = 2.0  # seconds in which a lone job starts once somebody releases
AGEING, ONE_IN = 2.0, 8


class Users:
    """Jobs of several users, and the keys under which each counts."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.keys: dict[int, list[str]] = {}

    def flood(self, count: int, users: int, *, seconds: float, tenant: str = "") -> list[int]:
        """Enqueue so many for each user."""
        options = {"tenant": tenant} if tenant else {}
        found: list[int] = []
        for user in (f"u{n}" for n in range(users)):
            numbers = self.stage.bulk(count, "guarded", user=user, seconds=seconds, options=options)
            self.keys |= {number: [user, "all"] for number in numbers}
            found += numbers
        return found

    def judge(self) -> None:
        """No limit was exceeded, and what the limits allow was used."""
        limits = dict.fromkeys(itertools.chain(*self.keys.values()), PER_USER) | {"all": IN_ALL}
        runs = self.stage.runs
        for sentence in observer.exceeded(runs, self.keys, limits):
            self.stage.problems.append(f"a limit is exceeded: {sentence}")
        most = observer.most_at_once(run for run in runs if run.number in self.keys)
        self.stage.measure(at_once=most)
        self.stage.require(most > 1, "several run at once, or nothing is shown")


def emptied(stage: Stage) -> None:
    """Settle, and require that nobody holds a slot or stands in a line after that."""
    stage.settle()
    tables = ("jobs_slot", "jobs_lane", "jobs_share", "jobs_arrival")

    def left() -> list[str]:
        return [table for table in tables if stage.database.rows(f"SELECT 1 FROM {table} LIMIT 1")]

    stage.wait(lambda: not left(), "no slot and no line is left", timeout=15)


def waited(stage: Stage, number: int, asked: int) -> float:
    """Seconds from a moment until a job began."""
    return (min(run.began for run in stage.runs if run.number == number) - asked) / SECOND


def overtaken_by(stage: Stage, number: int, since: int, others: list[int]) -> int:
    """How many bodies of the others began between a moment and that of a job."""
    began = min(run.began for run in stage.runs if run.number == number)
    return sum(run.number in set(others) for run in observer.begun_between(stage.runs, since, began))


# --- Limits -------------------------------------------------------------------------------------------------------


@row(220, "children, a worker, the broker and a conductor killed under limits",
     must="no limit is exceeded, every slot comes back", brokers=BOTH, celery=NO_LIMITS, limit=240)  # fmt: skip
def killed_under_limits(stage: Stage) -> None:
    users = Users(stage)
    stage.start(concurrency=3)
    stage.start_worker(concurrency=3)
    count = stage.scaled(40, 20)
    numbers = users.flood(count, 3, seconds=0.15)
    for part in range(1, 5):
        stage.wait_begun(numbers[: part * count // 2], timeout=60)
        stage.wait_running()
        match part:
            case 1:
                stage.fault()
                stage.workers[1].kill_child()
            case 2:
                stage.broker.restart()
            case 3:
                stage.workers[0].kill()
                stage.start_worker(concurrency=3, ready=False)
            case 4:
                stage.conductor.kill()
                stage.start_conductor(ready=False)
    emptied(stage)
    users.judge()


@row(221, "leading conductor killed again and again in the middle of a flood",
     must="limits hold; a lone tenant's job starts at its turn", celery=NO_LIMITS, limit=240)  # fmt: skip
def failover_in_a_flood(stage: Stage) -> None:
    users, slowest, most = Users(stage), 0.0, 0
    stage.start(concurrency=IN_ALL)
    for _ in range(2):
        stage.start_conductor()
    flood = stage.bulk(stage.scaled(500, 250), seconds=0.05, options={"tenant": "flood"})
    users.flood(stage.scaled(40, 20), 4, seconds=0.05, tenant="limited")
    stage.wait_begun(flood[:10], timeout=60)
    for lone in range(stage.scaled(5, 3)):
        leader(stage).kill()
        stage.start_conductor(ready=False)
        asked = ledger.now()
        (number,) = stage.enqueue(1, options={"tenant": f"lone{lone}"})
        stage.wait_begun([number], timeout=60)
        slowest = max(slowest, waited(stage, number, asked))
        most = max(most, overtaken_by(stage, number, asked, flood))
        stage.require(stage.states(flood)["pending"], "the flood still waits then")
    office = float(stage.world.jobs.get("LEADER_LEASE", 5.0))
    stage.measure(lone_waited_s=round(slowest, 2), behind=most)
    stage.require(most <= AHEAD, f"no more than {AHEAD} of the flood start before a lone tenant's job ({most} did)")
    stage.require(
        slowest <= office + SOON, f"a lone job starts within {SOON:g} s of somebody releasing ({slowest:.1f})"
    )
    emptied(stage)
    users.judge()


@row(222, "conductors, a child and the broker killed under a rate", must="no more start than the bucket allows",
     celery=NO_LIMITS, limit=240)  # fmt: skip
def killed_under_a_rate(stage: Stage) -> None:
    stage.start()
    stage.start_worker()
    stage.start_conductor()
    numbers = stage.bulk(stage.scaled(160, 80), "through gateway", seconds=0.02)
    for part in range(1, 4):
        stage.wait_begun(numbers[: part * len(numbers) // 5], timeout=60)
        match part:
            case 1:
                stage.fault()
                leader(stage).kill()
                stage.start_conductor(ready=False)
            case 2:
                stage.broker.restart()
            case 3:
                stage.workers[0].kill_child()
    emptied(stage)
    began = sorted(run.began for run in stage.runs)
    too_many = observer.surplus(releases(stage), RATE, BURST, BLUR)
    starts = observer.surplus(began, RATE, BURST, BLUR)
    stage.measure(surplus_released=too_many, surplus_started=starts,
                  per_s=round((len(began) - 1) * SECOND / (began[-1] - began[0]), 1))  # fmt: skip
    stage.require(not too_many, "no more are released in any span than the rate and the burst allow")
    # What the broker lost, or held while it was away, starts together.
    stage.require(starts <= 2 * 2 + RATE * BLUR, "starts follow the releases closely")


def releases(stage: Stage) -> list[int]:
    """The moments in which a job was handed to the broker, by the audit."""
    world = stage.world
    changes = checker.gather(world.database.url, world.ledger, world.intake).changes
    return [c.at for c in changes if c.new_state == "reserved" and c.old_state not in ("reserved", None)]


# --- Pauses -------------------------------------------------------------------------------------------------------


@row(223, "broker restarted and conductor killed while a queue is paused",
     must="nothing of it starts until it is resumed, all else does", celery=NO_LIMITS, limit=200)  # fmt: skip
def killed_while_paused(stage: Stage) -> None:
    stage.start(queues="default,reports")
    flood = stage.bulk(stage.scaled(120, 60), seconds=0.1, options={"tenant": "flood"})
    plain = stage.enqueue(10, seconds=0.1)
    stage.wait_begun(flood[:10], timeout=60)
    stage.fault()
    stage.order(do="operate", verb="pause", queue="default")
    paused = ledger.now() + round(BLUR * SECOND)
    plain += stage.enqueue(5)
    stage.broker.restart()
    stage.conductor.kill()
    stage.start_conductor(ready=False)
    stage.worker.kill_child()
    other = stage.enqueue(5, options={"tenant": "flood", "queue": "reports"})
    stage.wait_begun(other, timeout=60)
    stage.sleep(3)
    resumed = ledger.now()
    began = {run.number for run in observer.begun_between(stage.runs, paused, resumed)} - set(other)
    stage.require(not began, f"nothing of a paused queue starts ({len(began)} did)")
    stage.order(do="operate", verb="resume", queue="default")
    stage.wait_begun([*flood, *plain], timeout=90)
    after = min(run.began for run in stage.runs if run.began > resumed and run.number not in other)
    stage.measure(back_s=round((after - resumed) / SECOND, 2))
    emptied(stage)


# --- Ageing -------------------------------------------------------------------------------------------------------


@row(224, "a worker and conductors killed under a flood of higher priority", must="low work goes on within its bound",
     celery=NO_LIMITS, jobs={"AGEING": AGEING}, limit=240)  # fmt: skip
def killed_while_low_work_waits(stage: Stage) -> None:
    stage.start()
    stage.start_worker()
    stage.start_conductor()
    high = stage.bulk(stage.scaled(600, 300), seconds=0.1, options={"priority": "high", "tenant": "flood"})
    stage.wait_begun(high[:5], timeout=60)
    asked = ledger.now()
    low = stage.enqueue(5, options={"priority": "low", "tenant": "lone"})
    stage.wait_begun(high[: len(high) // 4], timeout=60)
    stage.fault()
    leader(stage).kill()
    stage.start_conductor(ready=False)
    stage.wait_begun(high[: len(high) // 3], timeout=60)
    stage.workers[0].kill()
    stage.start_worker()
    stage.wait_begun(low, timeout=90)
    stage.require(stage.states()["pending"], "the flood still waits when the last of them has begun")
    late = [overtaken_by(stage, number, asked + round(AGEING * SECOND), high) for number in low]
    bounds = [n * ONE_IN + AHEAD for n in range(1, len(low) + 1)]
    stage.measure(behind=max(late))
    kept = all(found <= bound for found, bound in zip(sorted(late), bounds, strict=True))
    stage.require(kept, f"the n-th goes after at most 8·n and what was sent already (they went after {sorted(late)})")
    emptied(stage)
