"""Messages of a foreign producer, and those that waited when Mainstay was installed, become jobs."""

from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery

from dlq.models import DeadLetter
from jobs.models import Job
from jobs.states import State
from project.servers import RedisServer
from tests.platform import Platform, fresh
from tests.sample.tasks import add, misbehave, note, plain, untracked

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.one_database]

WaitUntil = Callable[..., Any]


@pytest.fixture
def foreign(broker: RedisServer) -> Iterator[Celery]:
    """A Celery app that never heard of Mainstay, on the same broker."""
    app = Celery("foreign", broker=broker.url, set_as_current=False)
    app.conf.task_default_queue = "default"
    yield app
    app.close()


def settled(wait_until: WaitUntil, count: int = 1) -> list[Job]:
    """All jobs, once they have settled."""
    wait_until(lambda: Job.objects.filter(finished_at__isnull=False).count() == count, timeout=20)
    return list(Job.objects.order_by("created_at"))


def test_a_foreign_message_becomes_a_job(platform: Platform, foreign: Celery, wait_until: WaitUntil) -> None:
    sent = foreign.send_task(plain.name, (3,))
    (job,) = settled(wait_until)
    assert (str(job.pk), job.task, job.result, job.queue) == (sent.id, plain.name, "6", "default")


def test_a_foreign_message_that_is_delivered_twice_runs_once(
    platform: Platform, foreign: Celery, wait_until: WaitUntil
) -> None:
    same = str(uuid4())
    for _ in range(2):
        foreign.send_task(note.name, ("once",), task_id=same)
    foreign.send_task(note.name, ("after",))
    settled(wait_until, 2)
    wait_until(lambda: "after" in platform.witness.lines)
    assert platform.witness.lines.count("once") == 1


def test_a_foreign_id_that_is_not_a_uuid_is_accepted(
    platform: Platform, foreign: Celery, wait_until: WaitUntil
) -> None:
    foreign.send_task(note.name, ("x",), task_id="order-7")
    (job,) = settled(wait_until)
    assert job.state == State.COMPLETED


def test_an_adopted_job_that_fails_is_retried_as_any_other(
    platform: Platform, foreign: Celery, wait_until: WaitUntil
) -> None:
    foreign.send_task(misbehave.name, ("transient", 2))
    (job,) = settled(wait_until)
    assert (job.state, job.attempt) == (State.COMPLETED, 2)


def test_a_foreign_payload_that_does_not_fit_ends_as_a_letter(
    platform: Platform, foreign: Celery, wait_until: WaitUntil
) -> None:
    foreign.send_task(add.name, ("one", "two"))
    (job,) = settled(wait_until)
    assert job.state == State.FAILED
    assert "valid integer" in DeadLetter.objects.get().error_message


def test_what_follows_a_foreign_message_runs_once(platform: Platform, foreign: Celery, wait_until: WaitUntil) -> None:
    foreign.send_task(add.name, (1, 2), link=foreign.signature(note.name, args=("linked",), immutable=True))
    settled(wait_until, 2)
    assert platform.witness.lines == ["linked"]


def test_a_foreign_chain_goes_on(platform: Platform, foreign: Celery, wait_until: WaitUntil) -> None:
    first = foreign.signature(add.name, args=(1, 2))
    (first | foreign.signature(add.name, args=(10,)) | foreign.signature(add.name, args=(100,))).apply_async()
    jobs = settled(wait_until, 3)
    assert sorted(int(str(job.result)) for job in jobs) == [3, 13, 113]


def test_a_foreign_message_of_an_opted_out_task_leaves_no_job(
    platform: Platform, foreign: Celery, wait_until: WaitUntil
) -> None:
    foreign.send_task(untracked.name, ("x",))
    wait_until(lambda: platform.witness.lines == ["x"])
    assert Job.objects.count() == 0


def test_a_call_that_opted_out_is_not_adopted(platform: Platform, wait_until: WaitUntil) -> None:
    plain.apply_async((1,), tracked=False)
    wait_until(lambda: platform.witness.lines == ["plain:1:2"])
    assert Job.objects.count() == 0


def test_a_message_of_ours_that_arrives_twice_runs_once(platform: Platform, wait_until: WaitUntil) -> None:
    from jobs import publisher

    job = note.apply_async(("once",), countdown=3600)
    waiting = fresh(job)
    for _ in range(3):
        publisher.in_use().publish(waiting)
    from jobs import control

    control.retry(waiting.pk, by="ann")
    wait_until(lambda: fresh(job).state == State.COMPLETED)
    note.delay("after")
    wait_until(lambda: "after" in platform.witness.lines)
    assert platform.witness.lines.count("once") == 1


def test_an_adopted_job_whose_child_dies_is_retried_at_once_whatever_its_id(
    platform: Platform, foreign: Celery, wait_until: WaitUntil
) -> None:
    foreign.send_task(misbehave.name, ("kill", 2), task_id="order-7")
    wait_until(lambda: "start:kill:2" in platform.witness.lines, timeout=4)
    (job,) = settled(wait_until)
    assert (job.state, job.losses) == (State.COMPLETED, 1)
