"""Bursts whose callers have transactions open at the same time: nobody waits long, no call is lost."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection, connections, transaction
from django.db.models import F

from jobs import gathering, release
from jobs.models import Burst, Call, Job
from jobs.states import State
from tests import platform
from tests.platform import fresh
from tests.sample.tasks import calmly, sparingly

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif("connection.vendor == 'sqlite'", reason="SQLite has one writer at a time"),
]


@pytest.fixture(autouse=True)
def nothing_leaves(sent: list[str]) -> None:
    """Nothing goes to a broker."""


class Caller:
    """Somebody whose transaction is open until told otherwise."""

    def __init__(self, pool: ThreadPoolExecutor, call: Callable[[], Any]) -> None:
        self._may_end, self._called = threading.Event(), threading.Event()
        self.id, self._commits = "", True
        self._future: Future[None] = pool.submit(self._run, call)
        assert self._called.wait(10)

    def _run(self, call: Callable[[], Any]) -> None:
        try:
            with transaction.atomic():
                self.id = call().id
                self._called.set()
                self._may_end.wait(30)
                transaction.set_rollback(not self._commits)
        finally:
            self._called.set()
            connections.close_all()

    def end(self, *, commit: bool = True) -> None:
        """Let the transaction end."""
        self._commits = commit
        self._may_end.set()
        self._future.result(10)


@pytest.fixture
def calling() -> Iterator[Callable[[Callable[[], Any]], Caller]]:
    """Begin a transaction that calls, and stays open."""
    callers: list[Caller] = []
    with ThreadPoolExecutor(8) as pool:

        def begin(call: Callable[[], Any]) -> Caller:
            callers.append(Caller(pool, call))
            return callers[-1]

        yield begin
        for caller in callers:
            caller._may_end.set()


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """It takes no longer."""
    began = time.monotonic()
    yield
    assert time.monotonic() - began < seconds


def later(seconds: float) -> None:
    """Let time pass for what is committed; rows that others hold are not waited for."""
    ago = timedelta(seconds=seconds)
    with transaction.atomic():
        ids = list(Burst.objects.select_for_update(skip_locked=True).values_list("pk", flat=True))
        Burst.objects.filter(pk__in=ids).update(first_at=F("first_at") - ago, look_at=F("look_at") - ago)
    Call.objects.update(at=F("at") - ago)


def to_be_looked_at() -> None:
    """The conductor looks at all bursts each time."""
    Burst.objects.update(look_at=F("look_at") - timedelta(hours=1))


def quiet_for(seconds: float) -> None:
    """So long since the last call that is committed."""
    Call.objects.update(at=F("at") - timedelta(seconds=seconds))


def runs() -> list[str]:
    """What ran, of all that may go."""
    gathering.let_go()
    release.release()
    due = Job.objects.filter(state=State.RESERVED).order_by("pk")
    return [platform.attempt(pk).retval for pk in due.values_list("pk", flat=True)]


def test_callers_of_an_open_burst_do_not_wait_for_each_other(calling: Any) -> None:
    first = calmly.delay(7, "a")
    open_one = calling(lambda: calmly.delay(7, "b"))
    with within(0.2):
        assert calmly.delay(7, "c").id == first.id == open_one.id
    open_one.end()


def test_a_burst_waits_for_who_is_calling(calling: Any) -> None:
    first = calmly.delay(7, "a")
    to_be_looked_at()
    open_one = calling(lambda: calmly.delay(7, "b"))
    quiet_for(31)
    assert runs() == []
    open_one.end()
    later(31)
    assert runs() == ["7 b"]
    assert fresh(first).state == State.COMPLETED


def test_a_burst_does_not_wait_for_ever_and_what_comes_late_is_the_next_one(
    calling: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gathering, "GRACE", 0.1)
    first = calmly.delay(7, "a")
    to_be_looked_at()
    open_one = calling(lambda: calmly.delay(7, "b"))
    quiet_for(31)
    assert runs() == ["7 a"]
    assert fresh(first).state == State.COMPLETED
    open_one.end()
    later(40)
    assert runs() == []
    later(40)
    assert runs() == ["7 b"]
    assert not Burst.objects.exists()
    assert not Call.objects.exists()


def test_what_comes_late_and_is_rolled_back_was_never_called(calling: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering, "GRACE", 0.1)
    calmly.delay(7, "a")
    to_be_looked_at()
    open_one = calling(lambda: calmly.delay(7, "b"))
    quiet_for(31)
    assert runs() == ["7 a"]
    open_one.end(commit=False)
    later(80)
    assert runs() == []
    assert Job.objects.count() == 1
    assert not Burst.objects.exists()


def test_who_finds_a_burst_that_an_open_transaction_began_waits_a_moment_only(calling: Any) -> None:
    open_one = calling(lambda: calmly.delay(7, "a"))
    with within(1.0):
        second = calmly.delay(7, "b")
    assert second.id != open_one.id
    with within(0.2):
        assert calmly.delay(7, "c").id == second.id
    open_one.end()


def test_bursts_that_began_beside_each_other_become_one_run(calling: Any) -> None:
    open_one = calling(lambda: calmly.delay(7, "a"))
    second = calmly.delay(7, "b")
    open_one.end()
    later(31)
    assert runs() == ["7 b"]
    assert {fresh(second).state, Job.objects.get(pk=open_one.id).state} == {State.COMPLETED}
    assert Job.objects.filter(attempt=1).count() == 1


def test_a_burst_that_is_rolled_back_leaves_the_other_one(calling: Any) -> None:
    open_one = calling(lambda: calmly.delay(7, "a"))
    second = calmly.delay(7, "b")
    open_one.end(commit=False)
    later(31)
    assert runs() == ["7 b"]
    assert list(Job.objects.values_list("pk", flat=True)) == [fresh(second).pk]


def test_keys_called_in_two_orders_are_no_deadlock(calling: Any) -> None:
    both = [calling(lambda a=a: calmly.delay(a, "x")) for a in (1, 2)]
    with transaction.atomic():
        with within(2.0):
            calmly.delay(1, "y")
            calmly.delay(2, "y")
        with connection.cursor() as cursor:
            cursor.execute("SELECT current_setting('lock_timeout')")
            assert cursor.fetchone() == ("0",)
    for one in both:
        one.end()
    later(31)
    assert sorted(runs()) == ["1 y", "2 y"]


def test_a_throttle_that_two_began_at_once_has_one_first_run(calling: Any) -> None:
    open_one = calling(lambda: sparingly.delay(7, "a"))
    sparingly.delay(7, "b")
    assert runs() == ["7 b"]
    open_one.end()
    assert runs() == []
    later(10)
    assert runs() == []
    Job.objects.update(started_at=F("started_at") - timedelta(seconds=61))
    later(61)
    assert runs() == ["7 a"]


def test_first_callers_at_once_have_one_job() -> None:
    gate = threading.Barrier(8)

    def call(number: int) -> set[str]:
        try:
            gate.wait(10)
            return {calmly.delay(key, str(number)).id for key in range(20)}
        finally:
            connections.close_all()

    with ThreadPoolExecutor(8) as pool:
        ids = set().union(*pool.map(call, range(8)))
    assert len(ids) == Job.objects.count() == 20
    later(31)
    assert len(runs()) == 20


def test_two_conductors_let_a_burst_go_once() -> None:
    for number in range(30):
        calmly.delay(number, "x")
    later(31)

    def let_go(_: int) -> int:
        try:
            return gathering.let_go()
        finally:
            connections.close_all()

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(let_go, range(4))) == 30
    assert len(runs()) == 30
