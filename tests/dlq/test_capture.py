"""A failed job becomes a dead letter, in the transaction that records the failure."""

from typing import Any

import pytest
from django.db import IntegrityError, transaction
from django.db.models import ProtectedError

from dlq.models import DeadLetter, Status
from jobs import lanes, lifecycle, signals, successors
from jobs.models import Job
from jobs.states import State
from tests.platform import attempt, drain, fresh, hurry, running
from tests.sample.tasks import add, boom, misbehave

pytestmark = pytest.mark.django_db


def dead(**options: Any) -> DeadLetter:
    """The letter of a job that failed."""
    job = boom.apply_async(("odd",), **options)
    lanes.release(1)
    attempt(job.id)
    return DeadLetter.objects.get(job_id=job.id)


def test_a_failure_leaves_a_letter_with_payload_and_error() -> None:
    letter = dead()
    assert (letter.task, letter.queue, letter.payload) == (boom.name, "default", '{"args":["odd"],"kwargs":{}}')
    assert (letter.error_type, letter.error_message, letter.reason) == ("ValueError", "odd", "unclassified: ValueError")
    assert "in boom" in letter.traceback
    assert letter.status == Status.OPEN


def test_a_letter_keeps_what_the_job_carried() -> None:
    letter = dead(tags=["a"], tenant="acme", correlation_id="req-1", key="mine", metadata={"order": 7})
    assert letter.tenant == "acme"
    kept = {name: letter.headers[name] for name in ("tags", "correlation_id", "key", "metadata", "priority")}
    assert kept == {"tags": ["a"], "correlation_id": "req-1", "key": "mine", "metadata": {"order": 7}, "priority": 20}


def test_a_letter_keeps_the_attempts_in_order() -> None:
    job = misbehave.delay("transient")
    for _ in range(3):
        hurry()
        drain()
    attempts = DeadLetter.objects.get(job_id=job.id).attempts
    assert [a["number"] for a in attempts] == [1, 2, 3]
    assert [a["decision"] for a in attempts] == ["retrying", "retrying", "failed"]


def test_a_letter_is_as_old_as_its_failure() -> None:
    letter = dead()
    assert letter.created_at == letter.job.finished_at


def test_a_job_has_one_letter_at_most() -> None:
    letter = dead()
    signals.job_failed.send(sender=Job, job=letter.job)
    assert DeadLetter.objects.count() == 1


def test_no_letter_means_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """The letter is part of the transaction: where it cannot be written, the job is not failed either."""
    job = running(add.delay(1, 2).id)

    def full(**_: Any) -> None:
        raise IntegrityError("the disk is full")

    signals.job_failed.connect(full)
    try:
        with pytest.raises(IntegrityError), transaction.atomic():
            successors.finish(job, State.FAILED, "no use")
    finally:
        signals.job_failed.disconnect(full)
    assert fresh(job).state == State.RUNNING


def test_completed_and_cancelled_jobs_leave_no_letter() -> None:
    attempt(add.delay(1, 2).id)
    lifecycle.move(fresh(add.delay(1, 2)), State.CANCELLED)
    assert DeadLetter.objects.count() == 0


def test_a_job_with_a_letter_cannot_be_deleted_behind_its_back() -> None:
    letter = dead()
    with pytest.raises(ProtectedError):
        letter.job.delete()


def test_the_same_trouble_has_the_same_fingerprint() -> None:
    first, second = dead(), dead()
    other = misbehave.delay("permanent")
    attempt(other.id)
    assert first.fingerprint == second.fingerprint
    assert DeadLetter.objects.get(job_id=other.id).fingerprint != first.fingerprint


def test_the_database_refuses_a_closed_letter_that_does_not_say_when() -> None:
    letter = dead()
    with pytest.raises(IntegrityError, match="closed_letters_say_when"), transaction.atomic():
        DeadLetter.objects.filter(pk=letter.pk).update(status=Status.RESOLVED)


def test_a_letter_is_made_even_of_what_cannot_be_read() -> None:
    job = boom.delay("odd")
    Job.objects.filter(pk=job.id).update(delivery="{")
    attempt(job.id)
    assert DeadLetter.objects.get(job_id=job.id).headers["unreadable"] == "{"
