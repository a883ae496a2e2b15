"""PostgreSQL crashes before a claim is on its disk, and forgets it: the body goes on, and is not run again."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.db import connection

from jobs import lifecycle
from jobs.models import Attempt, Job, Leader
from jobs.states import State
from tests.children import Child
from tests.environment import DATABASE
from tests.platform import QUICK, Witness, fresh
from tests.sample.tasks import patient

pytestmark = pytest.mark.skipif(
    DATABASE == "sqlite" or "TEST_DATABASE_URL" in os.environ, reason="there is no server that could crash"
)

Spawn = Callable[..., Child]
WaitUntil = Callable[..., Any]
TRIES = 5  # something else may have written the claim to the disk just before the crash
FORGOTTEN = "the database had forgotten that attempt 1 holds it"


@pytest.fixture
def server(postgres: Any) -> Iterator[Any]:
    """The database's server, whose log is written for durable commits alone; as it was in the end."""
    alter(postgres, "SET wal_writer_delay = '10s'")
    yield postgres
    postgres.start()
    alter(postgres, "RESET wal_writer_delay")


def alter(postgres: Any, what: str) -> None:
    with postgres.connection() as own:
        own.execute(f"ALTER SYSTEM {what}")
    connection.close()
    postgres.restart()


@pytest.fixture
def env(witness: Witness) -> dict[str, str]:
    """What the processes of these tests are told."""
    return {**witness.environ, "TEST_JOBS": json.dumps(QUICK)}


class Crash:
    """Jobs whose bodies run as the database crashes."""

    def __init__(self, server: Any, witness: Witness, wait_until: WaitUntil, folder: Path) -> None:
        self.server, self.witness, self.wait_until, self.folder = server, witness, wait_until, folder

    def during(self, how: str = "fine", mode: str = "immediate") -> tuple[Any, Path]:
        """Crash the server as soon as a body runs; return its job, and the file for which it waits."""
        gate = self.folder / f"gate-{uuid4().hex}"
        result = patient.delay(str(gate), how)
        self.wait_until(lambda: self.bodies(gate) == 1, every=0.005)
        self.server.kill() if mode == "killed" else self.server.stop(mode)
        return result, gate

    def end(self, gate: Path) -> None:
        """Let the body end."""
        gate.touch()
        self.wait_until(lambda: f"end:{gate}" in self.witness.lines)

    def over(self) -> None:
        """The server is back."""
        self.server.start()
        connection.close()

    def bodies(self, gate: Path) -> int:
        """How often the body began."""
        return self.witness.lines.count(f"start:{gate}")


@pytest.fixture
def crash(server: Any, witness: Witness, wait_until: WaitUntil, tmp_path: Path) -> Crash:
    return Crash(server, witness, wait_until, tmp_path)


@pytest.mark.parametrize("mode", ["immediate", "killed"])
@pytest.mark.parametrize("pool", ["prefork", "threads", "solo", "gevent"])
def test_what_a_body_returned_after_the_crash_is_recorded(
    worker: Spawn, env: dict[str, str], crash: Crash, wait_until: WaitUntil, pool: str, mode: str
) -> None:
    one = worker(pool=pool, env=env)
    for _ in range(TRIES):
        result, gate = crash.during(mode=mode)
        crash.end(gate)
        crash.over()
        wait_until(lambda: fresh(result).finished, timeout=20)  # noqa: B023
        job = fresh(result)
        assert (job.state, job.attempt, job.losses, crash.bodies(gate)) == (State.COMPLETED, 1, 0, 1)
        if FORGOTTEN in one.log:
            return
    pytest.fail("no claim was forgotten")


def test_what_ended_while_the_database_was_away_for_long_is_not_run_again(
    worker: Spawn, conductor: Spawn, env: dict[str, str], crash: Crash, wait_until: WaitUntil
) -> None:
    one = worker(env=env)
    conductor(env=env)
    for _ in range(TRIES):
        result, gate = crash.during()
        crash.end(gate)
        time.sleep(QUICK["LEASE"] + 1)  # for as long as any lease lasts, and any worker is believed alive
        crash.over()
        wait_until(lambda: fresh(result).finished, timeout=20)  # noqa: B023
        assert (fresh(result).state, fresh(result).attempt, crash.bodies(gate)) == (State.COMPLETED, 1, 1)
        if FORGOTTEN in one.log:
            return
    pytest.fail("no claim was forgotten")


def test_an_error_after_the_crash_counts_once(
    worker: Spawn, env: dict[str, str], crash: Crash, wait_until: WaitUntil
) -> None:
    one = worker(env=env)
    for _ in range(TRIES):
        result, gate = crash.during("transient")
        crash.end(gate)
        crash.over()
        wait_until(lambda: fresh(result).state == State.RETRYING, timeout=20)  # noqa: B023
        assert (fresh(result).attempt, crash.bodies(gate)) == (1, 1)
        assert list(Attempt.objects.filter(job_id=result.id).values_list("number", "outcome")) == [(1, "transient")]
        if FORGOTTEN in one.log:
            return
    pytest.fail("no claim was forgotten")


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_body_that_goes_on_keeps_its_job(
    worker: Spawn, conductor: Spawn, env: dict[str, str], crash: Crash, wait_until: WaitUntil, pool: str
) -> None:
    one = worker(pool=pool, env=env)
    worker(pool=pool, env=env, name="another")
    conductor(env=env)
    for _ in range(TRIES):
        result, gate = crash.during()
        crash.over()
        wait_until(lambda: fresh(result).state == State.RUNNING)  # noqa: B023
        until = lifecycle.database_now() + timedelta(seconds=QUICK["LEASE"])
        wait_until(lambda: Leader.objects.filter(ticked_at__gt=until).exists(), timeout=20)  # noqa: B023
        assert (fresh(result).state, fresh(result).attempt) == (State.RUNNING, 1)
        crash.end(gate)
        wait_until(lambda: fresh(result).finished)  # noqa: B023
        assert (fresh(result).state, fresh(result).attempt, crash.bodies(gate)) == (State.COMPLETED, 1, 1)
        if FORGOTTEN in one.log:
            return
    pytest.fail("no claim was forgotten")


def test_a_job_that_somebody_else_has_claimed_since_is_theirs(
    worker: Spawn, env: dict[str, str], crash: Crash, wait_until: WaitUntil
) -> None:
    one = worker(env=env)
    for _ in range(TRIES):
        result, gate = crash.during()
        pids = [one.pid, *one.children()]
        tell(pids, signal.SIGSTOP)
        try:
            crash.over()
            token = uuid4()
            lease = timedelta(seconds=60)
            taken = lifecycle.claim(UUID(result.id), token=token, worker="other@host", pid=1, lease=lease)
        finally:
            tell(pids, signal.SIGCONT)
        gate.touch()
        if taken is None:
            wait_until(lambda: fresh(result).finished)  # noqa: B023
            continue
        wait_until(lambda: f"[{result.id}] ignored" in one.log)  # noqa: B023
        job = fresh(result)
        assert (job.state, job.token, job.attempt, job.worker) == (State.RUNNING, token, 1, "other@host")
        assert FORGOTTEN not in one.log
        Job.objects.all().delete()
        return
    pytest.fail("no claim was forgotten")


def tell(pids: list[int], how: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, how)


def test_a_claim_is_not_forgotten_where_claims_are_to_be_durable(
    worker: Spawn, env: dict[str, str], crash: Crash, wait_until: WaitUntil
) -> None:
    one = worker(env={**env, "TEST_JOBS": json.dumps({**QUICK, "DURABLE_CLAIMS": True})})
    for _ in range(TRIES):
        result, gate = crash.during()
        crash.end(gate)
        crash.over()
        wait_until(lambda: fresh(result).finished, timeout=20)  # noqa: B023
    assert FORGOTTEN not in one.log
