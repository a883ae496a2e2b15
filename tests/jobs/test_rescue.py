"""Jobs whose runner is gone come back, a bounded number of times."""

from datetime import timedelta
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock
from uuid import uuid4

import pytest
from billiard.exceptions import WorkerLostError
from celery.worker.request import Request as CeleryRequest
from django.db import IntegrityError, OperationalError

from dlq.models import DeadLetter
from jobs import conclusion, conf, lifecycle, rescue, worker
from jobs.models import Attempt, Job, Worker
from jobs.signals import job_failed
from jobs.states import State
from project.celery import app
from tests.platform import attempt, drain, fresh, hurry, running
from tests.sample.tasks import Enrol, add, hard_limited

pytestmark = pytest.mark.django_db


def test_a_job_whose_lease_has_ended_is_given_back_at_once() -> None:
    job = running(add.delay(1, 2).id, lease=-1)
    assert rescue.rescue() == 1
    assert (fresh(job).state, fresh(job).losses) == (State.RETRYING, 1)
    drain()
    assert (fresh(job).state, fresh(job).attempt) == (State.COMPLETED, 2)


def test_a_job_whose_lease_holds_is_left_alone() -> None:
    job = running(add.delay(1, 2).id, lease=20)
    assert rescue.rescue() == 0
    assert fresh(job).state == State.RUNNING


def test_a_job_that_cannot_be_recorded_holds_up_none_behind_it() -> None:
    stuck, behind = (running(add.delay(1, n).id, lease=-lease) for n, lease in ((1, 9), (2, 1)))
    Job.objects.update(losses=99)

    def refuse(job: Job, **_: object) -> None:
        if job.pk == stuck.pk:
            raise IntegrityError("a receiver of this project")

    job_failed.connect(refuse)
    try:
        assert rescue.rescue() == 1
    finally:
        job_failed.disconnect(refuse)
    assert (fresh(stuck).state, fresh(behind).state) == (State.RUNNING, State.FAILED)


def test_nothing_is_tried_on_a_database_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[object] = []

    def away(job: Job, *_: object) -> None:
        tried.append(job.pk)
        raise OperationalError("the server closed the connection")

    monkeypatch.setattr(conclusion, "conclude", away)
    for n in range(2):
        running(add.delay(1, n).id, lease=-1)
    with pytest.raises(OperationalError):
        rescue.rescue()
    assert len(tried) == 1


def test_a_lost_attempt_is_on_record_with_its_worker() -> None:
    running(add.delay(1, 2).id, lease=-1)
    rescue.rescue()
    record = Attempt.objects.get()
    assert (record.outcome, record.worker, record.error_type) == ("lost", "sleepy@here", "jobs.errors.WorkerLost")
    assert record.error_message == "sleepy@here stopped answering"


@pytest.mark.parametrize(
    ("limit", "seen_ago", "said"),
    [
        (3, 1, "hung past its time limit of 3 s"),
        (3, 60, "sleepy@here stopped answering"),
        (300, 1, "sleepy@here stopped answering"),
    ],
    ids=["the worker lives, the body is late", "the worker is silent", "the body was not late"],
)
def test_a_body_that_its_living_worker_gave_up_hangs(limit: float, seen_ago: float, said: str) -> None:
    running(add.delay(1, 2).id, lease=-1)
    now = lifecycle.database_now()
    Job.objects.update(started_at=now - timedelta(seconds=30), time_limit=limit)
    seen = now - timedelta(seconds=seen_ago)
    Worker.objects.create(name="sleepy@here", pid=1, started_at=now, seen_at=seen)
    rescue.rescue()
    assert Attempt.objects.get().error_message == said


def test_a_job_that_is_lost_again_and_again_ends_as_a_letter() -> None:
    job = add.delay(1, 2)
    for _ in range(3):
        running(job.id, lease=-1)
        rescue.rescue()
        hurry()
        lifecycle.reserve_due(1)
    assert fresh(job).state == State.FAILED
    assert DeadLetter.objects.get().reason.startswith("poison")


def test_the_first_loss_costs_no_wait_and_the_second_does() -> None:
    job = add.delay(1, 2)
    for _ in range(2):
        running(job.id, lease=-1)
        rescue.rescue()
        hurry()
        lifecycle.reserve_due(1)
    first, second = Attempt.objects.order_by("number")
    assert first.delay == 0
    assert second.delay > 0


def test_a_dead_child_gives_its_job_back_at_once() -> None:
    job = running(add.delay(1, 2).id, pid=4711)
    assert rescue.lost_child(str(job.pk), "sleepy@here", 4711, "signal 9") is True
    assert (fresh(job).state, fresh(job).reason) == (State.RETRYING, "lost: killed by signal 9")


def test_a_dead_child_gives_back_what_its_worker_claimed_for_it() -> None:
    job = running(add.delay(1, 2).id, pid=4700)
    assert rescue.lost_child(str(job.pk), "sleepy@here", 4711, "signal 9", uuid4()) is False
    assert rescue.lost_child(str(job.pk), "sleepy@here", 4711, "signal 9", job.token) is True


def test_the_death_of_another_process_is_not_this_jobs() -> None:
    job = running(add.delay(1, 2).id, pid=4711)
    assert rescue.lost_child(str(job.pk), "sleepy@here", 4712, "signal 9") is False
    assert fresh(job).state == State.RUNNING


def test_the_death_of_a_process_with_the_same_pid_in_another_container_is_not_this_jobs() -> None:
    job = running(add.delay(1, 2).id, pid=7)
    assert rescue.lost_child(str(job.pk), "other@there", 7, "signal 9") is False
    assert fresh(job).state == State.RUNNING


def test_a_worker_that_sees_its_child_die_says_which_worker_and_which_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[Any] = []
    monkeypatch.setattr(worker.gate, "in_background", lambda act, *args: told.append((act, args)))
    monkeypatch.setattr(CeleryRequest, "on_failure", lambda self, info, **_: None)
    job = add.delay(1, 2)
    message = Mock(headers={"id": job.id, "task": add.name}, delivery_info={}, properties={})
    request = worker.Request(message, app=app, task=add, hostname="sleepy@here", decoded=True, body=((), {}, {}))
    request.worker_pid = 4711
    request.on_failure(SimpleNamespace(exception=WorkerLostError("signal 9")))
    assert told == [(rescue.lost_child, (job.id, "sleepy@here", 4711, "signal 9", None))]


def test_the_death_of_a_child_after_its_job_was_recorded_changes_nothing() -> None:
    job = add.delay(1, 2)
    attempt(job.id)
    assert rescue.lost_child(job.id, "here", fresh(job).pid, "signal 9") is False
    assert fresh(job).state == State.COMPLETED


def test_a_late_completion_after_a_rescue_is_refused() -> None:
    late = running(add.delay(1, 2).id, lease=-1)
    rescue.rescue()
    assert lifecycle.complete(late, "3") is False


def test_every_job_that_is_lost_is_rescued_and_one_bad_one_does_not_stop_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    jobs = [running(add.delay(1, n).id, lease=-1) for n in range(3)]
    Job.objects.filter(pk=jobs[1].pk).update(task="unknown.task")
    assert rescue.rescue() == 3


def test_a_jobs_time_limit_is_its_tasks_or_the_settings() -> None:
    assert fresh(hard_limited.delay()).time_limit == 1.5
    assert fresh(Enrol.delay("x")).time_limit == conf.current().TIME_LIMIT


def test_what_was_rescued_is_due_by_the_databases_clock() -> None:
    job = running(add.delay(1, 2).id, lease=-1)
    rescue.rescue()
    assert abs(fresh(job).due_at - lifecycle.database_now()) < timedelta(seconds=5)
