"""The event loop's connection to PostgreSQL: whatever happens to it, whoever asked is told; and what it is asked."""

from __future__ import annotations

import fcntl
import resource
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from time import monotonic
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.db import connection, connections
from kombu.asynchronous import Hub

from jobs import lifecycle
from jobs.lifecycle import Completion
from jobs.models import Allotment, Job, Pause
from jobs.nonblocking import LAST_ANSWER, Nonblocking
from jobs.statements import Statement
from jobs.states import State
from tests.conftest import WaitUntil
from tests.environment import DATABASE
from tests.platform import fresh
from tests.sample.tasks import note

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(DATABASE == "sqlite", reason="only PostgreSQL is asked by the event loop"),
]

LENGTH = Statement("length", "SELECT length(%s::text)")
SLEEP = Statement("sleep", "SELECT 1 FROM pg_sleep(%s)")
BIG = 12_000_000  # bytes; no socket takes so many at once


@pytest.fixture
def hub() -> Iterator[Hub]:
    """An event loop, which runs as long as ``turn`` says."""
    hub = Hub()
    hub.call_repeatedly(0.01, lambda: None)
    yield hub
    hub.close()


def turn(hub: Hub, until: Callable[[], Any], seconds: float = 5) -> bool:
    """Let the loop run until something holds; whether it does."""
    end = monotonic() + seconds
    while not until() and monotonic() < end:
        hub.run_once()
    return bool(until())


@pytest.fixture
def line(hub: Hub, wait_until: WaitUntil) -> Iterator[Nonblocking]:
    """A line that is connected."""
    line = Nonblocking(hub, [LENGTH, SLEEP], lambda: None)
    line.look()
    assert turn(hub, lambda: line.connected)
    yield line
    line.close()
    end_sessions()
    wait_until(lambda: not backends())


@pytest.fixture
def answers() -> list[Any]:
    """What those who asked were told."""
    return []


def backends() -> int:
    """How many others have a session on this database."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid != pg_backend_pid() "
            "AND backend_type = 'client backend'"
        )
        return int(cursor.fetchone()[0])


def end_sessions() -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid != pg_backend_pid() "
            "AND backend_type = 'client backend'"
        )


# --- Asking -----------------------------------------------------------------------------------------


def test_a_question_that_the_socket_does_not_take_at_once_is_answered(
    hub: Hub, line: Nonblocking, answers: list[Any]
) -> None:
    line.ask([(LENGTH, ["x" * BIG])], answers.append)
    assert turn(hub, lambda: answers)
    assert answers == [[[(BIG,)]]]


def test_what_is_asked_alone_is_understood_as_what_is_asked_with_others(
    hub: Hub, line: Nonblocking, answers: list[Any]
) -> None:
    for words in ("it's", "", "é%s", "\\", "a\nb"):
        line.ask([(LENGTH, [words])], answers.append)
        assert turn(hub, lambda: answers)
        line.ask([(LENGTH, [words]), (LENGTH, [words])], answers.append)
        assert turn(hub, lambda: len(answers) > 1)
        assert answers == [[[(len(words),)]], [[(len(words),)]] * 2]
        answers.clear()


def test_small_and_big_questions_follow_each_other(hub: Hub, line: Nonblocking, answers: list[Any]) -> None:
    sizes = [BIG, 1, BIG, BIG, 2]
    for number, size in enumerate(sizes, start=1):
        line.ask([(LENGTH, ["x" * size])], answers.append)
        assert turn(hub, lambda number=number: len(answers) == number)
    assert answers == [[[(size,)]] for size in sizes]


def test_an_answer_that_was_read_as_the_question_was_sent_is_told(
    hub: Hub, line: Nonblocking, answers: list[Any], wait_until: WaitUntil
) -> None:
    line.ask([(LENGTH, ["x" * BIG])], answers.append)

    def read() -> bool:
        line._pgconn.consume_input()
        return not line._pgconn.is_busy()

    wait_until(read, every=0.001)
    assert turn(hub, lambda: answers, seconds=2)


def test_the_loop_rests_while_it_waits_for_an_answer(hub: Hub, line: Nonblocking, answers: list[Any]) -> None:
    line.ask([(LENGTH, ["x" * BIG]), (SLEEP, [0.5])], answers.append)
    rounds: list[int] = []
    hub.on_tick.add(lambda: rounds.append(1))
    turn(hub, lambda: not hub.writers)
    rounds.clear()
    assert turn(hub, lambda: answers)
    assert len(rounds) < 100


def test_who_asked_is_told_that_the_connection_is_lost(hub: Hub, line: Nonblocking, answers: list[Any]) -> None:
    line.ask([(SLEEP, [60])], answers.append)
    end_sessions()
    assert turn(hub, lambda: answers)
    assert (answers, line.connected, hub.readers, hub.writers) == ([None], False, {}, {})


def test_who_cannot_go_on_with_an_answer_costs_nobody_the_connection(
    hub: Hub, line: Nonblocking, answers: list[Any]
) -> None:
    def fail(rows: Any) -> None:
        raise ZeroDivisionError

    line.ask([(LENGTH, ["x"])], fail)
    assert line.wait(5)
    assert line.connected
    line.ask([(LENGTH, ["xy"])], answers.append)
    assert turn(hub, lambda: answers)


# --- Waiting without the loop -----------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, BIG], ids=["small", "big"])
def test_an_answer_can_be_waited_for_without_the_loop(line: Nonblocking, answers: list[Any], size: int) -> None:
    line.ask([(LENGTH, ["x" * size])], answers.append)
    assert line.wait(5)
    assert answers == [[[(size,)]]]


def test_who_waits_is_told_that_no_answer_came(hub: Hub, line: Nonblocking, answers: list[Any]) -> None:
    line.ask([(SLEEP, [0.5])], answers.append)
    assert not line.wait(0.05)
    assert answers == []
    assert turn(hub, lambda: answers)


def test_nobody_waits_where_nothing_was_asked(line: Nonblocking) -> None:
    assert line.wait(60)


def test_what_is_asked_because_of_an_answer_is_not_waited_for(line: Nonblocking, answers: list[Any]) -> None:
    def ask_again(rows: Any) -> None:
        answers.append(rows)
        line.ask([(SLEEP, [60])], answers.append)

    line.ask([(LENGTH, ["x"])], ask_again)
    assert line.wait(5)
    assert len(answers) == 1


# --- Closing ----------------------------------------------------------------------------------------


@pytest.fixture
def high(line: Nonblocking) -> Iterator[int]:
    """The line's socket under a number above those that ``select()`` takes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2048:
        pytest.skip("this system allows no such descriptor")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    line._hub.remove(line._socket)
    line._socket = fcntl.fcntl(line._socket, fcntl.F_DUPFD, 1024)
    yield line._socket
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("high")
def test_a_line_with_a_high_descriptor_is_closed_with_its_last_answer(line: Nonblocking, answers: list[Any]) -> None:
    line.ask([(LENGTH, ["xyz"])], answers.append)
    line.close()
    assert (answers, line.connected) == ([[[(3,)]]], False)


def test_a_line_that_is_closed_waits_no_longer_than_it_says(line: Nonblocking, answers: list[Any]) -> None:
    line.ask([(SLEEP, [60])], answers.append)
    began = monotonic()
    line.close()
    assert monotonic() - began < LAST_ANSWER + 1
    assert (answers, line.connected) == ([None], False)


def test_whatever_fails_in_the_wait_the_connection_is_given_back(
    line: Nonblocking, answers: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(seconds: float) -> None:
        raise OSError("the descriptor is bad")

    monkeypatch.setattr(line, "_await", fail)
    line.ask([(SLEEP, [60])], answers.append)
    line.close()
    assert (answers, line.connected) == ([None], False)


def test_a_line_that_is_closed_while_it_connects_leaves_nothing_behind(hub: Hub, wait_until: WaitUntil) -> None:
    before = backends()
    line = Nonblocking(hub, [LENGTH], lambda: None)
    line.look()
    wait_until(lambda: backends() > before and not connecting())
    line.close()
    hub.run_once()
    wait_until(lambda: backends() == before)
    assert (line.connected, hub.readers) == (False, {})


def connecting() -> bool:
    """Whether a thread makes a connection."""
    return any(thread.name == "mainstay-connect" for thread in threading.enumerate())


def test_a_line_that_is_closed_does_not_connect_again(hub: Hub) -> None:
    line = Nonblocking(hub, [LENGTH], lambda: None)
    line.close()
    line.look()
    assert not connecting()


# --- What it is asked -------------------------------------------------------------------------------


@pytest.fixture
def reserved(sent: list[str]) -> list[Job]:
    """Jobs that are on their way."""
    return [fresh(note.delay(f"n{number}")) for number in range(3)]


def claim_many(jobs: Sequence[Job]) -> set[UUID]:
    """Claim jobs together; return those that were."""
    tokens = {job.pk: uuid4() for job in jobs}
    with connection.cursor() as cursor:
        given = ["worker", 1, list(tokens), list(tokens.values())]
        lifecycle.claiming_many(timedelta(seconds=60)).run(connection, cursor, given)
        claimed = {lifecycle.id_in(row) for row in cursor.fetchall()}
    now = Job.objects.in_bulk(claimed)
    assert all((job.state, job.attempt, job.token) == (State.RUNNING, 1, tokens[pk]) for pk, job in now.items())
    return claimed


def test_jobs_are_claimed_together_each_with_its_token(reserved: list[Job]) -> None:
    assert claim_many(reserved[::-1]) == {job.pk for job in reserved}


@pytest.mark.parametrize(
    "changes",
    [
        {"max_attempts": 1},
        {"losses": 1},
        {"attempt": 1},
        {"state": State.PENDING},
        {"cancel_requested_at": lifecycle.database_now},
        {"expires_at": lifecycle.database_now},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_job_is_left_out_that_is_not_to_be_claimed_ahead(reserved: list[Job], changes: dict[str, Any]) -> None:
    values = {name: value() if callable(value) else value for name, value in changes.items()}
    Job.objects.filter(pk=reserved[1].pk).update(**values)
    assert claim_many(reserved) == {reserved[0].pk, reserved[2].pk}


@pytest.mark.parametrize("scope", ["queue", "task"])
def test_a_job_is_left_out_whose_queue_or_task_has_a_limit_that_was_set_live(reserved: list[Job], scope: str) -> None:
    Job.objects.filter(pk=reserved[1].pk).update(**{scope: "other"})
    now = lifecycle.database_now()
    Allotment.objects.create(kind="slots", name=f"{scope} other", amount=1, burst=1, created_at=now)
    assert claim_many(reserved) == {reserved[0].pk, reserved[2].pk}


@pytest.mark.parametrize("scope", ["queue", "task"])
def test_a_job_is_left_out_whose_queue_or_task_is_paused(reserved: list[Job], scope: str) -> None:
    Job.objects.filter(pk=reserved[1].pk).update(**{scope: "other"})
    Pause.objects.create(kind=scope, name="other", created_at=lifecycle.database_now())
    assert claim_many(reserved) == {reserved[0].pk, reserved[2].pk}


@pytest.fixture
def locked(reserved: list[Job]) -> Iterator[Job]:
    """One of these jobs, whose row another session keeps locked."""
    other = connections["default"].copy()
    with other.cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute("SELECT 1 FROM jobs_job WHERE id = %s FOR UPDATE", [reserved[1].pk])
    yield reserved[1]
    other.close()


def test_a_row_that_somebody_keeps_locked_holds_up_no_claim(reserved: list[Job], locked: Job) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SET lock_timeout = '2s'")  # so that this ends where it would wait
        began = monotonic()
        assert claim_many(reserved) == {reserved[0].pk, reserved[2].pk}
        assert monotonic() - began < 1
        cursor.execute("RESET lock_timeout")


def test_a_job_that_others_refer_to_just_now_is_claimed(reserved: list[Job]) -> None:
    other = connections["default"].copy()
    with other.cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute("SELECT 1 FROM jobs_job WHERE id = %s FOR KEY SHARE", [reserved[1].pk])
        assert claim_many(reserved) == {job.pk for job in reserved}
    other.close()


def test_outcomes_are_given_in_the_order_in_which_rows_are_locked() -> None:
    ones = [Completion(uuid4(), number, uuid4(), str(number)) for number in range(20)]
    ids, attempts, tokens, results = lifecycle.completions_given(ones)
    given = zip(ids, attempts, tokens, results, strict=True)
    assert ids == sorted(ids)
    assert set(given) == {(one.job_id, one.attempt, one.token, one.result) for one in ones}
