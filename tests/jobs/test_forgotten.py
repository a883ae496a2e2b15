"""Messages of jobs that the database does not know: it was set back, or they were pruned."""

from datetime import timedelta
from typing import Any

import pytest
from celery.app.trace import build_tracer

from jobs import lifecycle
from jobs.models import Epoch, Job
from jobs.states import State
from project.celery import app
from tests.platform import fresh
from tests.sample.tasks import add

pytestmark = pytest.mark.django_db


def after_a_restore(job: Any) -> None:
    """Run the message of a job whose row the database has lost."""
    payload = Job.objects.get(pk=job.id)
    Job.objects.filter(pk=job.id).delete()
    deliver(payload)


def deliver(job: Job) -> None:
    """Give a job's message to a worker's child."""
    request = {
        "id": str(job.pk), "task": job.task, "hostname": "here", "called_directly": False, "is_eager": False,
        "args": [1, 2], "kwargs": {}, "delivery_info": {"routing_key": job.queue}, "mainstay": {"job": str(job.pk)},
    }  # fmt: skip
    build_tracer(job.task, app.tasks[job.task], app=app, loader=app.loader, hostname="here")(
        str(job.pk), (1, 2), {}, request
    )


def test_a_job_that_a_restored_database_forgot_is_kept_as_a_letter(sent: list[str]) -> None:
    job = add.delay(1, 2)
    after_a_restore(job)
    kept = Job.objects.get(pk=job.id)
    assert (kept.state, kept.task, kept.payload) == (State.FAILED, add.name, fresh(add.delay(1, 2)).payload)
    assert "set back" in kept.dead_letter.error_message


def test_a_forgotten_job_is_kept_once(sent: list[str]) -> None:
    job = add.delay(1, 2)
    row = Job.objects.get(pk=job.id)
    after_a_restore(job)
    deliver(row)
    assert Job.objects.count() == 1


def test_a_late_duplicate_of_a_pruned_job_is_refused(sent: list[str]) -> None:
    job = add.delay(1, 2)
    Epoch.objects.create(broker="default", serial=7, marked_at=lifecycle.database_now() + timedelta(hours=1))
    after_a_restore(job)
    assert not Job.objects.exists()
