"""The heartbeat keeps what a body says of itself, renews its lease whatever happens, and stops it in time.

The worker's report of itself is as hard to end.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from datetime import UTC, datetime
from decimal import Decimal
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.db import OperationalError, connection, transaction

from jobs import heartbeat, lifecycle, slots, worker
from jobs.errors import LeaseLost, PayloadError
from jobs.models import Job, Worker
from jobs.roll import Entry
from jobs.states import State
from tests.environment import DATABASE
from tests.platform import attempt, fresh, running
from tests.sample import tasks as sample

pytestmark = pytest.mark.django_db

NOON = datetime(2030, 5, 1, 12, tzinfo=UTC)
DEEP: list[Any] = []
for _ in range(700):
    DEEP = [DEEP]


WaitUntil = Callable[..., Any]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, settings: Any, committed: None, sent: list[str]) -> Iterator[None]:
    """A heartbeat of this process with short times, which leaves no connection open."""
    monkeypatch.setattr(heartbeat, "BEAT", 0.2)
    settings.JOBS = {"LEASE": 3, "HEARTBEAT": 0.1}
    yield
    if connection.vendor == "postgresql":
        others_are_gone()


def others_are_gone() -> None:
    """Wait until no other connection to the test database is left: it could not be dropped."""
    others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    for _ in range(200):
        with connection.cursor() as cursor:
            cursor.execute(others)
            if cursor.fetchone() == (0,):
                return
        time.sleep(0.05)
    raise AssertionError("the heartbeat keeps its connection")


def told(monkeypatch: pytest.MonkeyPatch, say: Any) -> Job:
    """A job whose body said something of its progress, after its attempt."""
    monkeypatch.setattr(sample.obedient, "run", lambda: say(sample.obedient))
    job = sample.obedient.delay()
    attempt(job.id)
    found: Job = fresh(job)
    return found


# --- What a body says of itself ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("meta", "kept"),
    [
        ({"at": NOON}, {"at": "2030-05-01T12:00:00+00:00"}),
        ({"sum": Decimal("1.50")}, {"sum": "1.50"}),
        ({"id": UUID(int=7)}, {"id": UUID(int=7).hex}),
        ({"raw": b"abc"}, {"raw": "abc"}),
        ({"pair": (1, None)}, {"pair": [1, None]}),
        ({"__type__": "mine", "__value__": 1, "more": 2}, {"__type__": "mine", "__value__": 1, "more": 2}),
        ({"text": "nul \x00 and surrogate \ud800"}, {"text": "nul \ufffd and surrogate ?"}),
    ],
    ids=["time", "decimal", "uuid", "bytes", "tuple", "not kombu's", "not storable"],
)
def test_a_custom_state_is_kept_as_plain_json(monkeypatch: pytest.MonkeyPatch, meta: Any, kept: Any) -> None:
    job = told(monkeypatch, lambda task: task.update_state(state="COUNTING", meta=meta))
    assert (job.state, job.progress) == (State.COMPLETED, {"celery_state": "COUNTING", "meta": kept})


@pytest.mark.parametrize("meta", [{"what": object()}, {"what": float("nan")}, {(1, 2): "what"}, {"what": DEEP}])
def test_a_custom_state_that_is_not_json_is_kept_as_it_would_be_printed(
    monkeypatch: pytest.MonkeyPatch, meta: Any
) -> None:
    job = told(monkeypatch, lambda task: task.update_state(state="COUNTING", meta=meta))
    assert job.state == State.COMPLETED
    assert "what" in job.progress["meta"]


def test_progress_of_decimals_does_not_fail_the_completion(monkeypatch: pytest.MonkeyPatch) -> None:
    job = told(monkeypatch, lambda task: task.progress(Decimal("0.5"), 1))
    assert (job.state, job.progress["done"]) == (State.COMPLETED, "0.5")


def test_progress_that_is_not_json_is_an_error_in_the_body(monkeypatch: pytest.MonkeyPatch) -> None:
    def say(task: Any) -> None:
        with pytest.raises(PayloadError, match="not JSON"):
            task.progress(object())

    assert told(monkeypatch, say).state == State.COMPLETED


def test_what_was_said_does_not_change_with_the_bodys_own_value() -> None:
    counts = {"done": 1}
    entry = heartbeat.Watched(Job(), thread=0)
    entry.tell(counts)
    counts["done"] = 2
    assert entry.progress == {"done": 1}


# --- Rounds that fail -------------------------------------------------------------------------------


def renewals_of(job: Job) -> Callable[[], bool]:
    """Whether the lease of a job was renewed twice since now."""
    seen = {job.lease_until}

    def renewed() -> bool:
        seen.add(fresh(job).lease_until)
        return len(seen) > 2

    return renewed


def test_a_lease_is_renewed_while_its_body_runs(quick: None, wait_until: WaitUntil) -> None:
    job = running(sample.add.delay(1, 2).id)
    with heartbeat.watching(job):
        wait_until(renewals_of(job))


def test_progress_that_cannot_be_written_does_not_keep_the_lease_from_being_renewed(
    quick: None, wait_until: WaitUntil
) -> None:
    job = running(sample.add.delay(1, 2).id)
    with heartbeat.watching(job) as entry:
        entry.progress = {"at": NOON}
        wait_until(renewals_of(job))
        entry.tell({"done": 1})
        wait_until(lambda: fresh(job).progress == {"done": 1})


@pytest.mark.parametrize("act", ["_beat", "_look"])
def test_a_round_that_fails_is_followed_by_the_next(
    quick: None, wait_until: WaitUntil, monkeypatch: pytest.MonkeyPatch, settings: Any, act: str
) -> None:
    settings.JOBS = {"LEASE": 30, "HEARTBEAT": 0.1}  # it must outlast two rounds of a second, on a busy machine
    failures: list[str] = []
    original = getattr(heartbeat, act)

    def fail_twice(*args: Any) -> None:
        if len(failures) < 2:
            failures.append(act)
            raise RuntimeError(act)
        original(*args)

    monkeypatch.setattr(heartbeat, act, fail_twice)
    job = running(sample.add.delay(1, 2).id)
    with heartbeat.watching(job):
        wait_until(renewals_of(job))
    assert failures == [act] * 2


def test_a_body_that_cannot_be_renewed_costs_the_others_nothing(
    quick: None, wait_until: WaitUntil, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = (running(sample.add.delay(1, n).id) for n in range(2))
    original = heartbeat._renew

    def renew(entry: heartbeat.Watched) -> None:
        if entry.job.pk == bad.pk:
            raise RuntimeError("bad")
        original(entry)

    monkeypatch.setattr(heartbeat, "_renew", renew)
    with heartbeat.watching(bad), heartbeat.watching(good):
        wait_until(renewals_of(good))


# --- A database that hangs --------------------------------------------------------------------------


def sleep_through(job: Job) -> None:
    """Be the body of a job for ten seconds."""
    with heartbeat.watching(job):
        until = time.monotonic() + 10
        while time.monotonic() < until:
            time.sleep(0.01)


def stopped_after(job: Job) -> float:
    """How many seconds the body of a job ran until it was interrupted."""
    began = time.monotonic()
    with pytest.raises(LeaseLost):
        sleep_through(job)
    return time.monotonic() - began


def test_a_body_is_stopped_before_its_lease_ends_where_the_database_hangs(
    quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    back = threading.Event()
    monkeypatch.setattr(heartbeat, "_look", lambda entries: back.wait(20))
    try:
        assert stopped_after(running(sample.add.delay(1, 2).id, lease=3)) < 3
    finally:
        back.set()


@pytest.mark.skipif(DATABASE == "sqlite", reason="a file has no process that could be frozen")
@pytest.mark.skipif("TEST_DATABASE_URL" in os.environ, reason="the server is not ours to freeze")
def test_a_body_is_stopped_before_its_lease_ends_where_its_backend_is_frozen(
    quick: None, wait_until: WaitUntil, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen: list[int] = []
    original = heartbeat._look

    def freeze(entries: list[heartbeat.Watched]) -> None:
        if not frozen:
            frozen.append(lifecycle.database().connection.info.backend_pid)
            os.kill(frozen[0], signal.SIGSTOP)
        original(entries)

    monkeypatch.setattr(heartbeat, "_look", freeze)
    job = running(sample.add.delay(1, 2).id, lease=3)
    try:
        assert stopped_after(job) < 3
        assert lifecycle.database_now() < fresh(job).lease_until
    finally:
        os.kill(frozen[0], signal.SIGCONT)


class LateInterrupt:
    """A lock in whose taking the interrupt of a body arrives, once there is one."""

    def __init__(self) -> None:
        self.lock, self.pending = threading.Lock(), False

    def __enter__(self) -> None:
        if self.pending:
            self.pending = False
            raise LeaseLost("late")
        self.lock.acquire()

    def __exit__(self, *_: object) -> None:
        self.lock.release()


def test_an_interrupt_that_arrives_as_the_body_ends_leaves_nothing_behind(
    quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = LateInterrupt()
    monkeypatch.setattr(heartbeat, "_lock", lock)
    job = running(sample.add.delay(1, 2).id)
    with pytest.raises(LeaseLost, match="late"), heartbeat.watching(job):
        lock.pending = True
    assert job.pk not in heartbeat.held_here()


def test_a_body_that_was_left_behind_is_forgotten_when_its_thread_begins_another(quick: None) -> None:
    left, job = (running(sample.add.delay(1, n).id) for n in range(2))
    entry = heartbeat.Watched(left, threading.get_ident(), stop=LeaseLost("late"))
    heartbeat._enter(entry)
    with heartbeat.watching(job):
        assert heartbeat.held_here() == [job.pk]
        assert entry.over


@pytest.mark.skipif(DATABASE == "sqlite", reason="SQLite has no locks of rows")
def test_a_row_that_somebody_locked_costs_the_other_bodies_nothing(
    quick: None, wait_until: WaitUntil, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "PATIENCE", 0.1)
    locked, free = (running(sample.add.delay(1, n).id) for n in range(2))
    with heartbeat.watching(locked), heartbeat.watching(free), transaction.atomic():
        Job.objects.select_for_update().get(pk=locked.pk)
        wait_until(renewals_of(free), timeout=2.5)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_has_a_heartbeat_of_its_own_whatever_its_parent_held(quick: None) -> None:
    job = running(sample.add.delay(1, 2).id)
    with heartbeat.watching(job), heartbeat._lock:
        child = os.fork()
        if not child:
            signal.alarm(10)
            with heartbeat.watching(job):
                names = {thread.name for thread in threading.enumerate() if thread.is_alive()}
                os._exit(len(names & {"mainstay-heartbeat", "mainstay-clock"}))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2


# --- The report of a worker -------------------------------------------------------------------------


class Changing(set[Any]):
    """A set to which another thread adds during the first ``looks`` looks at it."""

    def __init__(self, looks: int, *requests: Any) -> None:
        super().__init__(requests)
        self.looks = looks

    def __iter__(self) -> Iterator[Any]:
        self.looks -= 1
        if self.looks >= 0:
            raise RuntimeError("Set changed size during iteration")
        return super().__iter__()


def instance() -> Any:
    """As much of a worker as its report needs."""
    queues = SimpleNamespace(consume_from={"default": None})
    return SimpleNamespace(
        app=SimpleNamespace(amqp=SimpleNamespace(queues=queues), tasks={}),
        hostname="w@here",
        concurrency=2,
        pool_cls=dict,
    )


def test_a_worker_reports_what_it_holds_while_that_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    job = sample.add.delay(1, 2)
    monkeypatch.setattr(worker.worker_state, "reserved_requests", Changing(3, job))
    worker.report(instance(), Entry("w@here"))
    assert Worker.objects.get().holds == [job.id]


def test_a_worker_that_cannot_tell_what_it_holds_reports_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker.worker_state, "reserved_requests", Changing(1000))
    with pytest.raises(RuntimeError, match="changed during each"):
        worker.report(instance(), Entry("w@here"))
    assert not Worker.objects.exists()


@pytest.mark.parametrize("error", [RuntimeError("odd"), OperationalError("gone")])
def test_a_report_that_fails_is_followed_by_the_next(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    stopping, reports = threading.Event(), []

    def report(*_: Any) -> None:
        reports.append(1)
        if len(reports) < 3:
            raise error
        stopping.set()

    monkeypatch.setattr(worker, "report", report)
    monkeypatch.setattr(worker, "REPORT_EVERY", 0.01)
    monkeypatch.setattr(worker.gate, "talking", nullcontext)
    worker._report_until(instance(), stopping)
    assert len(reports) == 3


# --- Bodies that hang -------------------------------------------------------------------------------


def hang(job: Job, until: threading.Event) -> threading.Thread:
    """Be the body of a job in a thread that waits in C: nobody can interrupt it."""

    def body() -> None:
        with suppress(LeaseLost), heartbeat.watching(job):
            until.wait(20)

    thread = threading.Thread(target=body)
    thread.start()
    return thread


@pytest.fixture
def hanging(quick: None) -> Iterator[Job]:
    """A job whose body hangs in a thread, past its time limit."""
    job, over = running(sample.add.delay(1, 2).id), threading.Event()
    job.time_limit = 0.01
    thread = hang(job, over)
    yield job
    over.set()
    thread.join()
    slots._told = 0


def test_a_body_that_goes_on_past_its_limit_and_its_lease_hangs(hanging: Job, wait_until: WaitUntil) -> None:
    assert heartbeat.hung() == []
    wait_until(lambda: [entry.job.pk for entry in heartbeat.hung()] == [hanging.pk])
    assert str(heartbeat.hung()[0].stop) == "hung past its time limit of 0.01 s"


def test_a_body_that_hangs_beside_the_next_attempt_is_not_forgotten(hanging: Job, wait_until: WaitUntil) -> None:
    wait_until(heartbeat.hung)
    following = fresh(hanging)
    following.token = uuid4()
    with heartbeat.watching(following) as entry:
        assert heartbeat.watched(hanging.pk) is entry
        assert [hung.job.token for hung in heartbeat.hung()] == [hanging.token]
    assert [hung.job.token for hung in heartbeat.hung()] == [hanging.token]


def test_a_worker_tells_of_a_slot_that_is_held_for_good(
    hanging: Job, wait_until: WaitUntil, caplog: pytest.LogCaptureFixture
) -> None:
    wait_until(heartbeat.hung)
    assert [slots.held_for_good(4) for _ in range(3)] == [1, 1, 1]
    told = [record.getMessage() for record in caplog.records if record.name == "jobs.slots"]
    assert len(told) == 1
    assert told[0].startswith("1 of 4 slots are held by bodies that cannot be stopped")
    assert str(hanging.pk) in told[0]


def test_a_worker_all_of_whose_slots_are_held_for_good_ends(
    hanging: Job, wait_until: WaitUntil, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    wait_until(heartbeat.hung)
    slots.held_for_good(2)
    assert ended == []
    slots.held_for_good(1)
    assert ended == [slots.EXIT]


def test_a_worker_with_no_body_that_hangs_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    assert slots.held_for_good(0) == 0
    assert caplog.records == []
