"""What a task may declare of breakers, and how a circuit moves: whatever happens, in whatever order."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery.exceptions import Retry
from hypothesis import given
from hypothesis import strategies as st

from jobs.breaker import Breaker, Phase, Standing, completed, failed, passage
from jobs.errors import DeclarationError
from jobs.failures import Failure, Kind
from jobs.task import Task, task

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def later(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("declare", "words"),
    [
        (lambda: Breaker("x", failures=0), "from 1 to 1,000"),
        (lambda: Breaker("x", failures=True), "from 1 to 1,000"),
        (lambda: Breaker("x", probes=0), "from 1 to 100"),
        (lambda: Breaker("x", within=0), "within is a number of seconds"),
        (lambda: Breaker("x", park=-1), "park is a number of seconds"),
        (lambda: Breaker("x", park=float("inf")), "park is a number of seconds"),
        (lambda: Breaker("x", growth=0.5), "growth is a number, 1 or more"),
        (lambda: Breaker("x", on=OSError), "a tuple of exception classes"),  # type: ignore[arg-type]
        (lambda: task(breakers=Breaker("x"))(lambda: None), "must be a list"),
        (lambda: task(breakers=["x"])(lambda: None), "must be a Breaker"),  # type: ignore[list-item]
        (lambda: task(breakers=[Breaker("u:{nobody}")])(lambda a: None), "It may use: a, task, queue, tenant"),
        (lambda: task(breakers=[Breaker("")])(lambda: None), "text or a function"),
        (lambda: task(breakers=[Breaker("x"), Breaker("x", failures=2)])(lambda: None), "two breakers for the key"),
        (lambda: task(retry_priority="urgent")(lambda: None), "retry_priority of .* is .lower. or a priority"),
    ],
)
def test_a_breaker_that_can_never_work_is_refused_at_declaration(declare: Any, words: str) -> None:
    with pytest.raises(DeclarationError, match=words):
        declare()


def test_a_class_is_checked_too() -> None:
    with pytest.raises(DeclarationError, match="uses nobody"):

        class Wrong(Task):
            breakers = (Breaker("{nobody}"),)

            def run(self) -> None: ...


# --- Which failures count ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(Kind))
def test_what_a_dependency_may_be_the_cause_of_counts(kind: Kind) -> None:
    counted = {Kind.TRANSIENT, Kind.AMBIGUOUS, Kind.UNCLASSIFIED, Kind.ASKED}
    assert Breaker("x").counts(Failure(kind, "reason"), OSError()) == (kind in counted)


def test_a_body_that_hangs_counts_though_its_process_is_lost() -> None:
    assert Breaker("x").counts(Failure(Kind.LOST, "hung past its time limit of 60 s"), None)


def test_a_task_that_only_looks_again_later_does_not_count() -> None:
    asked = Failure(Kind.ASKED, "the task asked for it")
    assert not Breaker("x").counts(asked, Retry())
    assert Breaker("x").counts(asked, RuntimeError())


def test_what_is_named_counts_and_nothing_else() -> None:
    breaker = Breaker("x", on=(LookupError,))
    assert breaker.counts(Failure(Kind.PERMANENT, ""), KeyError())
    assert not breaker.counts(Failure(Kind.TRANSIENT, ""), OSError())


@pytest.mark.parametrize("kind", [Kind.CANCELLED, Kind.SNOOZED, Kind.HANDED_BACK])
def test_what_is_no_failure_never_counts(kind: Kind) -> None:
    assert not Breaker("x", on=(BaseException,)).counts(Failure(kind, ""), OSError())


# --- How a circuit moves ----------------------------------------------------------------------------

IN_A_ROW = Breaker("x", failures=3, park=60)
WITHIN = Breaker("x", failures=3, within=10, park=60)


def after_failures(breaker: Breaker, *seconds: float) -> Standing:
    standing = Standing()
    for second in seconds:
        standing = failed(standing, breaker, later(second), probe=False)
    return standing


def test_it_opens_after_so_many_in_a_row_however_long_that_takes() -> None:
    assert after_failures(IN_A_ROW, 0, 1000).phase(later(1000)) is Phase.CLOSED
    standing = after_failures(IN_A_ROW, 0, 1000, 2000)
    assert standing.phase(later(2059)) is Phase.OPEN
    assert standing.phase(later(2060)) is Phase.HALF_OPEN


def test_it_opens_only_when_all_failed_within_the_time() -> None:
    assert after_failures(WITHIN, 0, 5, 11).phase(later(11)) is Phase.CLOSED
    assert after_failures(WITHIN, 0, 5, 11, 12).phase(later(12)) is Phase.OPEN


def test_a_success_in_between_counts_for_failures_in_a_row_only() -> None:
    for breaker, phase in ((IN_A_ROW, Phase.CLOSED), (WITHIN, Phase.OPEN)):
        standing = after_failures(breaker, 0, 1)
        standing = completed(standing, later(2), in_a_row=breaker.in_a_row, probe=False)
        assert failed(standing, breaker, later(3), probe=False).phase(later(3)) is phase


def test_what_began_before_it_opened_says_nothing_new() -> None:
    standing = after_failures(IN_A_ROW, 0, 1, 2)
    for second in (3, 70):
        assert failed(standing, IN_A_ROW, later(second), probe=False) == standing
        assert completed(standing, later(second), in_a_row=True, probe=False) == standing


def test_a_probe_that_completes_closes_it_and_all_is_forgotten() -> None:
    assert completed(after_failures(IN_A_ROW, 0, 1, 2), later(70), in_a_row=True, probe=True) == Standing()


def test_as_many_probes_must_complete_as_are_let_through() -> None:
    breaker = replace(IN_A_ROW, probes=2)
    standing = completed(after_failures(breaker, 0, 1, 2), later(70), in_a_row=True, probe=True)
    assert standing.phase(later(70)) is Phase.HALF_OPEN
    assert passage(standing, later(70), flying=0).left == 1
    assert completed(standing, later(71), in_a_row=True, probe=True) == Standing()


def test_a_probe_that_fails_opens_it_again_for_longer() -> None:
    breaker = replace(IN_A_ROW, growth=3, cap=100)
    standing = failed(after_failures(breaker, 0, 1, 2), breaker, later(70), probe=True)
    assert standing.open_until == later(70 + 100)
    assert (standing.openings, standing.succeeded) == (2, 0)


def test_only_as_many_probes_are_let_through_as_are_declared() -> None:
    standing = after_failures(replace(IN_A_ROW, probes=3), 0, 1, 2)
    assert (passage(standing, later(3), flying=0).left, passage(standing, later(3), flying=0).until) == (0, later(62))
    assert [passage(standing, later(70), flying=n).left for n in (0, 1, 3, 9)] == [3, 2, 0, 0]
    assert not passage(Standing(), NOW, flying=0).guarded


EVENTS = st.lists(st.tuples(st.sampled_from(["failed", "completed"]), st.booleans(), st.floats(0, 200)), max_size=60)
BREAKERS = st.builds(
    Breaker, st.just("x"), failures=st.integers(1, 6), within=st.none() | st.floats(0.5, 500),
    park=st.floats(1, 100), probes=st.integers(1, 3), growth=st.floats(1, 4), cap=st.floats(1, 500),
)  # fmt: skip


@given(BREAKERS, EVENTS)
def test_whatever_happens_a_circuit_keeps_its_word(breaker: Breaker, events: list[tuple[str, bool, float]]) -> None:
    standing, now = Standing(), NOW
    row: list[datetime] = []  # the failures that count, as somebody else would keep them
    for what, probe, pause in events:
        now += timedelta(seconds=pause)
        before = standing.phase(now)
        if what == "failed":
            standing = failed(standing, breaker, now, probe=probe)
        else:
            standing = completed(standing, now, in_a_row=breaker.in_a_row, probe=probe)
        after = standing.phase(now)
        if before is Phase.CLOSED:
            if what == "failed":
                row.append(now)
            elif breaker.in_a_row:
                row.clear()
            fresh = [at for at in row if breaker.within is None or at.timestamp() > now.timestamp() - breaker.within]
            assert (after is Phase.OPEN) == (what == "failed" and len(fresh) >= breaker.failures)
        elif before is Phase.OPEN:
            assert after is Phase.OPEN  # only time ends it
        elif not probe:
            assert after is Phase.HALF_OPEN
        else:
            assert (after is Phase.OPEN) == (what == "failed")
        if after is Phase.CLOSED and before is not Phase.CLOSED:
            row.clear()
            assert standing == Standing()
        if standing.open_until is not None:
            assert standing.opened_at is not None
            parked = standing.open_until - standing.opened_at
            assert timedelta(seconds=breaker.park) <= parked
            assert parked <= timedelta(seconds=max(breaker.cap, breaker.park))
        assert len(standing.failed_at) <= breaker.failures
        assert passage(standing, now, 0).left >= 1 or after is not Phase.CLOSED
