"""Without the database nothing goes in, and the caller is told; when it comes back, everything goes on."""

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db import connection

from jobs import lifecycle
from jobs.models import Job, Leader
from jobs.outage import QUIET
from jobs.states import State
from project.servers import RedisServer
from tests.children import Child, alive, database_url, python
from tests.environment import DATABASE
from tests.platform import QUICK, Platform, fresh, messages
from tests.sample.tasks import deaf, note, patient, ticking

WaitUntil = Callable[..., Any]

needs_server = pytest.mark.skipif(
    DATABASE == "sqlite" or "TEST_DATABASE_URL" in os.environ, reason="there is no server that could be stopped"
)

DELAY = """
import django; django.setup()
from django.db.utils import OperationalError
from tests.sample.tasks import note
try:
    note.delay("unheard")
except OperationalError as error:
    print("refused:", error)
"""


@pytest.fixture
def server(postgres: Any) -> Iterator[Any]:
    """The database's server, which runs again in the end."""
    yield postgres
    postgres.start()
    connection.close()


# --- Calls ------------------------------------------------------------------------------------------


def test_without_the_database_delay_raises_and_nothing_is_enqueued(
    spawn: Callable[..., Child], broker: RedisServer
) -> None:
    nowhere = {
        "sqlite": "sqlite:////nowhere/at/all.sqlite3",
        "postgresql": "postgres://nobody@127.0.0.1:9/nothing",
    }[connection.vendor]
    spawn("caller", python("-c", DELAY), {"DATABASE_URL": nowhere}).expect("refused:")
    assert messages(broker.url) == 0


@needs_server
def test_a_database_that_accepts_and_says_nothing_makes_delay_raise_in_time(
    spawn: Callable[..., Child], broker: RedisServer
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgres://nobody@127.0.0.1:{silent.getsockname()[1]}/nothing?connect_timeout=2"
        spawn("caller", python("-c", DELAY), {"DATABASE_URL": url}).expect("refused:", timeout=15)
    assert messages(broker.url) == 0


# --- A server that goes away ---------------------------------------------------------------------------


@needs_server
@pytest.mark.parametrize("how", ["fast", "immediate", "killed"])
def test_jobs_go_on_after_the_database_was_restarted_under_them(
    platform: Platform, server: Any, wait_until: WaitUntil, tmp_path: Path, how: str
) -> None:
    gate = tmp_path / "gate"
    running = [patient.delay(str(gate)) for _ in range(2)]
    waiting = [note.delay(f"waiting {n}") for n in range(5)]
    wait_until(lambda: Job.objects.filter(state=State.RUNNING).count() == 2)
    server.kill() if how == "killed" else server.stop(how)
    gate.touch()
    server.start()
    connection.close()
    wait_until(lambda: {fresh(job).state for job in (*running, *waiting)} == {State.COMPLETED}, timeout=40)
    assert sorted(line for line in platform.witness.lines if line.startswith("waiting")) == [
        f"waiting {n}" for n in range(5)
    ]
    assert platform.worker is not None
    assert platform.worker.running


@needs_server
def test_what_ended_while_the_database_was_away_is_recorded_and_not_run_again(
    platform: Platform, server: Any, wait_until: WaitUntil, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    job = patient.delay(str(gate))
    wait_until(lambda: f"start:{gate}" in platform.witness.lines)
    server.stop()
    gate.touch()
    wait_until(lambda: f"end:{gate}" in platform.witness.lines)
    time.sleep(QUICK["LEASE"] + 1)  # for as long as any lease lasts
    server.start()
    connection.close()
    wait_until(lambda: fresh(job).state == State.COMPLETED, timeout=15)
    assert fresh(job).attempt == 1


@needs_server
def test_each_process_says_once_that_the_database_is_away_and_once_that_it_is_back(
    platform: Platform, server: Any, wait_until: WaitUntil
) -> None:
    assert platform.conductor is not None
    now = lifecycle.database_now()  # the tests before may have taken the database away, too
    wait_until(lambda: Leader.objects.filter(ticked_at__gt=now).exists())
    before = platform.conductor.log
    server.stop()

    def told() -> bool:
        assert platform.conductor is not None
        return "The conductor waits for it." in platform.conductor.log[len(before) :]

    wait_until(told, timeout=2 * QUIET)  # it may have told of an outage of the test before just now
    time.sleep(4)
    server.start()
    wait_until(lambda: "The database is back" in platform.conductor.log[len(before) :])  # type: ignore[union-attr]
    said = platform.conductor.log[len(before) :]
    assert said.count("The conductor waits for it.") == 1
    assert "Traceback" not in said


@needs_server
def test_a_worker_that_starts_without_the_database_works_when_it_comes(
    worker: Callable[..., Child], platform: Platform, server: Any, wait_until: WaitUntil
) -> None:
    assert platform.worker is not None
    platform.worker.stop()
    job = note.delay("now")
    server.stop()
    process = worker()
    process.expect("Task tests.sample.tasks.note")
    server.start()
    connection.close()
    wait_until(lambda: fresh(job).state == State.COMPLETED, timeout=20)
    assert process.running


# --- A lease that cannot be renewed --------------------------------------------------------------------


@needs_server
@pytest.mark.parametrize("kind", ["prefork", "threads", "solo", "gevent"])
def test_a_body_stops_before_its_lease_ends_while_the_database_is_away(
    worker: Callable[..., Child], platform: Platform, server: Any, wait_until: WaitUntil, kind: str
) -> None:
    assert platform.worker is not None
    platform.worker.stop()
    worker(pool=kind, concurrency=1, name=kind, env=platform.environ)
    job = ticking.delay(kind)

    def ticks() -> list[float]:
        return [float(line.rpartition(":")[2]) for line in platform.witness.lines if line.startswith("tick:")]

    wait_until(lambda: len(ticks()) > 15, timeout=20)
    server.stop()
    away = time.time()
    wait_until(lambda: time.time() - ticks()[-1] > 1.5, timeout=QUICK["LEASE"] + 3)
    assert ticks()[-1] - away < QUICK["LEASE"]
    server.start()
    connection.close()
    wait_until(lambda: fresh(job).attempt == 2, timeout=20)
    assert fresh(job).losses == 0  # it is not to blame


@needs_server
def test_a_body_in_c_code_is_ended_with_its_process_while_the_database_is_away(
    platform: Platform, server: Any, wait_until: WaitUntil
) -> None:
    job = deaf.delay("in C")
    wait_until(lambda: fresh(job).state == State.RUNNING)
    pid = fresh(job).pid
    time.sleep(1.5)  # it is long by now
    server.stop()
    away = time.monotonic()
    wait_until(lambda: not alive([pid]), timeout=QUICK["LEASE"] + 5)
    assert time.monotonic() - away < QUICK["LEASE"] + 1
    server.start()
    connection.close()
    wait_until(lambda: fresh(job).losses == 1, timeout=20)


@pytest.mark.parametrize("how", ["in C", "ticking"])
def test_a_body_that_stood_still_past_its_lease_stops_as_soon_as_it_goes_on(
    platform: Platform, wait_until: WaitUntil, how: str
) -> None:
    job = ticking.delay("x") if how == "ticking" else deaf.delay(how)
    wait_until(lambda: fresh(job).state == State.RUNNING)
    pid, token = fresh(job).pid, fresh(job).token
    time.sleep(1.5)  # it is long by now
    os.kill(pid, signal.SIGSTOP)
    try:
        wait_until(lambda: fresh(job).token != token or fresh(job).state != State.RUNNING, timeout=QUICK["LEASE"] + 8)
    finally:
        os.kill(pid, signal.SIGCONT)
    wait_until(lambda: not alive([pid]), timeout=2)


# --- A file that somebody holds ------------------------------------------------------------------------


@pytest.mark.skipif(DATABASE != "sqlite", reason="it is about a file")
def test_a_file_that_is_locked_for_longer_than_a_lease_loses_nothing(
    platform: Platform, wait_until: WaitUntil, tmp_path: Path
) -> None:
    import sqlite3

    gate = tmp_path / "gate"
    running, waiting = patient.delay(str(gate)), [note.delay(f"waiting {n}") for n in range(3)]
    wait_until(lambda: f"start:{gate}" in platform.witness.lines)
    holder = sqlite3.connect(database_url().removeprefix("sqlite:///"), timeout=20, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    gate.touch()
    time.sleep(QUICK["LEASE"] + 2)
    holder.execute("ROLLBACK")
    holder.close()
    wait_until(lambda: {fresh(job).state for job in (running, *waiting)} == {State.COMPLETED}, timeout=30)
