"""Outcomes that a thread records: one that cannot be recorded costs no other, and none is counted too early."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from typing import Any
from uuid import uuid4

import pytest
from django.db import DataError, ProgrammingError

from jobs import completer, lifecycle
from jobs.completer import Completer, Handed
from jobs.lifecycle import Completion
from jobs.models import Job
from jobs.states import State
from tests.conftest import WaitUntil
from tests.environment import DATABASE
from tests.platform import fresh, running
from tests.sample.tasks import note

# --- Recording --------------------------------------------------------------------------------------


@pytest.fixture
def claimed(db: None, sent: list[str], monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """Jobs whose bodies have returned; what is recorded of them stays in the transaction of the test."""
    monkeypatch.setattr(completer, "_connection", nullcontext)
    return [running(note.delay(f"n{number}").id) for number in range(3)]


def record(jobs: Sequence[Job], results: Sequence[str] = ('"done"',) * 3) -> None:
    ones = [Completion.of(job, result) for job, result in zip(jobs, results, strict=True)]
    assert completer._record(ones) == set()


def states(jobs: Sequence[Job]) -> list[str]:
    return [fresh(job).state for job in jobs]


@pytest.mark.parametrize("error", [ProgrammingError("?"), DataError("?"), MemoryError(), TypeError("?")], ids=repr)
def test_outcomes_that_cannot_be_recorded_together_are_recorded_one_by_one(
    claimed: list[Job], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(completions: Any) -> None:
        raise error

    monkeypatch.setattr(lifecycle, "complete_many", fail)
    record(claimed)
    assert states(claimed) == [State.COMPLETED] * 3


def test_an_outcome_that_cannot_be_recorded_costs_only_itself(
    claimed: list[Job], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    seen = lifecycle.seen

    def sometimes(job_id: Any) -> Job | None:
        if job_id == claimed[1].pk:
            raise ProgrammingError("it cannot be read")
        return seen(job_id)

    monkeypatch.setattr(lifecycle, "complete_many", lambda completions: set())
    monkeypatch.setattr(lifecycle, "seen", sometimes)
    record(claimed)
    assert states(claimed) == [State.COMPLETED, State.RUNNING, State.COMPLETED]
    assert str(claimed[1].pk) in caplog.text


@pytest.mark.skipif(DATABASE == "sqlite", reason="SQLite takes it")
def test_a_result_that_postgresql_refuses_fails_its_own_job(claimed: list[Job]) -> None:
    record(claimed, ['"done"', '"\x00"', '"done"'])
    assert states(claimed) == [State.COMPLETED, State.FAILED, State.COMPLETED]


# --- The thread -------------------------------------------------------------------------------------


class Slow:
    """Records nothing, as slowly as it is told."""

    def __init__(self) -> None:
        self.begun: list[Completion] = []
        self.gates: dict[Completion, threading.Event] = {}

    def __call__(self, completions: Sequence[Completion]) -> set[Completion]:
        self.begun += completions
        for one in completions:
            self.gates[one].wait(10)
        return set()

    def outcome(self) -> Handed:
        one = Completion(uuid4(), 1, uuid4(), None)
        self.gates[one] = threading.Event()
        return Handed(one, lambda: None)

    def release(self, handed: Handed) -> None:
        self.gates[handed.completion].set()


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[Slow]:
    """What records, in place of the database."""
    slow = Slow()
    monkeypatch.setattr(completer, "_record", slow)
    yield slow
    for gate in slow.gates.values():
        gate.set()


def test_two_who_record_at_once_start_one_thread(slow: Slow, monkeypatch: pytest.MonkeyPatch) -> None:
    line, meeting, made = Completer(), threading.Barrier(2), list[threading.Thread]()

    def thread(**options: Any) -> threading.Thread:
        with suppress(threading.BrokenBarrierError):
            meeting.wait(0.5)  # only two who are here at once go on before that
        made.append(threading.Thread(**options))
        return made[-1]

    outcomes = [slow.outcome(), slow.outcome()]
    callers = [threading.Thread(target=line.record, args=[one]) for one in outcomes]
    monkeypatch.setattr(completer, "threading", Patched(thread))
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    for one in outcomes:
        slow.release(one)
    assert line.finish(10)
    assert len(made) == 1


class Patched:
    """The module ``threading`` with another maker of threads."""

    def __init__(self, thread: Callable[..., threading.Thread]) -> None:
        self.Thread = thread

    def __getattr__(self, name: str) -> Any:
        return getattr(threading, name)


def test_nobody_is_told_that_all_is_recorded_while_something_is_not(slow: Slow, wait_until: WaitUntil) -> None:
    line, first, second = Completer(), slow.outcome(), slow.outcome()
    line._thread = threading.current_thread()
    threads = [threading.Thread(target=line._run, daemon=True) for _ in range(2)]
    for number, (thread, one) in enumerate(zip(threads, (first, second), strict=True), start=1):
        thread.start()
        line.record(one)
        wait_until(lambda number=number: len(slow.begun) == number)
    slow.release(first)
    wait_until(lambda: line._recorded)
    assert not line.finish(0.05)
    slow.release(second)
    assert line.finish(10)
