"""What stands in the way of a message: the broker, which holds up everything, or one job, which holds up itself."""

from collections.abc import Iterator
from typing import Any

import pytest
from amqp.exceptions import NotFound
from kombu.exceptions import OperationalError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ReadOnlyError

from dlq.models import DeadLetter
from jobs import outbox, publisher, release
from jobs.errors import BrokerUnavailable, Unsendable
from jobs.models import Job
from jobs.publisher import Publisher
from jobs.states import State
from project.servers import RedisServer
from tests.platform import fresh, hurry, messages
from tests.sample.tasks import add

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def unpaused(broker: RedisServer) -> Iterator[Publisher]:
    """A publisher that has seen no failure yet."""
    before = publisher.in_use()
    publisher.use(Publisher(before.app, before._send_task))
    yield publisher.in_use()
    publisher.in_use().forget()
    publisher.use(before)


def scheduled(**changes: Any) -> Job:
    """A job that is due now, with a row as an older deployment may have left it."""
    job = fresh(add.apply_async((1, 2), countdown=60))
    Job.objects.filter(pk=job.pk).update(**changes)
    hurry()
    return fresh(job)


def renamed() -> Job:
    """A job of a queue that exists no more."""
    return scheduled(queue="renamed")


def tried_too_often(job: Job) -> Job:
    for _ in range(outbox.TRIES):
        hurry()
        release.release()
    return fresh(job)


def test_a_job_of_a_queue_that_exists_no_more_holds_up_no_other(unpaused: Publisher, broker: RedisServer) -> None:
    jobs = [renamed(), scheduled(), scheduled()]
    assert release.release() == 2
    assert [fresh(job).state for job in jobs] == [State.PENDING, State.RESERVED, State.RESERVED]
    assert messages(broker.url) == 2
    assert not unpaused.paused


def test_its_row_says_at_once_why_it_cannot_be_sent() -> None:
    job = renamed()
    release.release()
    assert fresh(job).reason.startswith("cannot be sent: QueueNotFound: ")
    assert "renamed" in fresh(job).reason
    assert fresh(job).error_type == "celery.exceptions.QueueNotFound"


def test_each_wait_is_longer_than_the_one_before() -> None:
    job, waits = renamed(), []
    for _ in range(outbox.TRIES - 1):
        hurry()
        before = fresh(job).due_at
        release.release()
        waits.append(round((fresh(job).due_at - before).total_seconds()))
    assert waits == [1, 4, 16, 64]


def test_a_job_that_cannot_be_sent_ends_as_a_letter_that_says_so() -> None:
    job = tried_too_often(renamed())
    letter = DeadLetter.objects.get(job=job)
    assert (job.state, letter.error_type) == (State.FAILED, "celery.exceptions.QueueNotFound")
    assert letter.reason.startswith("cannot be sent: ")
    assert "renamed" in letter.error_message


@pytest.mark.parametrize("delivery", ['{"delivery_mode": "durable"}', '{"compression": "pkzip"}'])
def test_so_does_one_whose_message_cannot_be_made(delivery: str) -> None:
    job = tried_too_often(scheduled(delivery=delivery))
    assert job.state == State.FAILED
    assert DeadLetter.objects.get(job=job).reason.startswith("cannot be sent: ")


def test_a_call_that_cannot_be_sent_waits_for_the_conductor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher.in_use(), "_asked", lambda job, way: {}["nothing"])
    job = fresh(add.delay(1, 2))
    assert (job.state, job.sends) == (State.PENDING, 1)


def test_a_job_that_can_be_sent_again_is_sent(broker: RedisServer) -> None:
    job = renamed()
    release.release()
    Job.objects.filter(pk=job.pk).update(queue="default")
    hurry()
    assert release.release() == 1
    assert fresh(job).state == State.RESERVED


@pytest.mark.parametrize(
    "error",
    [
        OperationalError("gone"), RedisConnectionError("refused"), ReadOnlyError("a replica"), TimeoutError("late"),
        ConnectionResetError("reset"),
    ],
)  # fmt: skip
def test_what_the_broker_does_wrong_is_no_fault_of_the_job(unpaused: Publisher, error: Exception) -> None:
    unpaused._send_task = raising(error)
    with pytest.raises(BrokerUnavailable):
        unpaused.publish(scheduled())
    assert unpaused.paused


@pytest.mark.parametrize("error", [KeyError("route"), ValueError("mode"), NotFound("no exchange 'x'"), TypeError()])
def test_everything_else_is(unpaused: Publisher, error: Exception) -> None:
    unpaused._send_task = raising(error)
    with pytest.raises(Unsendable):
        unpaused.publish(scheduled())
    assert not unpaused.paused


def test_a_broker_whose_address_makes_no_sense_is_no_fault_of_the_job(
    unpaused: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = scheduled()
    monkeypatch.setattr(unpaused.app.conf, "broker_write_url", "rediss-typo://127.0.0.1")
    with pytest.raises(BrokerUnavailable):
        unpaused.publish(job)


def test_what_an_error_says_can_be_kept_by_every_database(unpaused: Publisher) -> None:
    unpaused._send_task = raising(ValueError("a\x00b\udc80c\nd"))
    job = fresh(add.delay(1, 2))
    assert job.reason == "cannot be sent: ValueError: a b c d"


def raising(error: Exception) -> Any:
    def fail(*args: Any, **options: Any) -> None:
        raise error

    return fail
