"""The way out: marked first, sent second; a broker that fails costs nobody a job."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from django.db import transaction
from kombu import Exchange, Queue
from redis import Redis

from jobs import outbox, publisher, release
from jobs.errors import BrokerUnavailable
from jobs.models import Job
from jobs.publisher import Failures, Publisher
from jobs.states import State
from project.servers import RedisServer
from tests.platform import fresh, hurry, messages
from tests.sample.tasks import add, note, untracked

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def unpaused() -> Iterator[Publisher]:
    """A publisher that has seen no failure yet."""
    before = publisher.in_use()
    publisher.use(Publisher(before.app, before._send_task))
    yield publisher.in_use()
    publisher.in_use().forget()
    publisher.use(before)


@pytest.fixture
def broken(unpaused: Publisher, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A broker that fails each time; the ids of the jobs that it was offered."""
    offered: list[str] = []

    error = BrokerUnavailable("no answer")

    def fail(job: Job) -> None:
        offered.append(str(job.pk))
        raise error

    def fail_all(jobs: Sequence[Job]) -> Failures:
        offered.append(str(jobs[0].pk))
        return {job.pk: error for job in jobs}

    monkeypatch.setattr(unpaused, "publish", fail)
    monkeypatch.setattr(unpaused, "publish_many", fail_all)
    return offered


def only_message(broker: RedisServer) -> dict[str, Any]:
    """The one message in the default queue."""
    import json

    with Redis.from_url(broker.url) as client:
        (raw,) = client.lrange("default\x06\x166", 0, -1) or client.lrange("default", 0, -1)
    message: dict[str, Any] = json.loads(raw)
    return message


def test_a_job_is_marked_before_it_is_sent(broken: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(publisher.in_use(), "publish", lambda job: seen.append((fresh(job).state, fresh(job).sends)))
    add.delay(1, 2)
    assert seen == [(State.RESERVED, 1)]


def test_a_message_carries_the_job_and_the_correlation_id(broker: RedisServer) -> None:
    job = add.apply_async((1, 2), correlation_id="req-1")
    headers = only_message(broker)["headers"]
    assert headers["mainstay"] == {"job": job.id, "correlation_id": "req-1"}
    assert (headers["id"], headers["task"]) == (job.id, add.name)


def test_no_delay_or_expiry_rides_in_the_message(broker: RedisServer) -> None:
    add.apply_async((1, 2), countdown=3600, expires=7200)
    assert messages(broker.url) == 0
    hurry()
    assert release.release() == 1
    headers = only_message(broker)["headers"]
    assert (headers["eta"], headers["expires"]) == (None, None)


def test_what_the_call_carries_beyond_the_payload_is_sent_each_time(broker: RedisServer) -> None:
    add.apply_async((1, 2), headers={"x-trace": "7"}, countdown=60)
    hurry()
    release.release()
    assert only_message(broker)["headers"]["x-trace"] == "7"


@pytest.mark.parametrize(("priority", "step"), [("critical", 0), ("high", 3), ("normal", 6), ("low", 9)])
def test_the_brokers_own_priorities_are_mapped(broker: RedisServer, priority: str, step: int) -> None:
    add.apply_async((1, 2), priority=priority)
    release.release()
    with Redis.from_url(broker.url) as client:
        assert client.llen(f"default\x06\x16{step}" if step else "default") == 1


@pytest.mark.parametrize("lost", [{"losses": 1}, {"sends": 1}], ids=["its runner", "its message"])
@pytest.mark.parametrize(("priority", "step"), [("critical", 0), ("high", 0), ("normal", 3), ("low", 6)])
def test_a_job_that_lost_something_does_not_wait_for_its_turn_a_second_time(
    broker: RedisServer, priority: str, step: int, lost: dict[str, int]
) -> None:
    job = add.apply_async((1, 2), priority=priority, countdown=60)
    Job.objects.filter(pk=job.id).update(**lost)
    hurry()
    release.release()
    with Redis.from_url(broker.url) as client:
        assert client.llen(f"default\x06\x16{step}" if step else "default") == 1


def test_a_job_that_could_not_be_sent_waits_in_the_database(broken: list[str]) -> None:
    job = add.delay(1, 2)
    assert broken == [job.id]
    assert (fresh(job).state, fresh(job).sends) == (State.PENDING, 0)
    assert fresh(job).reason == "the broker could not be reached: no answer"


def test_after_a_failure_enqueue_does_not_try_for_a_while(unpaused: Publisher, broker: RedisServer) -> None:
    broker.stop()
    first = add.delay(1, 2)
    assert unpaused.paused
    assert fresh(first).state == State.PENDING
    second = add.delay(1, 2)
    assert (fresh(second).state, fresh(second).reason) == (State.PENDING, outbox.UNREACHABLE)


def test_what_could_not_be_sent_is_released_when_the_broker_is_back(broker: RedisServer) -> None:
    broker.stop()
    job = add.delay(1, 2)
    broker.start()
    hurry()
    publisher.use(Publisher(publisher.in_use().app, publisher.in_use()._send_task))
    assert release.release() == 1
    assert fresh(job).state == State.RESERVED
    assert messages(broker.url) == 1


def test_a_connection_that_went_stale_is_renewed_without_a_failure(broker: RedisServer) -> None:
    add.delay(1, 2)
    broker.restart()
    job = add.delay(1, 2)
    assert fresh(job).state == State.RESERVED
    assert messages(broker.url) == 1


def test_a_release_that_fails_half_way_loses_nothing(broken: list[str]) -> None:
    jobs = [note.apply_async((str(n),), countdown=60) for n in range(3)]
    hurry()
    assert release.release() == 0
    assert len(broken) == 1
    assert {fresh(job).state for job in jobs} == {State.PENDING}


def test_a_release_is_bounded(broker: RedisServer) -> None:
    for n in range(3):
        note.apply_async((str(n),), countdown=60)
    hurry()
    assert release.release(2) == 2


def test_a_rollback_after_the_broker_failed_leaves_nothing(broken: list[str]) -> None:
    def enqueue_and_fail() -> None:
        with transaction.atomic():
            add.delay(1, 2)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        enqueue_and_fail()
    assert (broken, Job.objects.count()) == ([], 0)


def test_a_message_of_an_untracked_call_says_so(broker: RedisServer) -> None:
    untracked.delay("x")
    with Redis.from_url(broker.url) as client:
        keys = [key for key in client.keys("default*") if client.type(key) == b"list"]
    assert len(keys) == 1


def test_what_goes_out_after_a_long_transaction_is_marked_as_sent_then(
    broker: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the order of the marks it is known which messages were lost."""
    monkeypatch.setattr(outbox, "FRESH", 0.0)
    with transaction.atomic():
        job = add.delay(1, 2)
        inserted = fresh(job).sent_at
        other = add.delay(3, 4)
    assert inserted < fresh(other).created_at < fresh(job).sent_at


def test_what_goes_out_at_once_is_marked_once(
    broker: RedisServer, django_assert_num_queries: Callable[..., Any]
) -> None:
    add.delay(1, 2)  # the statement is planned once for each connection
    with django_assert_num_queries(1):
        add.delay(1, 2)


def test_a_job_that_is_routed_by_exchange_knows_the_queue_that_this_leads_to(
    broker: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is known of lost messages is known by queue: another one's emptiness would tell nothing of this job."""
    app = publisher.in_use().app
    mail = Queue("mail", Exchange("letters"), routing_key="letters.new")
    monkeypatch.setitem(app.amqp.queues, "mail", mail)
    mail(publisher.in_use().reached().channel).declare()
    job = fresh(add.apply_async((1, 2), exchange="letters", routing_key="letters.new"))
    assert (job.queue, publisher.in_use().depth("mail")) == ("mail", 1)
