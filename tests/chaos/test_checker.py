"""The checker finds what was planted: a checker that cannot fail proves nothing."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from project.servers import PostgresServer
from tests.chaos import audit, checker, ledger
from tests.chaos.checker import Change, Evidence, JobRow, Verdict
from tests.chaos.ledger import Asked, Intake, Line

SECOND = 1_000_000_000
CLAIM: Any = {"old_state": "reserved", "new_state": "running"}


def asked(number: int, **how: Any) -> Asked:
    """A call that returned."""
    usual = {"number": number, "kind": "plain", "expects": "completed", "accepted": True, "job": f"j{number}"}
    return Asked(**{**usual, **how})


def ran(
    number: int, *, attempt: int = 1, pid: int = 100, at: float = 1, until: float = 2, ends: bool = True
) -> list[Line]:
    """The lines of one execution."""
    words = (number, f"j{number}", attempt, pid, f"t{attempt}")
    lines = [Line("begin", *words, int(at * SECOND)), Line("beat", *words, int((until - 0.01) * SECOND))]
    return [*lines, Line("end", *words, int(until * SECOND))] if ends else lines


def world(*numbers: int) -> Evidence:
    """Evidence of plain jobs with which all is well."""
    evidence = Evidence(Intake({n: asked(n) for n in numbers}))
    evidence.jobs = [JobRow(f"j{n}", "completed", attempt=1, number=n) for n in numbers]
    evidence.lines = [line for n in numbers for line in ran(n)]
    return evidence


def bad(verdict: Verdict) -> dict[str, int]:
    """The counts that should be zero and are not."""
    names = {"unfinished", "lost", "overlapping", "late_writes", "duplicate_effects", "duplicate_transactions",
             "bodies_overlapped", "refused"}  # fmt: skip
    return {name: value for name, value in verdict.counts().items() if name in names and value}


def test_a_sound_world_has_no_problems() -> None:
    verdict = checker.judge(world(1, 2, 3))
    assert (verdict.jobs_in, verdict.completed, bad(verdict), verdict.problems) == (3, 3, {}, [])


# --- Lost and unfinished ----------------------------------------------------------------------------


def test_an_accepted_job_without_a_row_is_lost() -> None:
    evidence = world(1, 2)
    evidence.jobs.pop()
    assert bad(checker.judge(evidence)) == {"lost": 1}


def test_a_committed_caller_without_a_job_is_lost_also_when_its_call_never_returned() -> None:
    evidence = Evidence(Intake({1: asked(1, accepted=False, in_transaction=True, job="")}), orders={1})
    assert bad(checker.judge(evidence)) == {"lost": 1}


def test_a_caller_that_rolled_back_is_owed_nothing() -> None:
    evidence = Evidence(Intake({1: asked(1, accepted=False, in_transaction=True, job="")}))
    verdict = checker.judge(evidence)
    assert (verdict.jobs_in, bad(verdict)) == (0, {})


def test_a_completed_job_whose_body_never_ended_is_lost() -> None:
    evidence = world(1)
    evidence.lines = ran(1, ends=False)
    assert bad(checker.judge(evidence)) == {"lost": 1}


def test_a_completed_transactional_job_without_its_row_is_lost() -> None:
    evidence = world(1)
    evidence.intake.asked[1].effect = "row"
    assert bad(checker.judge(evidence)) == {"lost": 1}


def test_a_failed_job_without_a_dead_letter_is_lost() -> None:
    evidence = world(1)
    evidence.jobs = [JobRow("j1", "failed", number=1)]
    evidence.intake.asked[1].expects = "failed"
    assert bad(checker.judge(evidence)) == {"lost": 1}


@pytest.mark.parametrize("state", ["pending", "reserved", "running", "retrying"])
def test_a_job_that_is_not_final_is_unfinished(state: str) -> None:
    evidence = world(1)
    evidence.jobs = [JobRow("j1", state, number=1)]
    assert bad(checker.judge(evidence)) == {"unfinished": 1}


def test_a_row_that_nobody_asked_for_is_counted_too() -> None:
    evidence = world(1)
    evidence.jobs.append(JobRow("stray", "reserved", task="celery.something"))
    verdict = checker.judge(evidence)
    assert (verdict.jobs_in, bad(verdict)) == (2, {"unfinished": 1})


def test_a_successor_is_not_due_after_a_failed_job_and_lost_after_a_completed_one() -> None:
    evidence = world(1)
    evidence.intake.asked[2] = asked(2, after=(1,), job="")
    assert bad(checker.judge(evidence)) == {"lost": 1}
    evidence.jobs = [JobRow("j1", "failed", number=1, letter=True)]
    assert bad(checker.judge(evidence)) == {}


def test_an_error_link_is_lost_when_the_job_failed_and_it_never_came() -> None:
    evidence = world()
    evidence.intake.asked = {1: asked(1, expects="failed"), 2: asked(2, after=(1,), when="failed", job="")}
    evidence.jobs = [JobRow("j1", "failed", number=1, letter=True)]
    assert bad(checker.judge(evidence)) == {"lost": 1}


# --- Unwanted ends --------------------------------------------------------------------------------------


def test_a_job_that_ends_otherwise_than_it_should_is_a_problem() -> None:
    evidence = world(1)
    evidence.jobs = [JobRow("j1", "failed", number=1, letter=True, reason="poison")]
    verdict = checker.judge(evidence)
    assert bad(verdict) == {}
    assert verdict.problems == ["job 1 should be completed and is failed (poison)"]


def test_a_job_that_was_cancelled_without_being_asked_is_a_problem() -> None:
    evidence = world(1)
    evidence.jobs = [JobRow("j1", "cancelled", number=1)]
    assert checker.judge(evidence).problems
    evidence.intake.cancelled.add(1)
    assert not checker.judge(evidence).problems


def test_a_refused_call_is_a_problem_unless_the_row_allows_it() -> None:
    evidence = Evidence(Intake({1: asked(1, accepted=False, job="", refused="OperationalError: away")}))
    assert checker.judge(evidence).problems == ["1 calls were refused: OperationalError: away"]
    verdict = checker.judge(evidence, may_refuse=True)
    assert (verdict.jobs_in, verdict.refused, verdict.problems) == (0, 1, [])


# --- Effects ------------------------------------------------------------------------------------------------


def test_a_body_that_ended_twice_is_counted_and_is_no_problem() -> None:
    evidence = world(1)
    evidence.lines += ran(1, attempt=2, at=5, until=6)
    verdict = checker.judge(evidence)
    assert (bad(verdict), verdict.problems) == ({"duplicate_effects": 1}, [])


def transactional(*effects: str, state: str = "completed") -> Evidence:
    """A transactional job with these effects."""
    evidence = world(1)
    evidence.intake.asked[1].effect, evidence.intake.asked[1].expects = "row", state
    evidence.jobs = [JobRow("j1", state, number=1, letter=True)]
    evidence.effects = [(1, job) for job in effects]
    return evidence


def test_a_transactional_effect_that_happened_twice_is_a_problem() -> None:
    verdict = checker.judge(transactional("j1", "j1"))
    assert (verdict.duplicate_transactions, len(verdict.problems)) == (1, 1)


def test_a_transactional_body_that_ran_twice_with_one_effect_is_sound() -> None:
    evidence = transactional("j1")
    evidence.lines += ran(1, attempt=2, at=5, until=6)
    assert bad(checker.judge(evidence)) == {}


def test_an_effect_of_a_failed_transactional_job_is_a_problem() -> None:
    verdict = checker.judge(transactional("j1", state="failed"))
    assert (verdict.duplicate_transactions, len(verdict.problems)) == (1, 1)


# --- Overlaps -----------------------------------------------------------------------------------------------------


def overlap(*, claimed: float, lease: float, until: float) -> Verdict:
    """Attempt 1 has a lease and runs until some time; attempt 2 is claimed."""
    evidence = world(1)
    evidence.lines = [*ran(1, at=1, until=until), *ran(1, attempt=2, pid=200, at=claimed + 0.01, until=claimed + 1)]
    evidence.changes = [
        Change(SECOND, 100, "j1", **CLAIM, new_token="t1", new_lease=int(lease * SECOND)),
        Change(int(claimed * SECOND), 200, "j1", **CLAIM, new_token="t2", new_lease=int((claimed + 9) * SECOND)),
    ]
    return checker.judge(evidence)


def test_a_job_claimed_while_its_runner_holds_the_lease_and_runs_overlaps() -> None:
    verdict = overlap(claimed=5, lease=10, until=8)
    assert (verdict.overlapping, verdict.bodies_overlapped) == (1, 1)
    assert verdict.problems


def test_a_stopped_process_that_goes_on_after_its_lease_overlaps_only_as_a_body() -> None:
    verdict = overlap(claimed=5, lease=4, until=8)
    assert (verdict.overlapping, verdict.bodies_overlapped, verdict.problems) == (0, 1, [])


def test_a_runner_that_was_dead_when_its_job_was_claimed_does_not_overlap() -> None:
    verdict = overlap(claimed=5, lease=10, until=3)
    assert (verdict.overlapping, verdict.bodies_overlapped) == (0, 0)


def test_a_renewed_lease_counts_as_it_was_renewed() -> None:
    evidence = world(1)
    evidence.lines = [*ran(1, at=1, until=8), *ran(1, attempt=2, pid=200, at=5.1, until=6)]
    evidence.changes = [
        Change(SECOND, 100, "j1", **CLAIM, new_token="t1", new_lease=4 * SECOND),
        Change(3 * SECOND, 100, "j1", "running", "running", new_token="t1", new_lease=9 * SECOND),
        Change(5 * SECOND, 200, "j1", **CLAIM, new_token="t2", new_lease=15 * SECOND),
    ]
    assert checker.judge(evidence).overlapping == 1


# --- Late writes ------------------------------------------------------------------------------------------------------


def late(*changes: Change) -> int:
    """How many late writes these changes make, in a world where process 100 ran token t1 and 200 holds t2."""
    evidence = world(1)
    evidence.lines = [*ran(1, at=1, until=3), *ran(1, attempt=2, pid=200, at=5, until=8)]
    evidence.changes = list(changes)
    return checker.judge(evidence).late_writes


HELD: Any = {"old_state": "running", "old_token": "t2", "old_pid": 200, "old_attempt": 2, "new_attempt": 2}


def test_a_completion_by_its_holder_is_in_time() -> None:
    assert late(Change(SECOND, 200, "j1", new_state="completed", **HELD)) == 0


def test_a_completion_by_the_worker_of_its_holder_is_in_time() -> None:
    claimed = Change(0, 200, "j1", "reserved", "running", new_token="t2", parent=150)
    assert late(Change(SECOND, 150, "j1", new_state="completed", **HELD), claimed) == 0


def test_a_completion_by_a_child_of_the_worker_that_claimed_is_in_time() -> None:
    assert late(Change(SECOND, 210, "j1", new_state="completed", **HELD, parent=200)) == 0


def test_a_completion_by_another_child_of_its_worker_is_late() -> None:
    claimed = Change(0, 200, "j1", "reserved", "running", new_token="t2", parent=150)
    assert late(Change(SECOND, 210, "j1", new_state="completed", **HELD, parent=150), claimed) == 1


def test_a_rescue_by_a_conductor_is_in_time() -> None:
    assert late(Change(SECOND, 300, "j1", new_state="retrying", **HELD)) == 0


@pytest.mark.parametrize("state", ["completed", "failed", "retrying", "pending", "cancelled"])
def test_a_change_by_who_ran_an_older_attempt_is_late(state: str) -> None:
    assert late(Change(SECOND, 100, "j1", new_state=state, **HELD)) == 1


def test_a_change_by_who_ran_this_attempt_and_later_ones_is_in_time() -> None:
    claimed = {"old_state": "running", "old_token": "t1", "old_pid": 150, "old_attempt": 1, "new_attempt": 1}
    assert late(Change(SECOND, 100, "j1", new_state="retrying", parent=150, **claimed)) == 0


def test_a_lease_renewed_with_an_old_token_is_late() -> None:
    assert late(Change(SECOND, 100, "j1", new_state="running", **HELD)) == 1


def test_a_change_of_what_was_final_is_late() -> None:
    assert late(Change(SECOND, 200, "j1", "completed", "failed")) == 1


def test_an_attempt_that_is_counted_back_is_late() -> None:
    assert late(Change(SECOND, 300, "j1", "reserved", "pending", old_attempt=2, new_attempt=1)) == 1


# --- Plain Celery ---------------------------------------------------------------------------------------------------


def test_plain_celery_loses_what_is_neither_done_nor_failed_nor_waiting() -> None:
    evidence = world(1, 2, 3, 4)
    evidence.lines = ran(1)
    verdict = checker.judge_celery(evidence, failures={"j2"}, waiting={"j3"})
    assert (verdict.completed, verdict.failed, verdict.unfinished, verdict.lost) == (1, 1, 1, 1)


# --- Reading ----------------------------------------------------------------------------------------------------------

TABLES = """
CREATE TABLE jobs_job (id {uuid}, state text, task text, attempt int, payload text, token {uuid}, worker text, pid int,
                       lease_until {time}, follows_id {uuid}, replay_of_id {uuid}, reason text);
CREATE TABLE dlq_deadletter (id int, job_id {uuid});
"""
JOB = "018f0000-0000-7000-8000-000000000001"
OLD, NEW = "018f0000-0000-7000-8000-00000000000a", "018f0000-0000-7000-8000-00000000000b"


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Any]]:
    """A database with the tables of the platform that the harness reads, and its own tables and triggers."""
    if request.param == "sqlite":
        file = tmp_path / "jobs.sqlite3"
        with sqlite3.connect(file, isolation_level=None) as connection:
            connection.create_function("chaos_writer", 0, lambda: "chaos:100:1")
            connection.executescript(TABLES.format(uuid="text", time="text") + audit.SQLITE)
            yield f"sqlite:///{file}", connection
        connection.close()
        return
    server: PostgresServer = request.getfixturevalue("postgres")
    with server.connection() as admin:
        admin.execute("DROP DATABASE IF EXISTS chaos_checker")
        admin.execute("CREATE DATABASE chaos_checker")
    url = server.address("chaos_checker")
    with psycopg.connect(url, autocommit=True, application_name="chaos:100:1") as own:
        own.execute(TABLES.format(uuid="uuid", time="timestamptz"))
        own.execute(audit.POSTGRES)
        yield url, own


@pytest.mark.one_database
def test_the_triggers_keep_every_change_and_the_checker_reads_them(database: tuple[str, Any], tmp_path: Path) -> None:
    url, connection = database
    payload = '{"args":[],"kwargs":{"number":7}}'
    connection.execute(
        "INSERT INTO jobs_job (id, state, task, attempt, payload, token, worker, pid, lease_until, reason) "
        f"VALUES ('{JOB}', 'running', 'x', 1, '{payload}', '{OLD}', 'w', 100, '2030-01-01 00:00:00+00:00', '')"
    )
    connection.execute(f"UPDATE jobs_job SET attempt = 2, token = '{NEW}', pid = 200")
    connection.execute("UPDATE jobs_job SET reason = 'no change of state'")
    connection.execute("UPDATE jobs_job SET state = 'completed'")
    connection.execute(f"INSERT INTO chaos_effect (number, job, pid) VALUES (7, '{JOB}', 1)")
    connection.execute("INSERT INTO chaos_order (number) VALUES (7)")
    intake, lines = tmp_path / "intake", tmp_path / "ledger"
    note = {"kind": "plain", "expects": "completed", "after": [], "when": "completed", "effect": "end"}
    ledger.write_intake(intake, event="ask", number=7, in_transaction=False, **note)
    ledger.write_intake(intake, event="accepted", number=7, job=JOB, took=0.1)
    for line in (Line("begin", 7, JOB, 1, 100, OLD, 1), Line("end", 7, JOB, 1, 100, OLD, 2)):
        ledger.append(lines, str(line))

    evidence = checker.gather(url, lines, intake)
    assert [(c.old_state, c.new_state, c.new_attempt) for c in evidence.changes] == [
        (None, "running", 1), ("running", "running", 2), ("running", "completed", 2),
    ]  # fmt: skip
    assert {c.writer for c in evidence.changes} == {100}
    assert (evidence.jobs[0].number, evidence.orders) == (7, {7})
    verdict = checker.judge(evidence)
    assert (verdict.jobs_in, verdict.completed, verdict.lost) == (1, 1, 0)
    # Process 100 ran the first attempt, and completed the second one, which 200 holds.
    assert verdict.late_writes == 1
