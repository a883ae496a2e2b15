"""When a message is known to be lost: on evidence, never by age alone."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db.models import F

from dlq.models import DeadLetter
from jobs import lifecycle, publisher
from jobs.models import Job, Worker
from jobs.reconcile import Reconciler
from jobs.states import State
from project.servers import RedisServer
from tests.platform import fresh
from tests.sample.tasks import add

pytestmark = pytest.mark.django_db


@pytest.fixture
def depth(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many messages wait in each queue."""
    depths: dict[str, int] = {"default": 0}
    monkeypatch.setattr(publisher.in_use(), "depth", lambda queue: depths[queue])
    return depths


def suspect() -> Job:
    """A job that was sent long ago and not claimed since."""
    job = fresh(add.delay(1, 2))
    Job.objects.filter(pk=job.pk).update(sent_at=F("sent_at") - timedelta(minutes=5))
    return fresh(job)


def report(name: str = "w", *, ago: float = 0.0, holds: tuple[Any, ...] = ()) -> None:
    """What a worker reported, some seconds ago."""
    at = lifecycle.database_now() - timedelta(seconds=ago)
    Worker.objects.update_or_create(
        name=name, defaults={"pid": 1, "started_at": at, "seen_at": at, "holds": [str(job.pk) for job in holds]}
    )


def later(reconciler: Reconciler, seconds: float = 5.0) -> None:
    """Let the reconciler have seen the queue empty some seconds ago."""
    reconciler.empty_since = {q: at - timedelta(seconds=seconds) for q, at in reconciler.empty_since.items()}


def test_a_job_is_lost_when_its_queue_is_empty_and_nobody_holds_it(depth: dict[str, int]) -> None:
    job, reconciler = suspect(), Reconciler()
    assert reconciler.tick() == 0
    later(reconciler)
    report()
    assert reconciler.tick() == 1
    assert (fresh(job).state, fresh(job).reason) == (State.PENDING, "its message was lost")


def test_a_job_that_a_live_worker_holds_is_not_lost(depth: dict[str, int]) -> None:
    job, reconciler = suspect(), Reconciler()
    reconciler.tick()
    later(reconciler)
    report(holds=(job,))
    assert reconciler.tick() == 0


def test_what_a_dead_worker_held_is_lost(depth: dict[str, int]) -> None:
    job, reconciler = suspect(), Reconciler()
    reconciler.tick()
    later(reconciler)
    report(ago=60, holds=(job,))
    assert reconciler.tick() == 1


def test_nothing_is_lost_while_messages_wait(depth: dict[str, int]) -> None:
    suspect()
    reconciler = Reconciler()
    reconciler.tick()
    later(reconciler)
    depth["default"] = 1
    assert reconciler.tick() == 0
    depth["default"] = 0
    assert reconciler.tick() == 0


def test_nothing_is_lost_before_every_live_worker_has_reported_since(depth: dict[str, int]) -> None:
    suspect()
    reconciler = Reconciler()
    reconciler.tick()
    later(reconciler, 3)
    report("fresh")
    report("slow", ago=2.5)
    assert reconciler.tick() == 0
    report("slow")
    assert reconciler.tick() == 1


def test_a_job_sent_a_moment_ago_is_not_suspect(depth: dict[str, int]) -> None:
    add.delay(1, 2)
    reconciler = Reconciler()
    assert reconciler.tick() == 0
    assert reconciler.empty_since == {}


def test_a_job_sent_after_the_queue_was_seen_empty_is_not_lost(depth: dict[str, int]) -> None:
    suspect()
    reconciler = Reconciler()
    reconciler.tick()
    later(reconciler, 3)
    young = fresh(add.delay(3, 4))
    Job.objects.filter(pk=young.pk).update(sent_at=lifecycle.database_now() - timedelta(seconds=1))
    report()
    reconciler.tick()
    assert fresh(young).state == State.RESERVED


def test_nothing_is_lost_while_the_broker_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    from jobs.errors import BrokerUnavailable

    def silent(queue: str) -> int:
        raise BrokerUnavailable("no answer")

    monkeypatch.setattr(publisher.in_use(), "depth", silent)
    suspect()
    assert Reconciler().tick() == 0


def found_again(depth: dict[str, int], job: Job) -> None:
    """Lose a job and find it."""
    reconciler = Reconciler()
    reconciler.tick()
    later(reconciler)
    report()
    assert reconciler.tick() == 1


def test_a_job_that_is_lost_again_is_sent_later_each_time(depth: dict[str, int]) -> None:
    job = suspect()
    Job.objects.update(sends=5)
    found_again(depth, job)
    wait = fresh(job).due_at - lifecycle.database_now()
    assert timedelta(seconds=14) < wait < timedelta(seconds=17)


def test_a_job_that_nobody_ever_claims_ends_as_a_letter_that_says_so(depth: dict[str, int]) -> None:
    job = suspect()
    Job.objects.update(sends=20)
    found_again(depth, job)
    assert fresh(job).state == State.FAILED
    letter = DeadLetter.objects.get()
    assert letter.reason == "sent 20 times and never claimed"
    assert "default" in letter.error_message


@pytest.mark.django_db(transaction=True)
def test_the_depth_of_a_queue_counts_all_priorities(broker: RedisServer) -> None:
    assert publisher.in_use().depth("default") == 0
    for priority in ("critical", "high", "normal", "low"):
        add.apply_async((1, 2), priority=priority)
    assert publisher.in_use().depth("default") == 4


@pytest.mark.django_db(transaction=True)
def test_a_flushed_broker_is_seen_on_the_real_server(broker: RedisServer, wait_until: Callable[..., Any]) -> None:
    from redis import Redis

    job, reconciler = suspect(), Reconciler()
    assert reconciler.tick() == 0
    with Redis.from_url(broker.url) as client:
        client.flushall()
    reconciler.tick()
    later(reconciler)
    assert reconciler.tick() == 1
    assert fresh(job).state == State.PENDING
