"""One attempt: what a body does, and what is recorded of it. Run here, through Celery's own tracer."""

import json
from typing import Any

import pytest
from celery.app.trace import FAILURE, IGNORED, RETRY, SUCCESS
from django.contrib.auth.models import Group
from django.db.models import F

from dlq.models import DeadLetter
from jobs import lifecycle
from jobs.models import Attempt, Job
from jobs.states import State
from tests.platform import Witness, attempt, drain, fresh, hurry
from tests.sample import tasks as sample

pytestmark = pytest.mark.django_db


def ran(result: Any) -> Job:
    """The job of a result, after one attempt."""
    attempt(result.id)
    return fresh(result)


# --- Bodies that return -----------------------------------------------------------------------------


def test_a_body_that_returns_completes_its_job() -> None:
    job = ran(sample.add.delay(1, 2))
    assert (job.state, job.result, job.attempt) == (State.COMPLETED, "3", 1)
    assert job.created_at <= job.started_at <= job.finished_at


def test_a_completed_attempt_leaves_no_row_of_its_own() -> None:
    ran(sample.add.delay(1, 2))
    assert Attempt.objects.count() == 0


def test_the_rows_payload_wins_over_the_messages() -> None:
    job = sample.add.delay(1, 2)
    Job.objects.update(payload='{"args":[5,6],"kwargs":{}}')
    assert ran(job).result == "11"


def test_a_second_message_of_a_job_is_refused(witness: Witness) -> None:
    job = sample.note.delay("once")
    attempt(job.id)
    attempt(job.id)
    assert witness.lines == ["once"]
    assert fresh(job).attempt == 1


def test_a_message_whose_row_is_gone_is_refused(witness: Witness) -> None:
    from celery.app.trace import build_tracer

    from project.celery import app

    tracer = build_tracer(sample.note.name, app.tasks[sample.note.name], app=app, loader=app.loader)
    gone = "01890000-0000-7000-8000-000000000000"
    tracer(gone, ("x",), {}, {"mainstay": {"job": gone}, "called_directly": False, "is_eager": False})
    assert witness.lines == []
    assert Job.objects.count() == 0


def test_a_body_knows_its_token_and_its_child_knows_its_parent(witness: Witness) -> None:
    job = ran(sample.enlighten.delay("x"))
    assert witness.lines == [f"token:{job.pk}"]
    assert str(Job.objects.get(parent_id=job.pk).pk) == json.loads(job.result)


def test_progress_of_a_completed_body_is_kept() -> None:
    job = ran(sample.Count.delay(2, pause=0))
    assert job.progress == {"done": 2, "total": 2, "unit": "steps", "message": "step 2"}


# --- Bodies that raise ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "state", "outcome"),
    [
        ("transient", State.RETRYING, "transient"),
        ("rate", State.RETRYING, "rate limited"),
        ("snooze", State.PENDING, "snoozed"),
        ("exit", State.RETRYING, "lost"),
        ("memory", State.RETRYING, "lost"),
        ("permanent", State.FAILED, "permanent"),
        ("unclassified", State.FAILED, "unclassified"),
        ("ambiguous", State.FAILED, "ambiguous"),
    ],
)
def test_what_a_body_raises_decides_where_its_job_goes(how: str, state: State, outcome: str) -> None:
    job = ran(sample.misbehave.delay(how))
    assert job.state == state
    assert [a.outcome for a in Attempt.objects.all()] == [outcome]


@pytest.mark.parametrize("how", ["transient", "rate", "snooze", "exit", "memory"])
def test_a_job_that_was_put_back_completes_in_its_next_attempt(how: str) -> None:
    job = ran(sample.misbehave.delay(how, until=2))
    hurry()
    drain()
    assert (fresh(job).state, fresh(job).attempt) == (State.COMPLETED, 2)
    assert fresh(job).error_type == ""


def test_attempts_are_bounded_and_then_there_is_a_letter() -> None:
    job = ran(sample.misbehave.delay("transient"))
    for _ in range(2):
        hurry()
        drain()
    job = fresh(job)
    assert (job.state, job.attempt) == (State.FAILED, 3)
    assert job.reason == "exhausted: transient, attempt 3 of 3"
    assert [a["outcome"] for a in DeadLetter.objects.get().attempts] == ["transient"] * 3


@pytest.mark.parametrize("how", ["rate", "snooze"])
def test_being_put_back_politely_does_not_consume_an_attempt(how: str) -> None:
    job = ran(sample.misbehave.delay(how))
    for _ in range(4):
        hurry()
        drain()
    assert fresh(job).attempt == 5
    assert fresh(job).state in {State.RETRYING, State.PENDING}


def test_every_attempt_is_on_record() -> None:
    ran(sample.misbehave.delay("transient"))
    record = Attempt.objects.get()
    assert (record.number, record.worker, record.error_type) == (1, "here", "jobs.errors.TransientError")
    assert (record.error_message, record.decision) == ("try again", State.RETRYING)
    assert "try again" in record.traceback
    assert record.reason == "transient: attempt 1 of 3"
    assert record.started_at <= record.finished_at


def test_a_failed_job_says_what_went_wrong() -> None:
    job = ran(sample.boom.delay("odd"))
    assert (job.error_type, job.error_message) == ("ValueError", "odd")
    assert "in boom" in job.traceback


def test_an_error_that_no_database_can_keep_is_recorded_all_the_same() -> None:
    job = ran(sample.boom.delay("nul \x00 and surrogate"))
    assert job.state == State.FAILED
    assert "\x00" not in job.error_message


def test_a_result_that_is_not_json_is_a_failure_and_not_a_loss() -> None:
    job = ran(sample.unencodable.delay())
    assert job.state == State.FAILED
    assert "not JSON" in job.error_message
    assert DeadLetter.objects.get().job == job


def test_ignore_cancels_the_job_with_the_reason() -> None:
    job = ran(sample.ignored.delay())
    assert (job.state, job.reason) == (State.CANCELLED, "ignored by the task: not today")


def test_reject_is_a_permanent_failure() -> None:
    job = ran(sample.ignored.delay("reject"))
    assert (job.state, job.reason) == (State.FAILED, "rejected: unwanted")


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: sample.add.delay(1, 2), SUCCESS),
        (lambda: sample.misbehave.delay("transient"), RETRY),
        (lambda: sample.misbehave.delay("memory"), RETRY),
        (lambda: sample.misbehave.delay("exit"), RETRY),
        (lambda: sample.boom.delay(), FAILURE),
        (lambda: sample.ignored.delay(), IGNORED),
    ],
    ids=["success", "transient", "memory", "exit", "error", "ignore"],
)
def test_celery_is_told_what_happened(call: Any, told: str) -> None:
    from celery.signals import task_postrun

    states: list[str] = []

    def see(state: str | None = None, **_: Any) -> None:
        states.append(str(state))

    task_postrun.connect(see)
    try:
        attempt(call().id)
    finally:
        task_postrun.disconnect(see)
    assert states == [told]


# --- Celery's own retries ---------------------------------------------------------------------------


def test_a_retry_of_celerys_is_honoured_by_the_row(witness: Witness) -> None:
    job = sample.celery_retry.delay("x")
    for _ in range(4):
        hurry()
        drain()
    assert witness.lines == ["try:x"] * 3
    assert (fresh(job).state, fresh(job).error_type) == (State.FAILED, "RuntimeError")
    assert fresh(job).attempt == 3


def test_the_countdown_of_a_retry_is_its_delay() -> None:
    ran(sample.celery_retry.delay("x"))
    assert Attempt.objects.get().delay == pytest.approx(0.05)


def test_autoretry_is_honoured(witness: Witness) -> None:
    job = sample.auto_retry.delay("x")
    for _ in range(4):
        hurry()
        drain()
    assert witness.lines == ["auto:x"] * 3
    assert fresh(job).state == State.FAILED


def test_a_body_sees_how_often_it_was_retried(witness: Witness) -> None:
    job = sample.count_retries.delay()
    for _ in range(3):
        hurry()
        drain()
    assert witness.lines == ["retries:0", "retries:1", "retries:2"]
    assert fresh(job).result == "2"


def test_retry_can_change_the_payload() -> None:
    job = sample.retry_with.delay(1)
    for _ in range(2):
        hurry()
        drain()
    assert (fresh(job).state, fresh(job).result) == (State.COMPLETED, "2")


# --- Transactional tasks ----------------------------------------------------------------------------


def test_a_transactional_body_and_its_completion_commit_together() -> None:
    job = ran(sample.Enrol.delay("x"))
    assert job.state == State.COMPLETED
    assert Group.objects.filter(name="x").exists()


@pytest.mark.parametrize("how", ["transient", "permanent", "snooze", "exit"])
def test_a_transactional_body_that_raises_leaves_nothing_of_its_own(how: str) -> None:
    job = ran(sample.Enrol.delay("x", how))
    assert job.state != State.COMPLETED
    assert not Group.objects.exists()


def test_a_transactional_body_that_raises_leaves_no_jobs_of_its_own() -> None:
    ran(sample.enrol_and_tell.delay("x", "permanent"))
    assert not Job.objects.filter(task=sample.note.name).exists()


def test_jobs_of_a_transactional_body_commit_with_it() -> None:
    ran(sample.enrol_and_tell.delay("x"))
    assert Job.objects.filter(task=sample.note.name).exists()


def test_an_overtaken_transactional_attempt_rolls_everything_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def be_overtaken() -> None:
        job = Job.objects.get(task=sample.Enrol.name)
        lifecycle.move(job, State.RETRYING, "rescued", due_at=lifecycle.NOW)

    overtaken = sample.Enrol.delay("x", "overtaken")
    monkeypatch.setitem(sample._MENU, "overtaken", be_overtaken)
    # The rescue happens inside the body's own transaction here, and is rolled back with it: what is
    # left to see is that nothing of the body was kept and nothing was recorded as completed.
    attempt(overtaken.id)
    assert not Group.objects.exists()
    assert fresh(overtaken).state != State.COMPLETED


# --- Expiry, payloads of other versions ---------------------------------------------------------------


def test_a_job_that_expired_before_it_started_is_cancelled(witness: Witness) -> None:
    job = sample.note.delay("too late")
    Job.objects.update(expires_at=F("created_at"))
    attempt(job.id)
    assert (fresh(job).state, fresh(job).reason) == (State.CANCELLED, "expired")
    assert witness.lines == []


def test_a_payload_of_an_older_version_is_upgraded() -> None:
    job = sample.Renamed.delay(name="Ann")
    Job.objects.update(payload='{"args":[],"kwargs":{"who":"Ann"}}', version=1)
    assert ran(job).result == '"Ann"'


def test_a_payload_from_the_future_is_not_run_and_not_lost() -> None:
    job = sample.Renamed.delay(name="Ann")
    Job.objects.update(version=3)
    assert ran(job).state == State.FAILED
    assert "A newer worker must run it" in fresh(job).error_message


def test_a_payload_that_no_longer_fits_the_code_ends_as_a_letter() -> None:
    job = sample.add.delay(1, 2)
    Job.objects.update(payload='{"args":[1],"kwargs":{}}')
    assert ran(job).state == State.FAILED
    assert DeadLetter.objects.exists()


def test_a_paused_job_whose_message_arrives_waits_in_the_database(witness: Witness) -> None:
    from jobs.models import Pause

    job = sample.note.delay("held")
    Pause.objects.create(kind="queue", name="default", created_at=lifecycle.database_now())
    attempt(job.id)
    assert (fresh(job).state, fresh(job).reason, witness.lines) == (State.PENDING, "paused", [])
