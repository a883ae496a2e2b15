"""Rows 225-227: circuits that open, are probed and close, while conductors, workers and databases die."""

from __future__ import annotations

from tests.chaos import checker, observer
from tests.chaos.children import Process
from tests.chaos.ledger import Run
from tests.chaos.matrix import row
from tests.chaos.observer import SECOND
from tests.chaos.rows.conductor import leader
from tests.chaos.rows.order import BLUR, emptied
from tests.chaos.stage import Stage

NO_CIRCUITS = "plain Celery knows no circuit breaker"
HANDS = 4
OPENS = 3  # failures in a row, of the task "breakable"


class Gateway:
    """Jobs of one user, which fail until it is mended, and then work until they may end."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.mended, self.gate = stage.gate("mended"), stage.gate("gate")
        self.numbers: list[int] = []
        self.until = 0  # it has been open at first

    def flood(self, count: int, seconds: float = 0.0, **options: str) -> None:
        """Enqueue so many."""
        self.numbers += self.stage.bulk(
            count, "breakable", user="ann", mended=self.mended.path, gate=self.gate.path, seconds=seconds,
            options=options,
        )  # fmt: skip

    def others(self, count: int) -> None:
        """Let jobs of another user run, which shows that hands are free and that somebody has looked at all lines.

        One of our own comes before them, in a line of its own: it is looked at too.
        """
        self.flood(1, tenant=f"t{len(self.numbers)}")
        well = self.stage.gate("well")
        well.open()
        numbers = self.stage.enqueue(count, "breakable", user="bob", mended=well.path, gate=well.path)
        self.stage.wait_begun(numbers, timeout=60)

    def wait_open(self) -> tuple[int, int]:
        """Wait until its circuit has opened; return from when until when it is open."""
        self.stage.wait(lambda: self.open_at() is not None, "its circuit opens", timeout=60)
        found = self.open_at()
        assert found is not None
        self.until = self.until or found[1]
        return found

    def park(self, count: int) -> None:
        """Let its circuit open, and so many jobs wait for a probe. None of them is under way by then."""
        self.flood(OPENS)
        self.wait_open()
        self.mended.open()
        self.flood(count)

    def open_at(self) -> tuple[int, int] | None:
        """From when until when its circuit is open, or was before it is closed."""
        rows = self.stage.database.rows("SELECT opened_at, open_until FROM jobs_circuit WHERE open_until IS NOT NULL")
        moments = [checker.moment(value) for row in rows for value in row]
        return (moments[0], moments[1]) if moments else None

    def begun(self, since: int, until: int) -> int:
        """How many of its bodies began in between."""
        numbers = set(self.numbers)
        return sum(run.number in numbers for run in observer.begun_between(self.stage.runs, since, until))

    def probes(self) -> list[Run]:
        """Its bodies that worked, of those that began when its circuit was no longer open."""
        worked = {(line.number, line.attempt) for line in self.stage.lines if line.what == "works"}
        found = [run for run in self.stage.runs if (run.number, run.attempt) in worked and run.began >= self.until]
        return [run for run in found if run.number in set(self.numbers)]

    def wait_probe(self, count: int = 1) -> Run:
        """Wait until so many probes have worked; return the last of them."""
        self.stage.wait(lambda: len(self.probes()) >= count, f"{count} probes have begun", timeout=60)
        return self.probes()[-1]

    def judge(self) -> None:
        """It is closed in the end, all have gone, and each attempt that was counted was a body that began."""
        emptied(self.stage)
        self.stage.require(self.open_at() is None, "the circuit is closed in the end")
        rows = self.stage.database.rows("SELECT sum(attempt) FROM jobs_job")
        attempts, bodies = int(rows[0][0]), len(self.stage.runs)
        self.stage.measure(attempts=attempts, bodies=bodies)
        self.stage.require(attempts == bodies, f"no attempt is lost ({attempts} were counted, {bodies} bodies began)")


def holder(stage: Stage, pid: int) -> Process:
    """The worker to which a process belongs."""
    return next(worker for worker in stage.workers if worker.running and pid in worker.group())


@row(225, "conductors killed while a circuit is half-open and a probe runs",
     must="no other job of it starts before the probe has ended", celery=NO_CIRCUITS, limit=200)  # fmt: skip
def killed_while_half_open(stage: Stage) -> None:
    gateway = Gateway(stage)
    stage.start(concurrency=HANDS)
    stage.start_conductor()
    gateway.park(20)
    gateway.wait_probe()
    for _ in range(stage.scaled(4, 2)):
        stage.fault()
        leader(stage).kill()
        stage.start_conductor(ready=False)
        gateway.others(5)
    probes = len(gateway.probes())
    stage.require(probes == 1, f"while a probe runs no other job of its circuit starts ({probes} ran)")
    gateway.gate.open()
    gateway.judge()


@row(226, "workers killed with the probe of a circuit in hand", must="the next probe goes when its lease has ended",
     celery=NO_CIRCUITS, limit=240)  # fmt: skip
def killed_with_a_probe(stage: Stage) -> None:
    gateway = Gateway(stage)
    stage.start(concurrency=HANDS)
    stage.start_worker(concurrency=HANDS)
    gateway.park(20)
    probe = gateway.wait_probe()
    holder(stage, probe.pid).kill()
    gateway.others(5)
    stage.require(len(gateway.probes()) == 1, "none goes in its place while it may be running")
    gateway.wait_probe(2)
    gateway.others(5)
    probes = gateway.probes()
    stage.measure(probes=len(probes), next_probe_s=round((probes[1].began - probe.last) / SECOND, 1))
    stage.require(len(probes) == 2, f"one goes in its place, and no more ({len(probes) - 1} did)")
    stage.require(observer.most_at_once(probes) == 1, "no two probes run at once")
    gateway.gate.open()
    gateway.judge()


@row(227, "Postgres crashes while a circuit opens, and while it is probed",
     must="it opens all the same, parks the others, and closes", databases=("postgres",), own_database=True,
     celery=NO_CIRCUITS, limit=200)  # fmt: skip
def crash_while_a_circuit_opens(stage: Stage) -> None:
    gateway = Gateway(stage)
    stage.start(concurrency=HANDS)
    gateway.flood(20, seconds=1.0)
    stage.wait_running(HANDS)
    crash(stage, 1.5)  # the bodies fail meanwhile
    since, until = gateway.wait_open()
    gateway.mended.open()
    gateway.wait_probe()
    started = gateway.begun(0, until)
    stage.measure(began_before=started)
    late = gateway.begun(since + round(BLUR * SECOND), until)
    stage.require(not late, f"nothing of an open circuit starts ({late} did)")
    stage.require(OPENS <= started <= 2 * HANDS, f"it opens after what ran and was claimed already ({started} began)")
    crash(stage, 1.0)
    gateway.others(5)
    stage.require(len(gateway.probes()) == 1, "the probe is still the only one")
    gateway.gate.open()
    gateway.judge()


def crash(stage: Stage, seconds: float) -> None:
    """Let the database crash, and come back after a while."""
    stage.fault()
    stage.database.server.stop("immediate")
    stage.sleep(seconds)
    stage.database.server.start()
