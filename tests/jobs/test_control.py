"""What people may do to jobs: cancel, retry, pause, resume; and what time does: expire."""

import threading
from datetime import timedelta
from uuid import uuid4

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.db.models import F

from jobs import control, lifecycle, rescue
from jobs.errors import JobNotFound, Refused
from jobs.models import Act, Job, Pause
from jobs.states import State
from tests.platform import Witness, attempt, drain, fresh, running
from tests.sample.tasks import add, boom, misbehave, note, patient

pytestmark = pytest.mark.django_db


def scheduled() -> Job:
    """A job that is due in an hour."""
    return fresh(note.apply_async(("later",), countdown=3600))


# --- Cancel -----------------------------------------------------------------------------------------


def test_a_cancelled_waiting_job_never_runs(witness: Witness) -> None:
    job = scheduled()
    control.cancel(job.pk, reason="not wanted", by="ann")
    Job.objects.update(due_at=F("created_at"))
    drain()
    assert (fresh(job).state, fresh(job).reason, witness.lines) == (State.CANCELLED, "not wanted", [])


def test_a_cancelled_job_in_the_broker_is_refused_when_its_message_arrives(witness: Witness) -> None:
    job = note.delay("never")
    control.cancel(fresh(job).pk, reason="not wanted", by="ann")
    attempt(job.id)
    assert (fresh(job).state, witness.lines) == (State.CANCELLED, [])


def test_a_cancel_of_a_running_job_is_a_request() -> None:
    job = running(add.delay(1, 2).id)
    control.cancel(job.pk, reason="not wanted", by="ann")
    assert (fresh(job).state, fresh(job).cancel_reason) == (State.RUNNING, "not wanted")


def test_a_running_job_that_does_not_obey_is_cancelled_after_the_grace(settings: object) -> None:
    job = running(add.delay(1, 2).id)
    control.cancel(job.pk, reason="not wanted", by="ann")
    assert rescue.force_cancel() == 0
    Job.objects.update(cancel_requested_at=F("cancel_requested_at") - timedelta(seconds=60))
    assert rescue.force_cancel() == 1
    assert (fresh(job).state, fresh(job).reason) == (State.CANCELLED, "forced: not wanted")


def test_a_job_that_was_asked_to_stop_is_not_retried_when_its_worker_dies() -> None:
    job = running(add.delay(1, 2).id, lease=-1)
    control.cancel(job.pk, reason="not wanted", by="ann")
    rescue.rescue()
    assert fresh(job).state == State.CANCELLED


@pytest.mark.parametrize("call", [lambda: add.delay(1, 2), lambda: boom.delay()], ids=["completed", "failed"])
def test_a_finished_job_cannot_be_cancelled(call: object) -> None:
    job = call()  # type: ignore[operator]
    attempt(job.id)
    with pytest.raises(Refused, match="there is nothing to cancel"):
        control.cancel(fresh(job).pk, reason="x", by="ann")


def test_a_job_that_does_not_exist_cannot_be_cancelled() -> None:
    with pytest.raises(JobNotFound):
        control.cancel(uuid4(), reason="x", by="ann")


def test_every_act_is_in_the_audit_trail() -> None:
    ann = User.objects.create(username="ann")
    job = scheduled()
    control.cancel(job.pk, reason="not wanted", by="ann")
    act = Act.objects.get()
    assert (act.verb, act.by, act.user, act.job_id, act.reason) == ("cancel", "ann", ann, job.pk, "not wanted")


# --- Retry ------------------------------------------------------------------------------------------


def test_retry_makes_a_scheduled_job_due_now(witness: Witness) -> None:
    job = scheduled()
    control.retry(job.pk, by="ann")
    drain()
    assert witness.lines == ["later"]
    assert fresh(job).state == State.COMPLETED


def test_retry_makes_a_job_due_now_that_waits_for_its_next_attempt() -> None:
    job = misbehave.delay("transient", until=2)
    attempt(job.id)
    control.retry(fresh(job).pk, by="ann")
    drain()
    assert fresh(job).state == State.COMPLETED


def test_retry_of_a_failed_job_points_to_its_letter() -> None:
    job = boom.delay()
    attempt(job.id)
    with pytest.raises(Refused, match="replay its dead letter"):
        control.retry(fresh(job).pk, by="ann")


def test_retry_of_a_running_job_is_refused() -> None:
    with pytest.raises(Refused, match="only a job that waits"):
        control.retry(running(add.delay(1, 2).id).pk, by="ann")


def test_retry_of_a_chords_body_is_refused() -> None:
    from celery import chord

    from tests.sample.tasks import total

    body = chord([add.s(1, 1)], total.s()).apply_async()
    with pytest.raises(Refused, match="waits for the members of its chord"):
        control.retry(fresh(body).pk, by="ann")


# --- Pause and resume -------------------------------------------------------------------------------


@pytest.mark.parametrize("what", [{"queue": "default"}, {"task": note.name}], ids=["queue", "task"])
def test_a_pause_takes_back_what_waits_in_the_broker_and_a_resume_lets_it_go(
    witness: Witness, what: dict[str, str]
) -> None:
    job = note.delay("held")
    control.pause(**what, reason="repairs", by="ann")
    assert (fresh(job).state, fresh(job).reason) == (State.PENDING, "paused")
    drain()
    assert witness.lines == []
    assert control.resume(**what, by="ann") is True
    drain()
    assert witness.lines == ["held"]


def test_a_job_enqueued_during_a_pause_waits(witness: Witness) -> None:
    control.pause(queue="default", reason="repairs", by="ann")
    note.delay("held")
    drain()
    assert witness.lines == []


def test_a_pause_does_not_stop_other_queues(witness: Witness) -> None:
    control.pause(queue="mail", reason="repairs", by="ann")
    note.delay("runs")
    drain()
    assert witness.lines == ["runs"]


def test_a_running_job_of_a_paused_queue_goes_on() -> None:
    job = running(add.delay(1, 2).id)
    control.pause(queue="default", reason="repairs", by="ann")
    assert fresh(job).state == State.RUNNING


def test_pausing_twice_is_pausing_once() -> None:
    control.pause(queue="mail", reason="a", by="ann")
    control.pause(queue="mail", reason="b", by="bob")
    assert [(p.reason, p.by) for p in Pause.objects.all()] == [("b", "bob")]


@pytest.mark.django_db(transaction=True)
def test_any_number_of_people_may_pause_and_resume_at_once() -> None:
    errors: list[Exception] = []

    def pause_and_resume() -> None:
        try:
            for _ in range(25):
                control.pause(queue="mail", reason="a deploy", by="ann")
                control.resume(queue="mail", by="ann")
        except Exception as error:
            errors.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=pause_and_resume) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_resuming_what_is_not_paused_says_so() -> None:
    assert control.resume(queue="mail", by="ann") is False


@pytest.mark.parametrize("what", [{}, {"queue": "mail", "task": "x"}])
def test_a_pause_names_either_a_queue_or_a_task(what: dict[str, str]) -> None:
    with pytest.raises(Refused, match="either a queue or a task"):
        control.pause(**what, reason="x", by="ann")


# --- Expiry -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("countdown", [None, 3600])
def test_a_waiting_job_whose_time_has_run_out_is_cancelled(countdown: int | None) -> None:
    job = note.apply_async(("x",), countdown=countdown, expires=7200)
    assert control.expire() == 0
    Job.objects.update(expires_at=F("created_at"))
    assert control.expire() == 1
    assert (fresh(job).state, fresh(job).reason) == (State.CANCELLED, "expired")


def test_a_running_job_does_not_expire() -> None:
    job = running(patient.apply_async(("x",), expires=60).id)
    Job.objects.update(expires_at=F("created_at"))
    assert control.expire() == 0
    assert fresh(job).state == State.RUNNING


def test_the_database_gives_the_time_of_an_act() -> None:
    before = lifecycle.database_now()
    control.pause(queue="mail", reason="a", by="ann")
    assert before <= Act.objects.get().at <= lifecycle.database_now()


# --- How things are named ---------------------------------------------------------------------------


def test_a_task_may_be_named_by_the_last_part_of_its_name() -> None:
    control.pause(task="note", reason="", by="ann")
    assert Pause.objects.get().name == note.name
    assert control.resume(task="note", by="ann")
    assert control.allot(task="note", slots=1, by="ann").name == f"task {note.name}"
    assert control.withdraw("slots", task="note", by="ann")


def test_a_task_that_is_yet_to_come_may_be_paused() -> None:
    control.pause(task="shop.tasks.tomorrow", reason="", by="ann")
    assert Pause.objects.get().name == "shop.tasks.tomorrow"


def test_a_job_may_be_named_by_what_its_call_returned() -> None:
    job = note.apply_async(("later",), countdown=3600)
    control.cancel(job, reason="", by="ann")  # type: ignore[arg-type]
    assert fresh(job).state == State.CANCELLED


def test_what_is_no_id_is_no_job() -> None:
    with pytest.raises(JobNotFound, match="There is no job 17"):
        control.cancel("17", reason="", by="ann")  # type: ignore[arg-type]


def test_a_job_is_snoozed_for_seconds_too() -> None:
    job = scheduled()
    due_at = control.snooze(job.pk, 90, by="ann").due_at
    assert due_at is not None
    assert timedelta(seconds=60) < due_at - lifecycle.database_now() <= timedelta(seconds=90)


def test_what_was_withdrawn_is_on_record() -> None:
    control.allot("gateway", rate="5/s", by="ann")
    control.withdraw("rate", "gateway", by="bob")
    assert Act.objects.get(verb="withdraw").details == {"said": "5/s"}
