"""Rows 171-175: disks that fill up, backups and snapshots put back, servers that fail over: who is older than whom."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

from redis.exceptions import RedisError

from tests.chaos import checker, ledger
from tests.chaos.matrix import row
from tests.chaos.stage import Stage

NO_DATABASE = "plain Celery has no database"
FINISHED = ("completed", "failed", "cancelled")
ROOM = 4  # megabytes of the tiny disk


# --- A broker without room ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def tiny_disk(folder: Path) -> Iterator[bool]:
    """A disk of a few megabytes at ``folder``; False where we may not mount one."""
    folder.mkdir()
    mounted = False
    if os.geteuid() == 0:
        command = ["mount", "-t", "tmpfs", "-o", f"size={ROOM}m", "tmpfs", str(folder)]
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], capture_output=True, check=False)


@row(171, "disk full for the broker's append-only file", must="jobs wait in the database, run when there is room",
     persistent=True)  # fmt: skip
def broker_disk_full(stage: Stage) -> None:
    with tiny_disk(stage.world.directory / "tiny") as mounted:
        if not mounted:
            stage.measure(disk="none may be mounted: as row 172")
            snapshots_fail(stage)
            return
        ballast = stage.world.directory / "tiny" / "ballast"
        stage.broker.directory = ballast.parent
        stage.broker.restart()
        stage.start()
        stage.mixed(10)
        running = stage.enqueue(2, seconds=6)
        stage.wait_begun(running, timeout=60)
        _fill(ballast)
        stage.fault()
        stage.wait(lambda: not writes(stage), "the broker refuses writes", timeout=20)
        through_trouble(stage)
        ballast.unlink()
        stage.wait(lambda: writes(stage), "the broker takes writes again", timeout=30)
        back(stage)
        stage.settle()
        stage.broker.stop()


def _fill(ballast: Path) -> None:
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(b"\0" * 4096)


def writes(stage: Stage) -> bool:
    """Whether the broker takes writes."""
    with stage.redis as client:
        try:
            client.set("chaos", "x" * 10_000)
            client.delete("chaos")
        except RedisError:
            return False
    return True


def through_trouble(stage: Stage) -> None:
    """Enqueue while the broker refuses writes; nobody may end of it, and no call may take long."""
    during = stage.enqueue(stage.scaled(40, 20)) + stage.mixed(10)
    slowest = max(stage.took(during))
    stage.sleep(stage.scaled(15, 6))
    stage.measure(slowest_enqueue_s=round(slowest, 2))
    stage.require(slowest < 2.5, "no enqueue takes longer than the send timeout")


def back(stage: Stage) -> None:
    """From now on the broker works again."""
    alive = all(process.running for process in [*stage.workers, *stage.conductors])
    stage.require(alive, "worker and conductor live on while the broker refuses writes")
    if not stage.worker.running:
        stage.start_worker()
    stage.fault()


@row(172, "broker refuses writes because its snapshots fail (MISCONF)", must="as a broker that is away")
def misconf(stage: Stage) -> None:
    snapshots_fail(stage)


def snapshots_fail(stage: Stage) -> None:
    """Let the broker's snapshots fail, so that it refuses writes, for a while."""
    snapshot = stage.broker.directory / "dump.rdb"
    stage.start()
    stage.mixed(10)
    running = stage.enqueue(2, seconds=6)
    stage.wait_begun(running, timeout=60)
    with stage.redis as client:
        snapshot.mkdir()  # what is written beside it cannot take its place
        client.config_set("save", "1 1")
        client.set("chaos", "1")
        with contextlib.suppress(RedisError):
            client.bgsave()
    stage.fault()
    stage.wait(lambda: not writes(stage), "the broker refuses writes", timeout=20)
    through_trouble(stage)
    snapshot.rmdir()
    with stage.redis as client:
        client.config_set("save", "")
        client.bgsave()
    stage.wait(lambda: writes(stage), "the broker takes writes again", timeout=30)
    back(stage)
    stage.settle()


# --- A database that is older than its broker -----------------------------------------------------------------------


class Backup:
    """A copy of the row's database as it was when this was made."""

    def __init__(self, stage: Stage) -> None:
        self.url = stage.database.url
        self.server, _, self.name = self.url.rpartition("/")
        self.taken_at = len(ledger.read_intake(stage.world.intake).asked)
        self.file = stage.world.directory / "backup.sqlite3"
        self._take()

    @property
    def _on_sqlite(self) -> bool:
        return self.url.startswith("sqlite:")

    def _take(self) -> None:
        if self._on_sqlite:
            with closing(sqlite3.connect(self._path)) as now, closing(sqlite3.connect(self.file)) as then:
                now.backup(then)
            return
        with self._shut():
            self._sql(f'CREATE DATABASE "{self.name}_backup" TEMPLATE "{self.name}"')

    def restore(self) -> None:
        """Put the copy in the place of what there is. A file may be replaced only while nobody has it open."""
        if self._on_sqlite:
            for suffix in ("-wal", "-shm"):
                Path(f"{self._path}{suffix}").unlink(missing_ok=True)
            shutil.copyfile(self.file, self._path)
            return
        self._sql(f'ALTER DATABASE "{self.name}_backup" WITH ALLOW_CONNECTIONS false')
        with self._shut():
            self._sql(f'DROP DATABASE "{self.name}" WITH (FORCE)')
            self._sql(f'ALTER DATABASE "{self.name}_backup" RENAME TO "{self.name}"')

    @property
    def _path(self) -> str:
        return self.url.removeprefix("sqlite:///")

    @contextlib.contextmanager
    def _shut(self) -> Iterator[None]:
        """Keep everybody out of the database for a moment."""
        self._sql(f'ALTER DATABASE "{self.name}" WITH ALLOW_CONNECTIONS false')
        self._sql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{self.name}'")
        try:
            yield
        finally:
            self._sql(f'ALTER DATABASE "{self.name}" WITH ALLOW_CONNECTIONS true')

    def _sql(self, statement: str) -> None:
        with closing(checker.connect(f"{self.server}/postgres")) as connection:
            connection.execute(statement)


def known(stage: Stage) -> set[int]:
    """The numbers of the jobs that have a row."""
    evidence = checker.gather(stage.database.url, stage.world.ledger, stage.world.intake)
    ids = {job.id for job in evidence.jobs}
    rows = {job.number for job in evidence.jobs if job.number is not None}
    return rows | {number for number, asked in evidence.intake.asked.items() if asked.job in ids}


def queued(stage: Stage, numbers: Sequence[int]) -> list[int]:
    """Those of these jobs whose message is in the broker: waiting, or delivered and not acknowledged."""
    there, asked = stage.celery_waiting(), ledger.read_intake(stage.world.intake).asked
    return [number for number in numbers if asked[number].job.replace("-", "") in there]


def forget(stage: Stage, numbers: Sequence[int]) -> None:
    """Count these jobs apart: no row and no message is left of them, so that nobody can know of them."""
    for number in numbers:
        ledger.write_intake(stage.world.intake, event="forgotten", number=number)
    stage.measure(forgotten=len(numbers))


def told(stage: Stage, numbers: Sequence[int]) -> None:
    """Require that these jobs, which only the broker knew, are dead letters that say why."""
    letters = stage.database.rows(
        "SELECT j.error_message FROM jobs_job j JOIN dlq_deadletter d ON d.job_id = j.id WHERE j.state = 'failed'"
    )
    said = sum("the database does not know it: it was set back" in message for (message,) in letters)
    stage.measure(letters=said)
    states = stage.states(numbers)
    stage.require(states["failed"] == len(numbers), f"each job that only the broker knew is a dead letter ({states})")
    stage.require(said >= len(numbers), "their letters say that the database was set back")


def reported(stage: Stage) -> None:
    """Require that operators are told."""
    acts = stage.database.rows("SELECT reason FROM jobs_act WHERE verb = 'database set back'")
    stage.require(acts, "the audit trail says that the database was set back")


@row(173, "database restored from an older backup beside a newer broker", must="dead letters for what it does not know",
     celery=NO_DATABASE)  # fmt: skip
def older_backup(stage: Stage) -> None:
    stage.start()
    before = stage.mixed(stage.scaled(40, 20))
    stage.settle()
    gate = stage.gate()
    during = stage.enqueue(2, gate=gate.path)
    stage.wait_begun(during, timeout=60)
    during += stage.enqueue(6) + stage.enqueue(4, "transactional") + stage.enqueue(2, "chain")
    stage.sleep(2)  # the marker is moved on every second
    begun = stage.begun(before)
    backup = Backup(stage)
    gate.open()
    after = stage.enqueue(8) + stage.enqueue(4, "transactional")
    stage.settle()
    stage.worker.stop()
    waiting = stage.enqueue(stage.scaled(40, 12)) + stage.enqueue(4, "transactional", effect="none")
    lost = stage.enqueue(3, options={"countdown": 3600})
    stage.sleep(2)
    stage.conductor.stop()
    only_there = queued(stage, waiting)
    stage.require(len(only_there) == len(waiting), "their messages are in the broker")
    backup.restore()
    stage.fault()
    stage.expect(waiting, "failed")
    forget(stage, [number for number in [*after, *lost] if number not in known(stage)])
    stage.start()
    stage.wait(lambda: stage.states(only_there)["absent"] == 0, "what only the broker knew has a row", timeout=60)
    stage.settle()
    stage.require(stage.begun(before) == begun, "what had finished before the backup stays finished")
    told(stage, only_there)
    reported(stage)


@row(174, "database fails over to a copy that lacks the last second", must="dead letters for what it does not know",
     databases=("postgres",), celery=NO_DATABASE, may_refuse=True)  # fmt: skip
def lagging_failover(stage: Stage) -> None:
    stage.start()
    load = stage.steady(stage.scaled(200, 90), 15, kinds=("plain", "transactional"), seconds=0.1, expects="any")
    stage.wait_begun(load.numbers[:10], timeout=60)
    backup = Backup(stage)
    stage.sleep(1.3)
    load.stop()
    stage.enqueue(12, seconds=0.3, expects="any")
    stage.worker.freeze()
    stage.conductor.freeze()
    stage.sleep(0.5)  # statements that were under way are carried out all the same
    sure = [n for n, asked in ledger.read_intake(stage.world.intake).asked.items() if asked.accepted]
    # What has finished and is only not acknowledged yet is as good as consumed.
    rows, messages = known(stage), [n for n in queued(stage, sure) if stage.state(n) not in FINISHED]
    backup.restore()
    left = known(stage)
    only_there = [number for number in messages if number not in left]
    gone = [n for n in sure if n in rows and n not in left and n not in only_there]
    stage.expect(only_there, "failed")
    forget(stage, gone)
    stage.fault()
    stage.worker.thaw()
    stage.conductor.thaw()
    stage.mixed(20)
    stage.settle()
    stage.measure(only_in_broker=len(only_there))
    stage.wait(lambda: set(only_there) <= known(stage), "what only the broker knew has a row", timeout=30)
    told(stage, only_there)


@row(175, "broker restored from an older snapshot", must="what it lacks is sent again, what it has runs once")
def older_snapshot(stage: Stage) -> None:
    stage.start()
    stage.mixed(10)
    stage.settle()
    first, second = stage.gate("first"), stage.gate("second")
    busy = stage.enqueue(2, gate=first.path)
    stage.wait_begun(busy, timeout=60)
    old = stage.enqueue(stage.scaled(40, 15))
    stage.sleep(2)  # the marker is moved on every second
    snapshot = stage.broker.directory / "dump.rdb"
    with stage.redis as client:
        client.save()
    kept = snapshot.read_bytes()
    first.open()
    stage.wait_begun(old, timeout=60)
    busy = stage.enqueue(2, gate=second.path)
    stage.wait_begun(busy, timeout=60)
    new = stage.enqueue(stage.scaled(60, 20)) + stage.mixed(10)
    stage.sleep(3)
    stage.fault()
    stage.broker.kill()
    snapshot.write_bytes(kept)
    stage.broker.start()
    stage.sleep(1)
    second.open()
    stage.settle()
    stage.require(stage.begun(old) == len(old), "what had run already runs no second time")
    stage.require(stage.begun(busy) == len(busy), "what was running goes on")
    stage.require(stage.begun(new) >= len(new), "what the snapshot lacks is sent again")
