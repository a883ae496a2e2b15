"""A claim that the database forgot as it crashed is taken again by its runner, unless somebody else has the job now.

Here the row is set back by hand, as PostgreSQL leaves it; ``tests/acceptance/test_claim_again.py`` crashes a real one.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.contrib.auth.models import Group
from django.db import connection
from django.db.models import F

from jobs import completer, control, heartbeat, lifecycle, reconcile
from jobs.errors import JobCancelled, LeaseLost
from jobs.lifecycle import Completion
from jobs.models import Attempt, Checkpoint, Job
from jobs.states import State
from tests.environment import DATABASE
from tests.platform import attempt, fresh, running
from tests.sample import tasks as sample

pytestmark = pytest.mark.django_db


def forget(job_id: Any) -> None:
    """Set a row back to what it was before its claim."""
    Job.objects.filter(pk=job_id).update(
        state=State.RESERVED, attempt=F("attempt") - 1, token=None, worker="", pid=None, started_at=None,
        lease_until=None, sends=1,
    )  # fmt: skip


def claim_elsewhere(job_id: Any) -> None:
    lifecycle.claim(UUID(str(job_id)), token=uuid4(), worker="other@host", pid=7, lease=timedelta(seconds=60))


def pause(job_id: Any) -> None:
    control.pause(queue=fresh_of(job_id).queue, reason="", by="test")


def fresh_of(job_id: Any) -> Job:
    return Job.objects.get(pk=job_id)


MEANWHILE: dict[str, Callable[[Any], Any]] = {
    "nothing": lambda job_id: None,
    "it was paused": pause,
    "it was sent again": lambda job_id: reconcile._due_again(fresh_of(job_id)),
    "it was sent again, and is on its way": lambda job_id: (
        reconcile._due_again(fresh_of(job_id)), lifecycle.reserve_due(10)
    ),
    "its time has run out": lambda job_id: Job.objects.filter(pk=job_id).update(
        expires_at=lifecycle.database_now()
    ),
}  # fmt: skip


@pytest.fixture(params=MEANWHILE)
def meanwhile(request: pytest.FixtureRequest, sent: list[str]) -> Callable[[Any], Any]:
    """The database forgets the claim of a job, and then something happens to it that keeps nobody from going on."""

    def act(job_id: Any) -> None:
        forget(job_id)
        MEANWHILE[request.param](job_id)

    return act


@pytest.fixture
def in_body(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Any], Any]], Callable[[str], list[Any]]]:
    """Let something happen to a job as its body runs; the answer runs one attempt, and tells how often it ran."""

    def arrange(act: Callable[[Any], Any]) -> Callable[[str], list[Any]]:
        bodies: list[Any] = []

        def happen(*_: Any) -> None:
            bodies.append(1)
            act(next(iter(heartbeat.held_here())))

        monkeypatch.setattr(sample, "witness", happen)
        monkeypatch.setitem(sample._MENU, "fine", happen)

        def run(job_id: str) -> list[Any]:
            attempt(job_id)
            return bodies

        return run

    return arrange


# --- Outcomes ---------------------------------------------------------------------------------------


def test_what_a_body_returned_is_recorded(in_body: Any, meanwhile: Callable[[Any], Any]) -> None:
    result = sample.note.delay("x")
    assert in_body(meanwhile)(result.id) == [1]
    job = fresh(result)
    assert (job.state, job.result, job.attempt, job.sends) == (State.COMPLETED, '"x"', 1, 0)
    assert (job.worker, job.losses) == ("here", 0)
    assert job.created_at <= job.started_at <= job.finished_at


def test_what_a_transactional_body_wrote_is_kept_once(in_body: Any, meanwhile: Callable[[Any], Any]) -> None:
    result = sample.Enrol.delay("x")
    assert in_body(meanwhile)(result.id) == [1]
    assert (fresh(result).state, fresh(result).attempt) == (State.COMPLETED, 1)
    assert Group.objects.filter(name="x").count() == 1


def test_an_outcome_with_a_successor_is_recorded_with_it(in_body: Any, meanwhile: Callable[[Any], Any]) -> None:
    result = sample.note.s("x").apply_async(link=sample.add.si(1, 1))
    in_body(meanwhile)(result.id)
    assert fresh(result).state == State.COMPLETED
    assert Job.objects.filter(parent_id=result.id).count() == 1


@pytest.mark.parametrize(
    ("how", "state", "consumed"),
    [("transient", State.RETRYING, 3), ("snooze", State.PENDING, 4), ("permanent", State.FAILED, 3)],
)
def test_what_a_body_raised_counts_once(
    in_body: Any, meanwhile: Callable[[Any], Any], how: str, state: State, consumed: int
) -> None:
    result = sample.misbehave.delay(how)
    assert in_body(meanwhile)(result.id) == [1]
    job = fresh(result)
    assert (job.state, job.attempt, job.max_attempts) == (state, 1, consumed)
    assert list(Attempt.objects.values_list("number", "decision")) == [(1, state)]


@pytest.fixture
def one_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what is recorded for children stay in the transaction of the test."""
    monkeypatch.setattr(completer, "_connection", nullcontext)


@pytest.mark.usefixtures("one_connection")
def test_an_outcome_that_a_child_left_is_recorded(sent: list[str], meanwhile: Callable[[Any], Any]) -> None:
    claimed = running(sample.note.delay("x").id)
    others = running(sample.note.delay("y").id)
    meanwhile(claimed.pk)
    assert completer._record([Completion.of(job, '"done"') for job in (claimed, others)]) == set()
    job = fresh(claimed)
    assert (job.state, job.result, job.attempt) == (State.COMPLETED, '"done"', 1)
    assert (job.worker, job.pid, job.started_at) == (claimed.worker, claimed.pid, claimed.started_at)
    assert fresh(others).state == State.COMPLETED


# --- While the body runs ----------------------------------------------------------------------------


def look(job: Job) -> BaseException | None:
    """Have the heartbeat look at a running body; return why it was told to stop."""
    entry = heartbeat.Watched(job, thread=0)
    entry.over = True  # nothing is raised in this thread
    stops: list[BaseException] = []
    kept, heartbeat._interrupt = heartbeat._interrupt, lambda entry, error: stops.append(error)
    try:
        heartbeat._look([entry])
    finally:
        heartbeat._interrupt = kept
    return stops[0] if stops else None


def test_the_heartbeat_takes_the_claim_again_and_lets_the_body_run(meanwhile: Callable[[Any], Any]) -> None:
    job = running(sample.note.delay("x").id, lease=1)
    meanwhile(job.pk)
    assert look(job) is None
    now = fresh(job)
    assert (now.state, now.attempt, now.token) == (State.RUNNING, 1, job.token)
    assert now.lease_until > lifecycle.database_now() + timedelta(seconds=5)
    assert look(job) is None


def test_a_step_is_kept(monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[Any], Any]) -> None:
    from project.celery import app

    result, task = sample.Stepwise.delay(), app.tasks[sample.Stepwise.name]

    def body(payload: Any = None) -> Any:
        meanwhile(result.id)
        return task.step("one", lambda: "kept")

    monkeypatch.setattr(task, "run", body)
    attempt(result.id)
    assert (fresh(result).state, fresh(result).result) == (State.COMPLETED, '"kept"')
    assert list(Checkpoint.objects.values_list("name", "attempt")) == [("one", 1)]


# --- Somebody else decided --------------------------------------------------------------------------


def cancel(job_id: Any) -> None:
    control.cancel(UUID(str(job_id)), reason="no", by="test")


@pytest.mark.parametrize("act", [claim_elsewhere, cancel])
@pytest.mark.parametrize("how", ["fine", "transient", "snooze"])
def test_nothing_is_recorded_of_a_job_that_somebody_has_claimed_or_cancelled(
    in_body: Any, sent: list[str], act: Callable[[Any], Any], how: str
) -> None:
    result = sample.misbehave.delay(how)
    kept: list[Job] = []

    def overtake(job_id: Any) -> None:
        if not kept:
            forget(job_id)
            act(job_id)
            kept.append(fresh_of(job_id))

    in_body(overtake)(result.id)
    now = fresh(result)
    assert (now.state, now.token, now.worker, now.attempt) == (
        kept[0].state, kept[0].token, kept[0].worker, kept[0].attempt
    )  # fmt: skip
    assert now.result is None
    assert not Attempt.objects.exists()


def test_of_two_runners_whose_claims_were_both_forgotten_one_goes_on(sent: list[str]) -> None:
    first = running(sample.note.delay("x").id)
    forget(first.pk)
    second = running(first.pk)
    forget(first.pk)
    assert lifecycle.claim_again(second) is not None
    assert lifecycle.claim_again(first) is None
    assert fresh(first).token == second.token


def test_an_attempt_that_was_recorded_is_not_taken_again(sent: list[str]) -> None:
    job = running(sample.note.delay("x").id)
    lifecycle.move(job, State.RETRYING, due_at=lifecycle.NOW)
    assert lifecycle.claim_again(job) is None
    lifecycle.reserve_due(1)
    assert lifecycle.claim_again(job) is None
    assert (fresh(job).state, fresh(job).attempt) == (State.RESERVED, 1)


def test_a_body_whose_job_somebody_else_holds_is_stopped(sent: list[str]) -> None:
    job = running(sample.note.delay("x").id)
    forget(job.pk)
    claim_elsewhere(job.pk)
    assert isinstance(look(job), LeaseLost)


@pytest.mark.usefixtures("one_connection")
def test_an_outcome_that_a_child_left_is_refused_where_somebody_else_has_the_job(sent: list[str]) -> None:
    claimed = running(sample.note.delay("x").id)
    forget(claimed.pk)
    claim_elsewhere(claimed.pk)
    assert completer._record([Completion.of(claimed, '"done"')]) == set()
    assert (fresh(claimed).state, fresh(claimed).worker) == (State.RUNNING, "other@host")


def test_a_body_is_told_of_a_request_to_stop_that_came_after_its_claim_was_taken_again(sent: list[str]) -> None:
    job = running(sample.note.delay("x").id)
    forget(job.pk)
    assert look(job) is None
    cancel(job.pk)
    assert isinstance(look(job), JobCancelled)


# --- How a claim commits ----------------------------------------------------------------------------


@pytest.fixture
def commits(committed: None, sent: list[str], monkeypatch: pytest.MonkeyPatch) -> Callable[[Job], str]:
    """Claim a job, and tell how PostgreSQL was asked to commit that."""
    said: list[str] = []

    def claimed(job: Job) -> str:
        with connection.cursor() as cursor:
            cursor.execute("BEGIN")  # so that what holds for this transaction can be read before its end
            running(job.pk)
            cursor.execute("SHOW synchronous_commit")
            said.append(cursor.fetchone()[0])
            cursor.execute("COMMIT")
            cursor.execute("SHOW synchronous_commit")
            assert cursor.fetchone()[0] == "on"
        return said[-1]

    return claimed


@pytest.mark.skipif(DATABASE == "sqlite", reason="SQLite's commits are as durable as its file")
@pytest.mark.parametrize(
    ("changes", "how"),
    [
        ({}, "off"),
        ({"attempt": 1}, "on"),
        ({"sends": 2}, "on"),
        ({"max_attempts": 1}, "on"),
        ({"bound": '[["slots","x","x",1.0,1.0]]'}, "on"),
    ],
    ids=["the first", "a later attempt", "sent again", "the only one that is allowed", "with a limit"],
)
def test_only_the_first_of_several_attempts_begins_without_waiting_for_the_disk(
    commits: Callable[[Job], str], changes: dict[str, Any], how: str
) -> None:
    job = fresh(sample.note.delay("x"))
    Job.objects.filter(pk=job.pk).update(**changes)
    assert commits(job) == how


@pytest.mark.skipif(DATABASE == "sqlite", reason="SQLite's commits are as durable as its file")
@pytest.mark.parametrize("given", [{"DURABLE_CLAIMS": True}, {"MAX_LOSSES": 1}], ids=str)
def test_every_attempt_waits_for_the_disk_where_that_is_wanted(
    commits: Callable[[Job], str], settings: Any, given: dict[str, Any]
) -> None:
    settings.JOBS = given
    assert commits(fresh(sample.note.delay("x"))) == "on"


@pytest.mark.skipif(DATABASE == "sqlite", reason="SQLite's commits are as durable as its file")
def test_a_claim_in_a_transaction_of_others_leaves_that_durable(sent: list[str]) -> None:
    running(sample.note.delay("x").id)
    with connection.cursor() as cursor:
        cursor.execute("SHOW synchronous_commit")
        assert cursor.fetchone()[0] == "on"
