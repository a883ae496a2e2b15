"""A database that is away, busy, full, read-only or silent is waited for; a mistake is raised."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from types import SimpleNamespace
from typing import Any

import pytest
from django.contrib.auth.models import Group
from django.db import Error, IntegrityError, InternalError, OperationalError, ProgrammingError, connection, transaction
from django.db.transaction import TransactionManagementError

from jobs import attempt as room
from jobs import lifecycle, outage, rescue
from jobs.conductor import Conductor
from jobs.failures import Kind, by_default
from jobs.models import Job
from jobs.outage import Outage, bounded, busy, passing, pauses
from jobs.states import State
from tests.environment import DATABASE
from tests.platform import attempt, drain, fresh, hurry, running
from tests.sample import tasks as sample

WaitUntil = Callable[..., Any]

needs_postgres = pytest.mark.skipif(DATABASE == "sqlite", reason="SQLite has no such error")
needs_sqlite = pytest.mark.skipif(DATABASE != "sqlite", reason="PostgreSQL has no such error")


def raised(error: Error, **details: Any) -> Error:
    """An error of Django's as it wraps a driver's."""
    cause = Exception(str(error))
    for name, value in details.items():
        setattr(cause, name, value)
    error.__cause__ = cause
    return error


# --- What passes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "state",
    ["08006", "25006", "25P03", "40001", "40P01", "53100", "53300", "55P03", "57014", "57P01", "57P03", "58030"],
)
@pytest.mark.parametrize("wrapper", [OperationalError, InternalError])
def test_what_a_server_says_in_trouble_passes(wrapper: type[Error], state: str) -> None:
    assert passing(raised(wrapper("odd"), sqlstate=state))


@pytest.mark.parametrize(
    "error",
    [
        raised(IntegrityError("taken"), sqlstate="23505"),
        raised(ProgrammingError("no such column"), sqlstate="42703"),
        raised(OperationalError("index row size exceeds the maximum"), sqlstate="54000"),
        raised(InternalError("odd"), sqlstate="XX000"),
        ValueError("not the database's"),
    ],
    ids=str,
)
def test_what_would_be_the_same_next_time_does_not_pass(error: Exception) -> None:
    assert not passing(error)


@pytest.mark.parametrize("state", ["40001", "40P01", "55P03", "57014"])
def test_who_was_only_in_the_way_leaves_the_connection_well(state: str) -> None:
    assert busy(raised(OperationalError("in the way"), sqlstate=state))
    assert not busy(raised(OperationalError("gone"), sqlstate="57P01"))


@pytest.mark.parametrize("state", ["25006", "25P03"])
def test_a_body_that_meets_a_standby_is_retried(state: str) -> None:
    error = raised(InternalError("cannot execute INSERT in a read-only transaction"), sqlstate=state)
    assert by_default(error).kind is Kind.TRANSIENT


def test_pauses_grow_to_a_cap_and_are_never_in_step() -> None:
    waits = list(islice(pauses(0.1, 3.0), 20))
    assert waits[0] <= 0.1
    assert all(1.5 <= wait <= 3.0 for wait in waits[6:])
    assert len(set(waits)) == 20


# --- What is told -----------------------------------------------------------------------------------


def test_an_outage_is_told_once_and_its_end_once(caplog: pytest.LogCaptureFixture) -> None:
    told = Outage(logging.getLogger("jobs.test"), "All wait.")
    for _ in range(50):
        told.failed(OperationalError("gone\naway"))
    told.over()
    told.over()
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == "The database does not do what it is asked: gone away. All wait."
    assert lines[1].startswith("The database is back after ")
    assert len(lines) == 2


def test_one_deadlock_is_not_told(caplog: pytest.LogCaptureFixture) -> None:
    told = Outage(logging.getLogger("jobs.test"), "All wait.")
    told.failed(raised(OperationalError("deadlock"), sqlstate="40P01"))
    told.over()
    assert caplog.records == []


def test_a_database_that_comes_and_goes_does_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    told = Outage(logging.getLogger("jobs.test"), "All wait.")
    for _ in range(100):
        told.failed(OperationalError("gone"))
        told.over()
    assert len(caplog.records) == 2


# --- Attempts that wait, on the real database ---------------------------------------------------------


def execute(sql: str) -> None:
    """Run a statement on this thread's connection."""
    with connection.cursor() as cursor:
        cursor.execute(sql)


class Trouble:
    """Attempts that wait shortly, counted; ``end`` is called as they wait for the third time."""

    def __init__(self) -> None:
        self.waits = 0
        self.end: Callable[[], Any] = lambda: None

    def pauses(self) -> Iterator[float]:
        """As ``outage.pauses``."""
        while True:
            self.waits += 1
            if self.waits == 3:
                self.end()
            yield 0.001


@pytest.fixture
def trouble(committed: None, sent: list[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Trouble]:
    """A trouble with the database that ends."""
    found = Trouble()
    monkeypatch.setattr(outage, "pauses", found.pauses)
    yield found
    connection.close()


TROUBLES = [
    pytest.param("PRAGMA query_only = 1", "PRAGMA query_only = 0", marks=needs_sqlite, id="a read-only file"),
    pytest.param("PRAGMA max_page_count = 1", "PRAGMA max_page_count = 100000", marks=needs_sqlite, id="a full disk"),
    pytest.param(
        "SET default_transaction_read_only = on", "SET default_transaction_read_only = off", marks=needs_postgres,
        id="a read-only server",
    ),
]  # fmt: skip


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(("begin", "end"), TROUBLES)
def test_a_job_is_completed_once_when_the_trouble_is_over(
    trouble: Trouble, monkeypatch: pytest.MonkeyPatch, witness: Any, begin: str, end: str
) -> None:
    # A connection that is closed forgets what it was told; here it stands for the server, which would not.
    monkeypatch.setattr(connection, "close", lambda: None)
    line = "x" * 50_000
    job = sample.note.delay(line)
    trouble.end = lambda: execute(end)
    if "max_page" in begin:
        execute("VACUUM")  # or there are free pages
    execute(begin)
    attempt(job.id)
    assert trouble.waits >= 3
    assert (fresh(job).state, fresh(job).attempt, witness.lines) == (State.COMPLETED, 1, [line])


@contextmanager
def locked(job: Any) -> Iterator[Callable[[], None]]:
    """Hold the lock of a job's row (on SQLite, of the whole file) elsewhere, until the given function is called."""
    release, held = threading.Event(), threading.Event()

    def hold() -> None:
        try:
            with transaction.atomic():
                Job.objects.filter(pk=job.id).update(tags=["locked"])
                held.set()
                release.wait(20)
        finally:
            connection.close()

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(10)

    def let_go() -> None:
        release.set()
        thread.join(10)

    try:
        yield let_go
    finally:
        let_go()


def wait_shortly_for_locks() -> None:
    """Have this thread's connection give up soon."""
    execute("PRAGMA busy_timeout = 20" if connection.vendor == "sqlite" else "SET lock_timeout = '20ms'")


@pytest.mark.django_db(transaction=True)
def test_a_locked_row_is_waited_for_on_the_same_connection(trouble: Trouble, monkeypatch: pytest.MonkeyPatch) -> None:
    job = sample.add.delay(1, 2)
    wait_shortly_for_locks()
    monkeypatch.setattr(connection, "close", lambda: pytest.fail("the connection was well"))
    with locked(job) as let_go:
        trouble.end = let_go
        attempt(job.id)
    monkeypatch.undo()
    assert (fresh(job).state, fresh(job).attempt) == (State.COMPLETED, 1)


@needs_postgres
@pytest.mark.django_db(transaction=True)
def test_a_row_that_somebody_locked_does_not_keep_the_conductor_from_the_others(
    trouble: Trouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "LOCK_PATIENCE", 0.05)
    stuck, free = (running(sample.add.delay(1, n).id, lease=-1) for n in range(2))
    with locked(stuck):
        assert rescue.rescue() == 1
    assert (fresh(stuck).state, fresh(free).state) == (State.RUNNING, State.RETRYING)


@needs_postgres
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("when", ["before the claim", "in the body"])
def test_a_backend_that_is_ended_costs_no_attempt(trouble: Trouble, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    def end_it() -> None:
        with pytest.raises(OperationalError):
            execute("SELECT pg_terminate_backend(pg_backend_pid())")

    job = sample.add.delay(1, 2)
    if when == "in the body":
        monkeypatch.setattr(sample.add, "run", lambda a, b: end_it() or a + b)
    else:
        claim, ended = lifecycle.claim, list[None]()
        monkeypatch.setattr(lifecycle, "claim", lambda *a, **k: (ended or ended.append(end_it()), claim(*a, **k))[1])
    attempt(job.id)
    assert (fresh(job).state, fresh(job).attempt) == (State.COMPLETED, 1)


@pytest.mark.django_db(transaction=True)
def test_a_mistake_is_raised_at_once(trouble: Trouble) -> None:
    with pytest.raises(Error):
        room.patiently(lambda: execute("SELECT nonsense FROM jobs_job"))
    assert trouble.waits == 1


def test_an_act_inside_a_transaction_is_not_repeated(db: None) -> None:
    def fail() -> None:
        raise OperationalError("gone")

    with transaction.atomic(), pytest.raises(OperationalError):
        room.patiently(fail)


# --- Commits whose answer was lost --------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("task", [sample.add, sample.Enrol], ids=["plain", "transactional"])
@pytest.mark.parametrize("committed_there", [True, False])
def test_a_commit_whose_answer_was_lost_leaves_one_outcome_and_one_effect(
    trouble: Trouble, monkeypatch: pytest.MonkeyPatch, task: Any, committed_there: bool
) -> None:
    job = task.delay(1, 2) if task is sample.add else task.delay("x")
    lost: list[int] = []
    original, move = connection._commit, lifecycle.complete  # type: ignore[attr-defined]

    def complete(*args: Any, **kwargs: Any) -> bool:
        done = move(*args, **kwargs)
        if task is sample.add and not lost and committed_there:
            lost.append(1)
            raise OperationalError("the answer was lost")
        return done

    def commit() -> None:
        if lost or task is sample.add:
            original()
            return
        lost.append(1)
        if committed_there:
            original()
        raise OperationalError("the answer was lost")

    monkeypatch.setattr(lifecycle, "complete", complete)
    monkeypatch.setattr(connection, "_commit", commit)
    attempt(job.id)
    hurry()
    drain()
    assert fresh(job).state == State.COMPLETED
    assert fresh(job).attempt == (2 if task is sample.Enrol and not committed_there else 1)
    assert Group.objects.filter(name="x").count() == (task is sample.Enrol)


# --- A server that says nothing -----------------------------------------------------------------------


def alone() -> bool:
    """Whether nobody else is connected: the server has noticed that the others are gone."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")
        return bool(cursor.fetchone() == (1,))


@needs_postgres
@pytest.mark.django_db(transaction=True)
def test_a_connection_that_is_silent_for_too_long_is_given_up(
    monkeypatch: pytest.MonkeyPatch, wait_until: WaitUntil
) -> None:
    monkeypatch.setattr(outage, "LOOK_EVERY", 0.05)
    began = time.monotonic()
    with pytest.raises(OperationalError), bounded(lifecycle.database(), 0.3):
        execute("SELECT pg_sleep(3)")
    assert time.monotonic() - began < 2
    connection.close()
    wait_until(alone)


@needs_postgres
@pytest.mark.django_db(transaction=True)
def test_an_act_that_ended_in_time_leaves_its_connection_open(
    monkeypatch: pytest.MonkeyPatch, wait_until: WaitUntil
) -> None:
    monkeypatch.setattr(outage, "LOOK_EVERY", 0.05)
    with bounded(lifecycle.database(), 0.1):
        execute("SELECT 1")
    looked = threading.Event()
    original = outage._look
    monkeypatch.setattr(outage, "_look", lambda *args: (original(*args), looked.set()))
    with bounded(lifecycle.database(), 60):
        assert looked.wait(5)
    execute("SELECT 1")


def test_a_process_that_stood_still_does_not_take_that_for_the_servers_silence() -> None:
    cut: list[Any] = []
    wait = bounded(SimpleNamespace(connection=SimpleNamespace(fileno=lambda: cut.append(1) or 0)), 1.0)  # type: ignore[arg-type, func-returns-value]
    with wait:
        outage._look(time.monotonic() + 30, missed=30)
    assert cut == []


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({}, outage.LIVELY),
        ({"connect_timeout": 60}, {**outage.LIVELY, "connect_timeout": 60}),
        ({"service": "shop"}, {"service": "shop"}),
    ],
)
def test_a_project_that_names_no_time_outs_gets_ours(given: dict[str, Any], kept: dict[str, Any]) -> None:
    outage.hurry(given)
    assert given == kept


# --- The conductor -----------------------------------------------------------------------------------


class Rounds:
    """As many rounds as told, without waiting; the pauses that were asked for are kept."""

    def __init__(self, count: int) -> None:
        self.left, self.pauses = count, list[float]()

    def wait(self, pause: float) -> bool:
        """Whether it is time to stop."""
        self.pauses.append(pause)
        self.left -= 1
        return self.left < 0


def conduct(monkeypatch: pytest.MonkeyPatch, rounds: int, chores: dict[str, Callable[[], int]]) -> Rounds:
    """Run a conductor that leads, with these chores."""
    conductor, flag = Conductor(), Rounds(rounds)
    monkeypatch.setattr(Conductor, "chores", lambda self: [(name, 0.0, chore) for name, chore in chores.items()])
    monkeypatch.setattr(Conductor, "lead", lambda self: True)
    monkeypatch.setattr(conductor, "stopping", flag)
    conductor.run()
    return flag


@pytest.mark.django_db(transaction=True)
def test_a_conductor_without_a_database_comes_back_ever_less_often_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away() -> int:
        raise raised(InternalError("cannot execute UPDATE in a read-only transaction"), sqlstate="25006")

    pauses = conduct(monkeypatch, 12, {"release": away}).pauses
    assert max(pauses[1:4]) < 0.5
    assert min(pauses[-4:]) >= 1.5
    said = [record.getMessage() for record in caplog.records if record.name == "jobs.conductor"]
    assert len(said) == 1
    assert said[0].endswith("read-only transaction. The conductor waits for it.")


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("chore", ["rescue", "expire", "reconcile"])
def test_after_an_outage_the_conductor_lets_those_record_who_were_waiting(
    monkeypatch: pytest.MonkeyPatch, chore: str
) -> None:
    done: list[str] = []

    def release() -> int:
        done.append("release")
        if len(done) == 1:
            raise OperationalError("gone")
        return 0

    conduct(monkeypatch, 4, {"release": release, chore: lambda: done.append(chore) or 0})
    assert chore not in done


@pytest.mark.django_db(transaction=True)
def test_a_chore_that_meets_a_deadlock_does_not_keep_the_others_from_their_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done: list[str] = []

    def deadlocked() -> int:
        raise raised(OperationalError("deadlock detected"), sqlstate="40P01")

    conduct(monkeypatch, 1, {"release": deadlocked, "rescue": lambda: done.append("rescue") or 0})
    assert done == ["rescue"]


# --- Calls without a database -------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_a_call_in_a_broken_transaction_is_refused_and_enqueues_nothing(sent: list[str]) -> None:
    with transaction.atomic():
        with suppress(Error), transaction.atomic(savepoint=False):
            execute("SELECT nonsense FROM jobs_job")
        with pytest.raises(TransactionManagementError):
            sample.note.delay("never")
    assert (Job.objects.count(), sent) == (0, [])
