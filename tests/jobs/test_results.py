"""``AsyncResult`` and ``GroupResult`` over the job rows, with nothing written a second time."""

from datetime import timedelta
from uuid import uuid4

import pytest
from celery import group
from celery.exceptions import TaskRevokedError
from celery.exceptions import TimeoutError as StillRunning
from celery.result import AsyncResult, GroupResult
from django_celery_results.models import TaskResult

from jobs import control
from jobs.models import Job
from jobs.states import CELERY_STATE, State
from project.celery import app
from tests.platform import Platform, attempt, drain, fresh, running
from tests.sample.tasks import Count, add, boom, misbehave, note, untracked

pytestmark = pytest.mark.django_db


def test_a_result_is_read_off_the_job() -> None:
    result = add.delay(1, 2)
    assert (result.state, result.ready(), result.successful()) == ("PENDING", False, False)
    attempt(result.id)
    assert (result.state, result.ready(), result.successful(), result.get(timeout=1)) == ("SUCCESS", True, True, 3)


def test_a_tracked_job_writes_no_second_record() -> None:
    attempt(add.delay(1, 2).id)
    attempt(boom.delay().id)
    assert TaskResult.objects.count() == 0


def test_get_raises_what_the_job_failed_with() -> None:
    result = boom.delay("odd")
    attempt(result.id)
    assert result.failed()
    with pytest.raises(ValueError, match="odd"):
        result.get(timeout=1)
    assert "in boom" in result.traceback


def test_get_without_propagation_returns_the_error() -> None:
    result = boom.delay("odd")
    attempt(result.id)
    assert isinstance(result.get(timeout=1, propagate=False), ValueError)


def test_get_of_a_job_that_does_not_end_times_out() -> None:
    with pytest.raises(StillRunning):
        add.delay(1, 2).get(timeout=0.05, interval=0.01)


def test_a_job_that_waits_for_its_next_attempt_is_in_retry() -> None:
    result = misbehave.delay("transient")
    attempt(result.id)
    assert (result.state, result.ready()) == ("RETRY", False)


def test_a_running_job_has_started() -> None:
    result = add.delay(1, 2)
    running(result.id)
    assert result.state == "STARTED"


def test_a_cancelled_job_is_revoked() -> None:
    result = add.delay(1, 2)
    control.cancel(fresh(result).pk, reason="not wanted", by="ann")
    assert (result.state, result.ready()) == ("REVOKED", True)
    with pytest.raises(TaskRevokedError, match="not wanted"):
        result.get(timeout=1)


def test_a_result_is_found_again_by_its_id() -> None:
    job = add.delay(1, 2)
    attempt(job.id)
    assert AsyncResult(job.id, app=app).get(timeout=1) == 3


def test_an_id_that_nobody_knows_is_pending() -> None:
    assert AsyncResult(str(uuid4()), app=app).state == "PENDING"
    assert AsyncResult("not an id", app=app).state == "PENDING"


def test_the_progress_of_a_running_job_is_its_info() -> None:
    result = Count.delay(3)
    running(result.id)
    Job.objects.update(progress={"done": 1, "total": 3})
    assert result.info == {"done": 1, "total": 3}


def test_every_state_has_a_name_of_celerys() -> None:
    assert set(CELERY_STATE) == set(State)


def test_a_group_result_collects_its_members() -> None:
    result = group(add.s(1, 1), add.s(2, 2)).apply_async()
    assert (result.ready(), result.completed_count()) == (False, 0)
    drain()
    assert (result.ready(), result.successful(), result.get(timeout=1)) == (True, True, [2, 4])


def test_a_group_result_can_be_saved_and_restored() -> None:
    result = group(add.s(1, 1), add.s(2, 2)).apply_async()
    result.save()
    drain()
    assert GroupResult.restore(result.id, app=app).get(timeout=1) == [2, 4]


def test_a_group_result_raises_what_a_member_failed_with() -> None:
    result = group(add.s(1, 1), boom.si()).apply_async()
    drain()
    assert result.failed()
    with pytest.raises(ValueError, match="boom"):
        result.get(timeout=1)


def test_forgetting_a_result_does_not_delete_the_job() -> None:
    job = add.delay(1, 2)
    attempt(job.id)
    job.forget()
    assert fresh(job).result == "3"


# --- With a worker ------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_get_waits_for_a_worker(platform: Platform) -> None:
    assert add.delay(1, 2).get(timeout=10, interval=0.02) == 3


@pytest.mark.django_db(transaction=True)
def test_the_result_of_an_untracked_task_is_celerys_own(platform: Platform) -> None:
    result = untracked.delay("x")
    assert result.get(timeout=10, interval=0.02) == "x"
    assert Job.objects.count() == 0
    assert TaskResult.objects.get().task_id == result.id


def test_a_result_says_when_it_was_done() -> None:
    result = add.delay(1, 2)
    attempt(result.id)
    assert abs(result.date_done - fresh(result).finished_at) < timedelta(seconds=1)


def test_revoke_cancels_a_waiting_job_for_good_and_needs_no_worker() -> None:
    result = note.apply_async(("never",), countdown=3600)
    result.revoke()
    assert (fresh(result).state, fresh(result).reason) == (State.CANCELLED, "revoked")


def test_revoking_a_group_cancels_its_members() -> None:
    result = group(add.s(1, 1), add.s(2, 2)).apply_async()
    result.revoke()
    assert set(Job.objects.values_list("state", flat=True)) == {State.CANCELLED}


def test_revoke_of_a_running_job_asks_it_to_stop() -> None:
    result = add.delay(1, 2)
    running(result.id)
    result.revoke()
    assert fresh(result).cancel_requested_at is not None


def test_revoke_of_a_finished_job_changes_nothing() -> None:
    result = add.delay(1, 2)
    attempt(result.id)
    result.revoke()
    assert fresh(result).state == State.COMPLETED
