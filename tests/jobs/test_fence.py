"""Whoever lost a job can write nothing more of it; and a body that does not stop is ended with its process."""

import ctypes
import faulthandler
import logging
import os
import signal
import time
from collections.abc import Callable
from datetime import timedelta
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest
from celery import chain
from django.contrib.auth.models import Group
from django.db import InterfaceError, OperationalError, connection, transaction

from dlq.models import DeadLetter
from jobs import attempt as room
from jobs import conclusion, heartbeat, keys, lifecycle, outage, rescue, successors
from jobs.conclusion import Report
from jobs.errors import JobCancelled, LeaseLost, LeaseNotRenewed, MoveRefused
from jobs.failures import Failure, Kind
from jobs.lifecycle import Clock
from jobs.models import Attempt, FanIn, Job, Key
from jobs.retry import RetryPolicy
from jobs.states import State
from tests.platform import fresh, running
from tests.sample import tasks as sample
from tests.sample.tasks import add, note

pytestmark = pytest.mark.django_db


# --- Late writes ------------------------------------------------------------------------------------

WRITES: dict[str, Callable[[Job], Any]] = {
    "complete": lambda late: lifecycle.complete(late, "3"),
    "complete, with successors": lambda late: room._complete(late, "3"),
    "fail": lambda late: conclusion.conclude(late, Failure(Kind.PERMANENT, "late"), Report("Late", "late", "")),
    "retry": lambda late: conclusion.conclude(late, Failure(Kind.TRANSIENT, "late"), Report()),
    "snooze": lambda late: conclusion.conclude(late, Failure(Kind.SNOOZED, "late", timedelta(0)), Report()),
    "lose": lambda late: conclusion.conclude(late, Failure(Kind.LOST, "late"), Report()),
    "cancel": lambda late: successors.finish(late, State.CANCELLED, "late"),
    "be replaced": lambda late: successors.replace(late, note.s("late")),
    "renew the lease": lambda late: lifecycle.amend(late, lease_until=Clock(timedelta(hours=1))),
    "write progress": lambda late: lifecycle.amend(late, progress={"done": 9}),
    "hand back": lambda late: lifecycle.move(late, State.PENDING, "late", due_at=lifecycle.NOW),
    "be reported as dead": lambda late: rescue.lost_child(str(late.pk), late.worker, 1, "late"),
}


def everything() -> Any:
    """All that a write could change."""
    return [
        list(model.objects.order_by("pk").values())  # type: ignore[attr-defined]
        for model in (Job, Attempt, DeadLetter, FanIn, Key)
    ]


@pytest.fixture(params=["taken over", "given back", "cancelled", "completed"])
def late(request: pytest.FixtureRequest, sent: list[str]) -> Job:
    """A job as a runner saw it that has since lost it."""
    job: Job = running(chain(add.s(1, 1), add.s(2)).apply_async().parent.id, lease=-1)
    if request.param == "completed":
        lifecycle.move(job, State.COMPLETED, result="2")
    elif request.param == "cancelled":
        successors.finish(job, State.CANCELLED, "not wanted")
    else:
        rescue.rescue()
    if request.param == "taken over":
        lifecycle.move(fresh(job), State.RESERVED)
        taken = running(job.pk)
        assert taken.token != job.token
    return job


@pytest.mark.parametrize("write", WRITES)
def test_a_late_runner_can_write_nothing(late: Job, write: str) -> None:
    before = everything()
    try:
        with transaction.atomic():
            assert not WRITES[write](late)
    except MoveRefused:
        pass
    assert everything() == before


def test_a_late_transactional_body_leaves_neither_rows_nor_children(
    monkeypatch: pytest.MonkeyPatch, committed: None, sent: list[str]
) -> None:
    from tests.platform import attempt

    job = sample.enrol_and_tell.delay("x", "overtaken")

    def be_overtaken() -> None:
        import threading

        def overtake() -> None:
            lifecycle.move(fresh(job), State.RETRYING, "rescued", due_at=lifecycle.NOW)
            connection.close()

        thread = threading.Thread(target=overtake)
        thread.start()
        thread.join(30 if connection.vendor == "postgresql" else 0.1)

    if connection.vendor == "sqlite":
        pytest.skip("nobody overtakes a transactional body on SQLite: it holds the only lock")
    monkeypatch.setitem(sample._MENU, "overtaken", be_overtaken)
    attempt(job.id)
    assert fresh(job).state == State.RETRYING
    assert not Group.objects.exists()
    assert not Job.objects.filter(task=note.name).exists()


def test_a_late_plain_body_cannot_take_back_what_it_enqueued(sent: list[str]) -> None:
    """As documented: a plain body's children are its own effects, like a mail that it sends."""
    job = running(add.delay(1, 2).id, lease=-1)
    rescue.rescue()
    with heartbeat.watching(job):
        child = note.delay("an orphan")
    assert fresh(child).state == State.RESERVED


def test_a_key_that_changed_hands_stays_with_its_new_owner(sent: list[str]) -> None:
    job = running(sample.Once.delay("x").id, lease=-1)
    rescue.rescue()
    with pytest.raises(MoveRefused), transaction.atomic():
        successors.replace(job, note.s("late"))
    assert Key.objects.get().job_id == job.pk
    assert keys.take(job.task, str(job.key), UUID(int=1), sample.Once.key_scope) == job.pk


# --- Bodies that do not stop ------------------------------------------------------------------------


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch, settings: Any) -> list[int]:
    """Signals with which this process would have been ended, as a child of a pool."""
    settings.JOBS = {"LEASE": 20, "HEARTBEAT": 5, "CANCEL_GRACE": 15}
    signals: list[int] = []
    monkeypatch.setattr(heartbeat, "_has_its_own_process", lambda entry: True)
    monkeypatch.setattr(heartbeat, "_guard", lambda entry: None)
    monkeypatch.setattr(heartbeat.os, "kill", lambda pid, how: signals.append(how))
    monkeypatch.setattr(heartbeat.signal, "pthread_kill", lambda thread, how: None)
    return signals


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Set the heartbeat's clock."""

    def set_clock(seconds: float) -> None:
        monkeypatch.setattr(heartbeat, "clock", lambda: seconds)

    set_clock(100.0)
    return set_clock


def body() -> heartbeat.Watched:
    """A body that began, and was renewed last, at 100 seconds."""
    return heartbeat.Watched(Job(pk=UUID(int=1), token=UUID(int=2)), thread=1, started=100.0, renewed=100.0)


@pytest.mark.parametrize(
    ("second", "told", "killed"), [(117.5, False, False), (118.5, True, False), (119.9, True, True)]
)
def test_a_body_without_a_lease_is_told_and_then_ended_before_the_lease_ends(
    ended: list[int], at: Callable[[float], None], second: float, told: bool, killed: bool
) -> None:
    entry = body()
    at(second)
    heartbeat._stop_in_time(entry)
    heartbeat._stop_in_time(entry)
    assert (isinstance(entry.stop, LeaseLost), ended == [signal.SIGKILL] * 2) == (told, killed)


@pytest.mark.parametrize(
    ("error", "innocent"),
    [(OperationalError("gone"), True), (InterfaceError("closed"), True), (None, False)],
)
def test_a_body_is_innocent_of_a_lease_that_ends_while_the_database_is_away(
    ended: list[int], at: Callable[[float], None], monkeypatch: pytest.MonkeyPatch, error: Exception, innocent: bool
) -> None:
    monkeypatch.setattr(heartbeat, "_database", outage.Outage(logging.getLogger("jobs.test"), ""))
    if error is not None:
        heartbeat._database.failed(error)
    entry = body()
    at(118.5)
    heartbeat._stop_in_time(entry)
    assert isinstance(entry.stop, LeaseNotRenewed) is innocent


def test_a_body_is_not_innocent_where_the_database_was_away_before(
    ended: list[int], at: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "_database", outage.Outage(logging.getLogger("jobs.test"), ""))
    heartbeat._database.failed(OperationalError("gone"))
    heartbeat._database.over()
    entry = body()
    at(118.5)
    heartbeat._stop_in_time(entry)
    assert type(entry.stop) is LeaseLost


def test_many_outages_in_a_row_are_no_poison() -> None:
    found = sample.add.delay(1, 2)
    for _ in range(7):
        lifecycle.reserve_due(1)
        job = lifecycle.claim(found.id, token=uuid4(), worker="w", pid=1, lease=timedelta(seconds=20))
        assert job is not None
        conclusion.conclude(job, RetryPolicy().classify(LeaseNotRenewed("away")), Report())
    job = Job.objects.get(pk=found.id)
    assert (job.state, job.losses) == (State.PENDING, 0)


@pytest.mark.parametrize(("second", "killed"), [(114.0, False), (117.0, True)])
def test_a_body_that_ignores_its_cancel_is_ended_after_the_grace(
    ended: list[int], at: Callable[[float], None], second: float, killed: bool
) -> None:
    entry = body()
    at(101.0)
    heartbeat._interrupt(entry, JobCancelled("not wanted"))
    at(second)
    entry.renewed = second
    heartbeat._stop_in_time(entry)
    assert bool(ended) is killed


def test_a_body_that_ended_is_not_ended_with_its_process(ended: list[int], at: Callable[[float], None]) -> None:
    entry = body()
    at(119.9)
    heartbeat._interrupt(entry, LeaseLost("late"))
    entry.over = True
    heartbeat._stop_in_time(entry)
    assert ended == []


def test_a_body_that_shares_its_process_is_told_and_left(
    ended: list[int], at: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "_has_its_own_process", lambda entry: False)
    entry = body()
    at(150.0)
    heartbeat._stop_in_time(entry)
    assert isinstance(entry.stop, LeaseLost)
    assert ended == []


def plain_job() -> Any:
    """As much of a job as its heartbeat needs."""
    return SimpleNamespace(pk=uuid4(), token=uuid4(), time_limit=None, progress=None)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch, settings: Any) -> None:
    """A lease of two seconds that nobody renews."""
    monkeypatch.setattr(heartbeat, "BEAT", 0.2)
    monkeypatch.setattr(heartbeat, "_has_its_own_process", lambda entry: True)
    monkeypatch.setattr(heartbeat, "_database_round", lambda: time.sleep(1))
    monkeypatch.setattr(heartbeat, "_interrupt", lambda entry, error: setattr(entry, "stop", error))
    settings.JOBS = {"LEASE": 2, "HEARTBEAT": 0.1}


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize(
    ("library", "ending"),
    [(ctypes.CDLL(None), -signal.SIGKILL), (ctypes.PyDLL(None), 1)],
    ids=["lets other threads run", "lets no thread run"],
)
def test_a_body_in_c_code_is_ended_with_its_process_when_its_lease_ends(short: None, library: Any, ending: int) -> None:
    job = plain_job()
    child = os.fork()
    if not child:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        with heartbeat.watching(job):
            library.sleep(20)
        os._exit(0)
    began = time.monotonic()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == ending
    assert time.monotonic() - began < 3


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_process_whose_bodies_ended_in_time_lives_on(short: None) -> None:
    child = os.fork()
    if not child:
        for _ in range(2):
            job = plain_job()
            with heartbeat.watching(job):
                time.sleep(1.0)
        time.sleep(2.5)
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_body_that_stood_still_past_its_lease_is_ended_at_once_when_it_goes_on(short: None) -> None:
    child = os.fork()
    if not child:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        with heartbeat.watching(plain_job()):
            time.sleep(20)
        os._exit(0)
    time.sleep(1.2)
    os.kill(child, signal.SIGSTOP)
    time.sleep(2)
    os.kill(child, signal.SIGCONT)
    thawed = time.monotonic()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0
    assert time.monotonic() - thawed < 0.6


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_that_a_body_forks_can_end() -> None:
    heartbeat._guard(body())
    child = os.fork()
    if not child:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(3)
        faulthandler.cancel_dump_traceback_later()  # as Python does where a process ends by itself
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert heartbeat._guarded_at == float("-inf"), "it is to be set anew"
