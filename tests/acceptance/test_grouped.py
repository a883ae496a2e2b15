"""Short jobs, claimed and completed in groups by the worker's main process; whatever fails, each completes."""

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import redis
from django.db import connection, transaction

from dlq.models import DeadLetter
from jobs import control
from jobs.bulk import bulk
from jobs.models import Attempt, Job, Leader
from jobs.states import State
from project.servers import RedisServer
from tests.children import Child
from tests.environment import DATABASE
from tests.platform import QUICK, Witness
from tests.sample.tasks import Told, nap, note

pytestmark = pytest.mark.skipif(DATABASE == "sqlite", reason="only PostgreSQL's statements are grouped")

Spawn = Callable[..., Child]
WaitUntil = Callable[..., Any]
MANY = 600


@pytest.fixture
def server(postgres: Any) -> Iterator[Any]:
    """The database's server, which runs again in the end."""
    if "TEST_DATABASE_URL" in os.environ:
        pytest.skip("there is no server that could be stopped")
    yield postgres
    postgres.start()
    connection.close()


@pytest.fixture
def env(witness: Witness) -> dict[str, str]:
    """What the processes of these tests are told."""
    return {**witness.environ, "TEST_JOBS": json.dumps(QUICK)}


@pytest.fixture(params=["prefork", "threads", "solo"])
def any_worker(request: pytest.FixtureRequest, worker: Spawn) -> Spawn:
    """Start a worker of each pool that groups short jobs."""
    return partial(worker, pool=request.param)


def lines(prefix: str = "n", count: int = MANY) -> list[str]:
    """What many notes write."""
    return [f"{prefix}{number}" for number in range(count)]


def enqueue(count: int = MANY, prefix: str = "n") -> None:
    bulk(note, [{"line": line} for line in lines(prefix, count)])


def states() -> Counter[str]:
    """How many jobs are in each state."""
    return Counter(Job.objects.values_list("state", flat=True))


def all_completed(count: int = MANY) -> bool:
    """Whether so many jobs are, all of them, completed."""
    return states() == {State.COMPLETED: count}


def ahead(child: Child) -> Any:
    """The jobs that were claimed ahead of their turn: by the worker's main process."""
    return Job.objects.filter(pid=child.pid)


def transactions() -> int:
    """How many transactions wrote the rows as they are now."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(DISTINCT xmin::text) FROM jobs_job")
        (count,) = cursor.fetchone()
    return int(count)


def test_short_jobs_are_claimed_ahead_and_each_runs_once(
    any_worker: Spawn, env: dict[str, str], witness: Witness, wait_until: WaitUntil
) -> None:
    enqueue()
    one = any_worker(env=env)
    wait_until(all_completed, timeout=30)
    assert ahead(one).count() > MANY / 30  # of a machine with much else to do, no more is asked
    assert transactions() < 0.8 * MANY  # each job that completes alone is one
    assert Counter(witness.lines) == Counter(lines())
    assert {job.result for job in Job.objects.all()} == {f'"{line}"' for line in lines()}
    assert set(Job.objects.values_list("attempt", "losses")) == {(1, 0)}
    assert not Attempt.objects.exists()


def test_a_single_job_is_claimed_for_its_child(
    worker: Spawn, broker: RedisServer, env: dict[str, str], wait_until: WaitUntil
) -> None:
    one = worker(env=env)
    for number in range(5):
        note.delay(f"n{number}")
        wait_until(partial(all_completed, number + 1))
    assert set(Job.objects.values_list("pid", flat=True)) <= set(one.children())
    assert set(Job.objects.values_list("attempt", "losses")) == {(1, 0)}


@contextmanager
def locked(table: str) -> Iterator[None]:
    """Nobody else reads the table meanwhile."""
    other = connection.copy()
    other.set_autocommit(False)
    try:
        with other.cursor() as cursor:
            cursor.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
        yield
    finally:
        other.rollback()
        other.close()


def waiting_for_locks() -> int:
    """How many statements of others wait for a lock."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        return int(cursor.fetchone()[0])


def test_a_claim_whose_answer_is_late_is_kept_by_the_child(
    worker: Spawn, broker: RedisServer, env: dict[str, str], witness: Witness, wait_until: WaitUntil
) -> None:
    one = worker(env=env)
    for line in ("first", "second"):
        note.delay(line)
        wait_until(lambda line=line: line in witness.lines)
    wait_until(partial(all_completed, 2))
    with locked("jobs_pause"):  # every claim reads it
        note.delay("late")
        wait_until(lambda: waiting_for_locks() == 2)  # the main process's, and that of a child that waited in vain
        assert "late" not in witness.lines
    wait_until(partial(all_completed, 3))
    assert witness.lines == ["first", "second", "late"]
    assert set(Job.objects.values_list("attempt", "losses")) == {(1, 0)}
    assert one.process.poll() is None


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_what_was_claimed_ahead_is_handed_back_when_jobs_take_long(
    worker: Spawn, conductor: Spawn, env: dict[str, str], witness: Witness, wait_until: WaitUntil, pool: str
) -> None:
    enqueue()
    bulk(nap, [{"seconds": 20, "name": "long"}, {"seconds": 20, "name": "longer"}])
    enqueue(20, "after")
    one = worker(pool=pool, env=env)
    conductor(env=env)
    wait_until(lambda: {"start:long", "start:longer"} <= set(witness.lines), timeout=30)
    worker(name="second", env=env)
    wait_until(lambda: states()[State.COMPLETED] == MANY + 20, timeout=10)
    assert Counter(line for line in witness.lines if line.startswith("after")) == Counter(lines("after", 20))
    assert set(Job.objects.values_list("losses", flat=True)) == {0}
    one.kill()


def test_a_hook_of_the_task_finds_its_job_completed(
    any_worker: Spawn, env: dict[str, str], witness: Witness, wait_until: WaitUntil
) -> None:
    bulk(Told, [{"number": number} for number in range(100)])
    any_worker(env=env)
    wait_until(lambda: all_completed(100), timeout=30)
    assert Counter(witness.lines) == Counter({"completed": 100})


@pytest.mark.parametrize("how", ["fast", "immediate", "killed"])
def test_a_database_that_restarts_costs_no_job(
    any_worker: Spawn,
    conductor: Spawn,
    server: Any,
    env: dict[str, str],
    witness: Witness,
    wait_until: WaitUntil,
    how: str,
) -> None:
    enqueue()
    conductor(env=env)
    wait_until(Leader.objects.exists)
    any_worker(env=env)
    wait_until(lambda: len(witness.lines) > 100, timeout=30, every=0.005)
    server.kill() if how == "killed" else server.stop(how)
    time.sleep(1)
    server.start()
    connection.close()
    wait_until(all_completed, timeout=60)
    assert set(witness.lines) == set(lines())


def test_a_database_that_is_silent_for_a_while_costs_no_job(
    any_worker: Spawn, conductor: Spawn, server: Any, env: dict[str, str], witness: Witness, wait_until: WaitUntil
) -> None:
    enqueue()
    conductor(env=env)
    wait_until(Leader.objects.exists)
    any_worker(env=env)
    wait_until(lambda: len(witness.lines) > 100, timeout=30, every=0.005)
    frozen = backends()
    for pid in frozen:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(7)
    for pid in frozen:
        os.kill(pid, signal.SIGCONT)
    wait_until(all_completed, timeout=60)
    assert set(witness.lines) == set(lines())


def backends() -> list[int]:
    """The server's processes that serve others on this database."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid != pg_backend_pid()"
        )
        return [row[0] for row in cursor.fetchall()]


def test_sessions_that_forget_what_was_prepared_cost_no_job(
    any_worker: Spawn, env: dict[str, str], witness: Witness, wait_until: WaitUntil
) -> None:
    enqueue()
    any_worker(env=env)
    for _ in range(4):
        wait_until(lambda: len(witness.lines) > 50, timeout=30, every=0.005)
        for pid in backends():
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_terminate_backend(%s)", [pid])
    wait_until(all_completed, timeout=60)
    assert set(witness.lines) == set(lines())


def test_a_worker_that_is_killed_costs_no_job(
    any_worker: Spawn, conductor: Spawn, env: dict[str, str], witness: Witness, wait_until: WaitUntil
) -> None:
    enqueue()
    conductor(env=env)
    one = any_worker(name="first", env=env)
    wait_until(lambda: len(witness.lines) > 100, timeout=30, every=0.005)
    one.kill()
    any_worker(name="second", env=env)
    wait_until(all_completed, timeout=60)
    assert set(witness.lines) == set(lines())
    assert max(Job.objects.values_list("losses", flat=True)) <= 1


def test_a_job_that_was_lost_once_is_not_claimed_ahead_again(
    worker: Spawn, env: dict[str, str], wait_until: WaitUntil
) -> None:
    enqueue()
    Job.objects.all().update(losses=1)
    one = worker(env=env)
    wait_until(all_completed, timeout=30)
    assert not ahead(one).exists()


def test_a_child_that_is_killed_with_a_job_claimed_ahead_brings_it_back_at_once(
    worker: Spawn, conductor: Spawn, env: dict[str, str], witness: Witness, wait_until: WaitUntil
) -> None:
    enqueue(300)
    bulk(nap, [{"seconds": 600, "name": "hit"}])
    conductor(env={**env, "TEST_JOBS": json.dumps(QUICK | {"LEASE": 60})})
    one = worker(env={**env, "TEST_JOBS": json.dumps(QUICK | {"LEASE": 60})}, concurrency=1)
    wait_until(lambda: "start:hit" in witness.lines, timeout=30)
    (child,) = one.children()
    os.kill(child, signal.SIGKILL)
    wait_until(lambda: witness.lines.count("start:hit") == 2, timeout=10)
    assert Job.objects.get(task=nap.name).losses == 1
    one.kill()


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGQUIT], ids=["warm", "soft"])
def test_a_worker_that_stops_leaves_nothing_running(
    any_worker: Spawn, env: dict[str, str], witness: Witness, wait_until: WaitUntil, sign: signal.Signals
) -> None:
    enqueue()
    one = any_worker(env=env)
    wait_until(lambda: len(witness.lines) > 100, timeout=30, every=0.005)
    os.kill(one.pid, sign)
    wait_until(lambda: not one.running, timeout=20)
    assert states()[State.RUNNING] == 0
    assert len(witness.lines) == len(set(witness.lines)) == states()[State.COMPLETED]


def test_a_row_that_somebody_keeps_locked_holds_up_no_other(
    any_worker: Spawn, env: dict[str, str], wait_until: WaitUntil
) -> None:
    enqueue(200)
    held = Job.objects.order_by("-created_at")[0]
    with transaction.atomic():
        Job.objects.select_for_update().get(pk=held.pk)
        any_worker(env=env)
        wait_until(lambda: states()[State.COMPLETED] == 199, timeout=30)
    wait_until(lambda: all_completed(200), timeout=30)


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_job_that_is_cancelled_while_it_waits_in_the_worker_does_not_complete(
    worker: Spawn, conductor: Spawn, env: dict[str, str], witness: Witness, wait_until: WaitUntil, pool: str
) -> None:
    enqueue()
    bulk(nap, [{"seconds": 5, "name": "a"}, {"seconds": 5, "name": "b"}])
    enqueue(10, "after")
    worker(pool=pool, env=env)
    conductor(env=env)
    wait_until(lambda: {"start:a", "start:b"} <= set(witness.lines), timeout=30)
    for job in Job.objects.filter(payload__contains="after"):
        control.cancel(job.pk, reason="not wanted", by="ann")
    wait_until(lambda: states()[State.CANCELLED] == 10, timeout=20)
    assert not [line for line in witness.lines if line.startswith("after")]
    assert not DeadLetter.objects.exists()


def test_a_broker_that_is_away_for_longer_than_a_lease_makes_no_body_run_twice(
    any_worker: Spawn,
    conductor: Spawn,
    broker: RedisServer,
    env: dict[str, str],
    witness: Witness,
    wait_until: WaitUntil,
) -> None:
    enqueue()
    conductor(env=env)
    wait_until(Leader.objects.exists)
    any_worker(env=env)
    wait_until(lambda: len(witness.lines) > 100, timeout=30, every=0.005)
    broker.stop()
    time.sleep(QUICK["LEASE"] + 2)
    broker.start()
    wait_until(all_completed, timeout=60)
    assert Counter(witness.lines) == Counter(lines())
    assert set(Job.objects.values_list("losses", flat=True)) == {0}


def test_jobs_that_take_longer_than_those_before_them_keep_their_leases(
    any_worker: Spawn, conductor: Spawn, env: dict[str, str], wait_until: WaitUntil
) -> None:
    enqueue()
    bulk(nap, [{"seconds": 0.9, "name": f"{number}"} for number in range(12)])
    conductor(env=env)
    any_worker(env=env, concurrency=1)
    wait_until(lambda: all_completed(MANY + 12), timeout=60)
    assert set(Job.objects.values_list("losses", flat=True)) == {0}


# --- A solo worker ----------------------------------------------------------------------------------------------------


@pytest.fixture
def busy(
    worker: Spawn, conductor: Spawn, env: dict[str, str], witness: Witness, wait_until: WaitUntil
) -> Iterator[Child]:
    """A solo worker that came to a long job after many short ones; more short ones wait behind it."""
    enqueue()
    bulk(nap, [{"seconds": 20, "name": "long"}])
    enqueue(20, "after")
    conductor(env=env)
    one = worker(pool="solo", env=env)
    wait_until(lambda: "start:long" in witness.lines, timeout=30)
    yield one
    one.kill()


def test_a_long_job_lets_those_before_it_be_recorded(busy: Child, wait_until: WaitUntil) -> None:
    wait_until(lambda: states()[State.COMPLETED] == MANY, timeout=2)


def test_a_long_job_lets_others_have_those_behind_it(
    busy: Child, worker: Spawn, env: dict[str, str], witness: Witness, wait_until: WaitUntil
) -> None:
    worker(pool="solo", name="second", env=env)
    wait_until(lambda: states()[State.COMPLETED] == MANY + 20, timeout=10)
    assert Counter(line for line in witness.lines if line.startswith("after")) == Counter(lines("after", 20))
    assert set(Job.objects.values_list("losses", flat=True)) == {0}
    assert "end:long" not in witness.lines


def test_a_worker_that_loses_its_broker_goes_on(
    any_worker: Spawn,
    conductor: Spawn,
    broker: RedisServer,
    env: dict[str, str],
    witness: Witness,
    wait_until: WaitUntil,
) -> None:
    enqueue()
    conductor(env=env)
    any_worker(env=env)
    for seen in (50, 200, 350):
        wait_until(lambda seen=seen: len(witness.lines) > seen, timeout=30, every=0.005)
        with redis.Redis.from_url(broker.url) as wire:
            wire.client_kill_filter(_type="normal", skipme=True)
    wait_until(all_completed, timeout=60)
    assert set(witness.lines) == set(lines())
    assert set(Job.objects.values_list("losses", flat=True)) == {0}


# --- What is big, locked or not to be tried twice ---------------------------------------------------------------------


def test_big_results_are_recorded_as_they_come(any_worker: Spawn, env: dict[str, str], wait_until: WaitUntil) -> None:
    bulk(note, [{"line": f"{number} {'x' * 60_000}"} for number in range(400)])
    any_worker(env={"TEST_JOBS": env["TEST_JOBS"]})
    wait_until(partial(all_completed, 400), timeout=20)
    ends = sorted(Job.objects.values_list("finished_at", flat=True))
    assert max(later - former for former, later in pairwise(ends)).total_seconds() < 3


def test_a_job_that_is_allowed_one_attempt_is_not_claimed_ahead(
    worker: Spawn, env: dict[str, str], wait_until: WaitUntil
) -> None:
    enqueue()
    Job.objects.all().update(max_attempts=1)
    one = worker(env=env)
    wait_until(all_completed, timeout=30)
    assert not ahead(one).exists()
