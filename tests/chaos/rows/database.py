"""Rows about a database that restarts, is away, refuses, fills up, hangs, or loses the answer to a commit."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

import psycopg

from tests.chaos.children import Process
from tests.chaos.matrix import row
from tests.chaos.stage import Stage

POSTGRES = ("postgres",)
NO_DATABASE = "plain Celery has no database"


def cpu_seconds(pids: list[int]) -> float:
    """What processes have used of the processor so far."""
    ticks = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def frugal(stage: Stage, per_second: float = 0.15, lines: int = 8) -> Iterator[None]:
    """Require that worker and conductor neither spin nor fill their logs meanwhile: per process, and per second."""
    watched: list[Process] = [*stage.workers, *stage.conductors]
    pids = [pid for process in watched for pid in process.group()]
    began, cpu, said = time.monotonic(), cpu_seconds(pids), [process.printed.count("\n") for process in watched]
    yield
    seconds = time.monotonic() - began
    used = (cpu_seconds(pids) - cpu) / seconds
    # A line of ours may carry no traceback; each process of a group says it for itself.
    most = max(
        (process.printed.count("\n") - before) / len(process.group())
        for process, before in zip(watched, said, strict=True)
    )
    stage.measure(away_s=round(seconds, 1), cpu_per_s=round(used, 3), lines_per_process=round(most, 1))
    stage.require(used < per_second * len(watched), "no hot loop while the database is away")
    stage.require(most <= lines, "no flood of lines while the database is away")


def back_within(stage: Stage, seconds: float = 10.0) -> None:
    """Require that work goes on soon after now."""
    began = len(stage.runs)
    back = time.monotonic()
    stage.enqueue(1)
    stage.wait(lambda: len(stage.runs) > began, "a body runs again", 60)
    waited = time.monotonic() - back
    stage.measure(back_s=round(waited, 1))
    stage.require(waited < seconds, f"bodies run again within {seconds:g} s")


@row(27, "Postgres crashes before the claim", must="claim waits and is retried", databases=POSTGRES,
     own_database=True, celery=NO_DATABASE)  # fmt: skip
def crash_before_claim(stage: Stage) -> None:
    stage.start()
    stage.enqueue(2)
    stage.settle()
    for mode in ("immediate", "fast"):
        gate = stage.gate(mode)
        holding = stage.enqueue(2, gate=gate.path)
        stage.wait_begun(holding)
        stage.enqueue(20)
        stage.enqueue(5, "transactional")
        stage.fault()
        stage.database.server.stop(mode)  # type: ignore[arg-type]
        gate.open()
        stage.sleep(1)
        stage.database.server.start()
        stage.settle()


@row(28, "Postgres down at completion", must="one outcome after return", databases=POSTGRES, own_database=True,
     celery=NO_DATABASE)  # fmt: skip
def down_at_completion(stage: Stage) -> None:
    stage.start()
    gate = stage.gate()
    held = stage.enqueue(2, gate=gate.path)
    waiting = stage.enqueue(10)
    stage.wait_begun(held)
    stage.fault()
    stage.database.server.stop("fast")
    gate.open()
    stage.sleep(2)
    stage.database.server.start()
    stage.settle()
    stage.require(stage.begun([*held, *waiting]) == 12, "a body that had ended is not run again")


@row(29, "Postgres down 2 min, broker up", must="no hot loop, no loss", databases=POSTGRES, own_database=True,
     celery=NO_DATABASE, limit=330)  # fmt: skip
def down_for_long(stage: Stage) -> None:
    stage.start(concurrency=4)
    gate = stage.gate()
    held = stage.enqueue(2, gate=gate.path)
    stage.enqueue(30)
    stage.enqueue(5, "retried")
    stage.enqueue(5, "transactional", seconds=0.2)
    stage.wait_begun(held)
    stage.fault()
    stage.database.server.stop("fast")
    stage.sleep(3)
    with frugal(stage):
        stage.sleep(stage.scaled(115, 15))
    gate.open()
    stage.database.server.start()
    back_within(stage)
    stage.settle()


@row(30, "result backend down", must="irrelevant", celery="its jobs are lost; see the catalogue")
def result_backend_down(stage: Stage) -> None:
    stage.start_conductor()
    dead = "redis://127.0.0.1:9/0"
    command = ["-m", "celery", "-A", "project", "--result-backend", dead, "worker", "-c", "2", "-Q", "default"]
    stage.workers.append(stage.spawn("worker-w1", [*command, "-n", "w1@%h"]).expect(" ready."))
    stage.fault()
    stage.mixed(40)
    stage.settle()


@row(
    33,
    "broker down as a body asks for a retry",
    must="the next attempt waits in the database",
    brokers=("redis", "rabbitmq"),
)
def retry_without_broker(stage: Stage) -> None:
    stage.start()
    gate = stage.gate()
    numbers = stage.enqueue(2, gate=gate.path, how="transient", until=2)
    stage.wait_begun(numbers)
    stage.fault()
    stage.broker.stop()
    gate.open()
    if not stage.celery:
        stage.wait_state(numbers, "retrying", "pending", timeout=20)
    stage.sleep(2)
    stage.broker.start()
    stage.settle()


@row(34, "three conductors, leaders killed", must="no double work", celery="plain Celery has no conductor")
def three_conductors(stage: Stage) -> None:
    for _ in range(3):
        stage.start_conductor(ready=False)
    stage.start_worker(concurrency=4)
    stage.mixed(stage.scaled(100, 50))
    delayed = stage.enqueue(stage.scaled(60, 30), options={"countdown": 1})
    for _ in range(2):
        stage.sleep(0.7)
        holder = stage.database.rows("SELECT holder FROM jobs_leader")
        for conductor in stage.conductors:
            if conductor.running and holder and f":{conductor.pid}:" in holder[0][0]:
                conductor.kill()
    stage.settle()
    stage.require(stage.begun(delayed) == len(delayed), "what was due ran once")


@row(41, "clock of a host off by 5 min", must="leases on DB clock", celery="it has no clock to agree on")
def clock_skew(stage: Stage) -> None:
    stage.start_conductor(environ=skewed(stage, 300))
    for seconds in (300, -300):
        stage.start_worker(environ=skewed(stage, seconds), concurrency=1)
    began = time.monotonic()
    delayed = stage.enqueue(6, options={"countdown": 3})
    stage.wait_begun(delayed[:1])
    waited = time.monotonic() - began
    stage.mixed(30)
    long = stage.enqueue(2, seconds=stage.lease + 3)
    stage.wait_begun(long)
    stage.workers[0].kill()
    stage.start_worker(environ=skewed(stage, -300), concurrency=2)
    stage.settle()
    stage.measure(delayed_s=round(waited, 1))
    stage.require(waited >= 3, "nothing runs before it is due")
    stage.require(stage.begun(long) <= 3, "only what the killed worker ran is run again")


def skewed(stage: Stage, seconds: int) -> dict[str, str]:
    """An environment in which Python's time and Django's are wrong; the monotonic clock, which nobody sets, is right.

    (Under libfaketime, Python's own waits fail or never end.)
    """
    folder = stage.world.directory / f"clock{seconds:+d}"
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(SKEW.format(seconds=seconds))
    return {"PYTHONPATH": f"{folder}{os.pathsep}{stage.world.environ()['PYTHONPATH']}"}


SKEW = """
import datetime, time
from django.utils import timezone
told, told_ns, by = time.time, time.time_ns, {seconds}
time.time = lambda: told() + by
time.time_ns = lambda: told_ns() + by * 10**9
timezone.now = lambda: datetime.datetime.now(tz=datetime.timezone.utc) + datetime.timedelta(seconds=by)
"""


@row(130, "Postgres becomes read-only (a failover to a standby)", must="wait, then go on", databases=POSTGRES,
     own_database=True, celery=NO_DATABASE)  # fmt: skip
def read_only(stage: Stage) -> None:
    stage.start()
    gate = stage.gate()
    held = stage.enqueue(1, gate=gate.path)
    stage.wait_begun(held)
    stage.enqueue(20)
    stage.enqueue(5, "transactional", seconds=0.1)
    stage.fault()
    alter(stage, "SET default_transaction_read_only = on")
    gate.open()
    stage.sleep(2)
    with frugal(stage):
        stage.sleep(stage.scaled(20, 8))
    alter(stage, "RESET default_transaction_read_only")
    stage.settle()


def alter(stage: Stage, what: str) -> None:
    """Change a setting of the whole server, at once."""
    with closing(psycopg.connect(stage.database.server.address("postgres"), autocommit=True)) as connection:
        connection.execute("SET default_transaction_read_only = off")
        connection.execute(f"ALTER SYSTEM {what}")  # type: ignore[arg-type]
        connection.execute("SELECT pg_reload_conf()")


@row(131, "Postgres is out of connections", must="wait, then go on", databases=POSTGRES, own_database=True,
     celery=NO_DATABASE)  # fmt: skip
def out_of_connections(stage: Stage) -> None:
    stage.start()
    gate = stage.gate()
    held = stage.enqueue(2, gate=gate.path)
    stage.wait_begun(held)
    stage.enqueue(20)
    hoard: list[psycopg.Connection[object]] = []
    server = stage.database.server
    stage.fault()
    admin = psycopg.connect(server.address("postgres"), autocommit=True)
    for _ in range(3):
        others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'mainstay'"
        admin.execute(others)
        with contextlib.suppress(psycopg.OperationalError):
            while True:
                hoard.append(psycopg.connect(server.address("postgres")))  # type: ignore[arg-type]
    gate.open()
    with frugal(stage):
        stage.sleep(stage.scaled(20, 8))
    for connection in (*hoard, admin):
        connection.close()
    stage.measure(hoarded=len(hoard))
    back_within(stage)
    stage.settle()


@row(132, "all backends of the platform hang", must="give them up, connect anew", databases=POSTGRES,
     own_database=True, celery=NO_DATABASE)  # fmt: skip
def backends_hang(stage: Stage) -> None:
    stage.start()
    gate = stage.gate()
    held = stage.enqueue(2, gate=gate.path)
    stage.wait_begun(held)
    stage.enqueue(10)
    idle = "SELECT pid FROM pg_stat_activity WHERE datname = 'mainstay' AND state = 'idle' AND pid <> pg_backend_pid()"
    frozen = [int(pid) for (pid,) in stage.database.rows(idle)]
    stage.fault()
    try:
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)
        gate.open()
        back = time.monotonic()
        stage.settle()
        stage.measure(hung=len(frozen), settled_s=round(time.monotonic() - back, 1))
    finally:
        for pid in frozen:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
    stage.require(len(frozen) >= 2, "there were backends to freeze")


@row(133, "COMMIT of a body: its answer is lost, or itself", must="one effect each", databases=POSTGRES,
     own_database=True, celery=NO_DATABASE)  # fmt: skip
def commit_lost(stage: Stage) -> None:
    stage.start_conductor()
    with closing(CommitThief(stage.database.server.address("mainstay"))) as thief:
        stage.start_worker(concurrency=2, environ={"DATABASE_URL": thief.url})
        stage.fault()
        numbers = stage.enqueue(stage.scaled(30, 16), "transactional")
        stage.settle()
        stage.measure(answers_lost=thief.answers, commits_lost=thief.commits)
        stage.require(thief.answers >= 3, "answers to commits were lost")
        stage.require(thief.commits >= 3, "commits were lost")
        stage.require(stage.begun(numbers) == len(numbers) + thief.commits, "only what did not commit runs again")


class CommitThief:
    """Stands before PostgreSQL; of three commits of bodies it loses the answer to one, and another one itself."""

    def __init__(self, url: str) -> None:
        self.socket_path = f"{unquote(urlsplit(url).netloc.partition('@')[2])}/.s.PGSQL.5432"
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"postgres://postgres@127.0.0.1:{self.listener.getsockname()[1]}/{url.rpartition('/')[2]}"
        self.seen = self.answers = self.commits = 0
        self.lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Accept nobody any more."""
        self.listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self.listener.accept()
                far = socket.socket(socket.AF_UNIX)
                far.connect(self.socket_path)
                lost = threading.Event()
                threading.Thread(target=self._there, args=(near, far, lost), daemon=True).start()
                threading.Thread(target=self._back, args=(near, far, lost), daemon=True).start()

    def _there(self, near: socket.socket, far: socket.socket, lost: threading.Event) -> None:
        wrote = False
        with contextlib.suppress(OSError):
            while chunk := near.recv(65536):
                wrote = wrote or b"chaos_effect" in chunk
                if wrote and b"COMMIT" in chunk:
                    wrote = False
                    with self.lock:
                        self.seen += 1
                        turn = self.seen % 3
                    if turn == 1:
                        lost.set()
                        self.answers += 1
                    elif turn == 2:
                        self.commits += 1
                        break
                far.sendall(chunk)
        hang_up(near, far)

    def _back(self, near: socket.socket, far: socket.socket, lost: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while chunk := far.recv(65536):
                if lost.is_set():
                    break
                near.sendall(chunk)
        hang_up(near, far)


def hang_up(*ends: socket.socket) -> None:
    """Close both ways of connections."""
    for end in ends:
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


@row(134, "the network to Postgres swallows everything", must="bounded waits, then go on", databases=POSTGRES,
     celery=NO_DATABASE, limit=240)  # fmt: skip
def network_swallows(stage: Stage) -> None:
    proxy = stage.proxy_database()
    stage.start_conductor(via=[proxy])
    stage.start_worker(via=[proxy])
    gate = stage.gate()
    held = stage.enqueue(2, gate=gate.path)
    stage.wait_begun(held)
    stage.enqueue(10)
    stage.fault()
    proxy.half_open()
    gate.open()
    with frugal(stage):
        stage.sleep(stage.scaled(40, 15))
    proxy.heal()
    back_within(stage, 15)
    stage.settle()


@row(135, "the disk of Postgres is full", must="wait, then go on", databases=POSTGRES, celery=NO_DATABASE)
def disk_full(stage: Stage) -> None:
    stage.start()
    gate = stage.gate()
    held = stage.enqueue(2, gate=gate.path)
    stage.wait_begun(held)
    stage.enqueue(10)
    stage.fault()
    stage.database.execute(FULL)
    gate.open()
    stage.sleep(1)
    with frugal(stage):
        stage.sleep(stage.scaled(15, 6))
    stage.database.execute("DROP FUNCTION disk_is_full() CASCADE")
    stage.settle()


# As the server says it when a table cannot grow.
FULL = """
DO $do$ BEGIN
    CREATE FUNCTION disk_is_full() RETURNS trigger AS $$ BEGIN
        RAISE 'could not extend file: No space left on device' USING ERRCODE = '53100';
    END $$ LANGUAGE plpgsql;
    CREATE TRIGGER full_disk BEFORE INSERT OR UPDATE ON jobs_job EXECUTE FUNCTION disk_is_full();
    CREATE TRIGGER full_disk BEFORE INSERT OR UPDATE ON jobs_attempt EXECUTE FUNCTION disk_is_full();
END $do$
"""


@row(136, "the jobs' table is locked, and statements time out", must="wait, then go on", databases=POSTGRES,
     own_database=True, celery=NO_DATABASE)  # fmt: skip
def statements_time_out(stage: Stage) -> None:
    stage.database.execute("ALTER DATABASE mainstay SET statement_timeout = '300ms'")
    stage.start()
    gate = stage.gate()
    held = stage.enqueue(2, gate=gate.path)
    stage.wait_begun(held)
    stage.enqueue(10)
    stage.fault()
    with closing(psycopg.connect(stage.database.server.address("mainstay"))) as connection:
        connection.execute("SET statement_timeout = 0; LOCK TABLE jobs_job IN EXCLUSIVE MODE")
        gate.open()
        stage.sleep(1)
        with frugal(stage, per_second=0.25, lines=12):
            stage.sleep(stage.scaled(15, 5))
        connection.rollback()
    stage.settle()


@row(137, "every connection is broken, again and again, under load", must="no loss", databases=POSTGRES,
     own_database=True, may_refuse=True, celery=NO_DATABASE)  # fmt: skip
def connections_break(stage: Stage) -> None:
    sessions = "SELECT pid FROM pg_stat_activity WHERE datname = 'mainstay' AND pid <> pg_backend_pid()"
    stage.start(concurrency=3)
    load = stage.steady_mixed(stage.scaled(120, 60), rate=12)
    stage.fault()
    until = time.monotonic() + stage.scaled(15, 8)
    while time.monotonic() < until or not load.done:
        for (pid,) in stage.database.rows(sessions):
            if stage.random.random() < 0.5:
                stage.database.execute(f"SELECT pg_terminate_backend({pid:d})")
        stage.sleep(stage.random.uniform(0.2, 1.0))
    stage.settle()


@row(138, "SQLite: the file is locked for longer than a lease", must="wait, then go on", databases=("sqlite",),
     celery=NO_DATABASE)  # fmt: skip
def file_locked(stage: Stage) -> None:
    import sqlite3

    stage.start()
    gate = stage.gate()
    held = stage.enqueue(2, gate=gate.path)
    stage.wait_begun(held)
    stage.enqueue(10)
    stage.fault()
    path = re.sub("^sqlite:///", "", stage.database.url)
    with closing(sqlite3.connect(path, timeout=30, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        gate.open()
        with frugal(stage, per_second=0.25):
            stage.sleep(stage.scaled(25, 10))
        connection.execute("ROLLBACK")
    stage.settle()
