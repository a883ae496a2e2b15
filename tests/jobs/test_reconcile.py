"""When a message is known to be lost: on evidence, never by age alone."""

from collections.abc import Callable
from datetime import timedelta
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from celery.worker import state as worker_state
from django.db.models import F
from django.utils import timezone
from kombu.utils.limits import TokenBucket

from dlq.models import DeadLetter
from jobs import evidence, intake, lifecycle, publisher, release, worker
from jobs.adoption import as_uuid
from jobs.errors import BrokerUnavailable
from jobs.models import Job, Worker
from jobs.reconcile import Reconciler
from jobs.roll import Entry
from jobs.states import Priority, State
from project.servers import RedisServer
from tests.platform import fresh
from tests.sample.tasks import add

pytestmark = pytest.mark.django_db


@pytest.fixture
def depth(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many messages wait in each queue."""
    depths: dict[str, int] = {"default": 0}
    monkeypatch.setattr(publisher.in_use(), "depth", lambda queue, priority: depths[queue])
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
    reconciler.empty_since = {line: at - timedelta(seconds=seconds) for line, at in reconciler.empty_since.items()}


def look(reconciler: Reconciler) -> int:
    """One tick, though the last was a moment ago."""
    reconciler.resting_until = 0.0
    return reconciler.tick()


def test_a_job_is_lost_when_its_queue_is_empty_and_nobody_holds_it(depth: dict[str, int]) -> None:
    job, reconciler = suspect(), Reconciler()
    assert look(reconciler) == 0
    later(reconciler)
    report()
    assert look(reconciler) == 1
    assert (fresh(job).state, fresh(job).reason) == (State.PENDING, "its message was lost")


def test_a_job_that_a_live_worker_holds_is_not_lost(depth: dict[str, int]) -> None:
    job, reconciler = suspect(), Reconciler()
    look(reconciler)
    later(reconciler)
    report(holds=(job,))
    assert look(reconciler) == 0


def test_what_a_dead_worker_held_is_lost(depth: dict[str, int]) -> None:
    job, reconciler = suspect(), Reconciler()
    look(reconciler)
    later(reconciler)
    report(ago=60, holds=(job,))
    assert look(reconciler) == 1


def test_nothing_is_lost_while_messages_wait(depth: dict[str, int]) -> None:
    suspect()
    reconciler = Reconciler()
    look(reconciler)
    later(reconciler)
    depth["default"] = 1
    assert look(reconciler) == 0
    depth["default"] = 0
    assert look(reconciler) == 0


def test_nothing_is_lost_before_every_live_worker_has_reported_since(depth: dict[str, int]) -> None:
    suspect()
    reconciler = Reconciler()
    look(reconciler)
    later(reconciler, 3)
    report("fresh")
    report("slow", ago=2.5)
    assert look(reconciler) == 0
    report("slow")
    assert look(reconciler) == 1


def test_a_job_sent_a_moment_ago_is_not_suspect(depth: dict[str, int]) -> None:
    add.delay(1, 2)
    reconciler = Reconciler()
    assert look(reconciler) == 0
    assert reconciler.empty_since == {}


def test_a_job_sent_after_the_queue_was_seen_empty_is_not_lost(depth: dict[str, int]) -> None:
    suspect()
    reconciler = Reconciler()
    look(reconciler)
    later(reconciler, 3)
    young = fresh(add.delay(3, 4))
    Job.objects.filter(pk=young.pk).update(sent_at=lifecycle.database_now() - timedelta(seconds=1))
    report()
    look(reconciler)
    assert fresh(young).state == State.RESERVED


def test_nothing_is_lost_while_the_broker_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher.in_use(), "depth", Mock(side_effect=BrokerUnavailable("no answer")))
    suspect()
    assert Reconciler().tick() == 0


def test_a_broker_that_takes_long_to_fail_is_asked_once_and_again_in_the_next_tick(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = Mock(side_effect=BrokerUnavailable("no answer"))
    monkeypatch.setattr(publisher.in_use(), "depth", asked)
    for priority in (Priority.NORMAL, Priority.HIGH):
        Job.objects.filter(pk=suspect().pk).update(priority=priority)
    reconciler = Reconciler()
    reconciler.tick()
    assert (asked.call_count, reconciler.resting_until) == (1, 0.0)


def test_what_is_found_is_followed_up_without_a_rest(depth: dict[str, int]) -> None:
    jobs, reconciler = [suspect() for _ in range(3)], Reconciler()
    look(reconciler)
    later(reconciler)
    report()
    reconciler.resting_until = 0.0
    assert [reconciler.tick(limit=2), reconciler.tick(limit=2)] == [2, 1]
    assert {fresh(job).state for job in jobs} == {State.PENDING}


# --- What a dead worker held ----------------------------------------------------------------------


def watching(reconciler: Reconciler) -> Reconciler:
    """A reconciler that has looked on long enough to know who is dead."""
    reconciler.watching_since -= 60
    return reconciler


def test_what_a_dead_worker_held_is_sent_again_though_the_queue_is_deep(depth: dict[str, int]) -> None:
    depth["default"] = 100_000
    job = suspect()
    report(ago=60, holds=(job,))
    assert look(watching(Reconciler())) == 1
    assert fresh(job).state == State.PENDING


def test_what_a_dead_worker_held_is_sent_again_only_once(depth: dict[str, int]) -> None:
    depth["default"] = 100_000
    job, reconciler = suspect(), watching(Reconciler())
    report(ago=60, holds=(job,))
    look(reconciler)
    Job.objects.filter(pk=job.pk).update(state=State.RESERVED)
    assert look(reconciler) == 0


def test_nobody_is_dead_before_all_had_time_to_report(depth: dict[str, int]) -> None:
    depth["default"] = 100_000
    report(ago=60, holds=(suspect(),))
    assert look(Reconciler()) == 0


def test_what_is_sent_again_since_a_worker_died_is_not_lost_with_it(depth: dict[str, int]) -> None:
    depth["default"] = 100_000
    job = fresh(add.delay(1, 2))
    report(ago=60, holds=(job,))
    assert look(watching(Reconciler())) == 0


def test_what_another_live_worker_holds_too_did_not_die_with_the_first(depth: dict[str, int]) -> None:
    depth["default"] = 100_000
    job = suspect()
    report("dead", ago=60, holds=(job,))
    report("alive", holds=(job,))
    assert look(watching(Reconciler())) == 0


def test_a_new_worker_gives_up_what_the_last_one_of_its_name_held(
    depth: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    job, kept = suspect(), suspect()
    report("w", ago=8, holds=(job, kept))
    instance = SimpleNamespace(hostname="w", app=publisher.in_use().app, concurrency=2, pool_cls=None)
    monkeypatch.setattr(worker_state, "reserved_requests", [Mock(id=str(kept.pk))])
    worker.report(instance, Entry("w"))
    assert (fresh(job).state, fresh(kept).state) == (State.PENDING, State.RESERVED)
    assert Worker.objects.get().holds == [str(kept.pk)]


def test_all_that_a_dead_worker_held_is_sent_again_however_much_it_was(depth: dict[str, int]) -> None:
    depth["default"] = 100_000
    jobs, reconciler = [suspect() for _ in range(3)], watching(Reconciler())
    report(ago=60, holds=tuple(jobs))
    assert [reconciler.tick(limit=2), reconciler.tick(limit=2)] == [2, 1]


def test_what_waits_for_a_rate_limit_of_celerys_is_reported_as_held() -> None:
    bucket = TokenBucket(1)
    bucket.add((Mock(id="limited"), 1))
    consumer = SimpleNamespace(task_buckets={"task": bucket, "unlimited": None})
    instance = SimpleNamespace(
        hostname="w", app=publisher.in_use().app, concurrency=2, pool_cls=None, consumer=consumer
    )
    worker.report(instance, Entry("w"))
    assert Worker.objects.get().holds == [as_uuid("limited")]


# --- What was overtaken in its line ---------------------------------------------------------------


def sent(ago: float, **changes: Any) -> Job:
    """A job that was created, and sent, some seconds ago."""
    job, at = fresh(add.delay(1, 2)), lifecycle.database_now() - timedelta(seconds=ago)
    Job.objects.filter(pk=job.pk).update(created_at=at, sent_at=at, **changes)
    return fresh(job)


COMPLETED = {"state": State.COMPLETED, "finished_at": timezone.now()}


def overtaken(reconciler: Reconciler, **held: Any) -> int:
    """What is found when each worker has reported since the first look."""
    look(reconciler)
    if reconciler.reached_at is not None:
        reconciler.reached_at -= timedelta(seconds=5)
    report(**held)
    return look(reconciler)


def test_a_job_is_lost_when_one_sent_clearly_later_has_left_its_line(depth: dict[str, int]) -> None:
    depth["default"] = 100_000
    job = sent(120)
    sent(60, **COMPLETED)
    assert overtaken(Reconciler()) == 1
    assert fresh(job).state == State.PENDING


@pytest.mark.parametrize(
    ("first", "second"), [(120, 115), (60, 120)], ids=["sent about the same time", "sent before it"]
)
def test_a_job_that_others_may_not_have_overtaken_is_not_lost(
    depth: dict[str, int], first: float, second: float
) -> None:
    depth["default"] = 100_000
    sent(first)
    sent(second, **COMPLETED)
    assert overtaken(Reconciler()) == 0


def test_a_job_of_another_priority_overtakes_nothing(depth: dict[str, int]) -> None:
    depth["default"] = 100_000
    sent(120)
    sent(60, priority=Priority.HIGH, **COMPLETED)
    assert overtaken(Reconciler()) == 0


def test_an_overtaken_job_that_a_live_worker_holds_is_not_lost(depth: dict[str, int]) -> None:
    depth["default"] = 100_000
    job = sent(120)
    sent(60, **COMPLETED)
    assert overtaken(Reconciler(), holds=(job,)) == 0


def test_a_job_that_was_sent_twice_tells_nothing_of_its_line(depth: dict[str, int]) -> None:
    """Its older message may have been claimed, from a place in the line before those that wait."""
    depth["default"] = 100_000
    sent(120)
    twice = sent(60, **COMPLETED)
    Job.objects.filter(pk=twice.pk).update(created_at=F("created_at") - timedelta(minutes=5))
    assert overtaken(Reconciler()) == 0


def found_again(depth: dict[str, int], job: Job) -> None:
    """Lose a job and find it."""
    reconciler = Reconciler()
    look(reconciler)
    later(reconciler)
    report()
    assert look(reconciler) == 1


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
    now = lifecycle.database_now()
    Worker.objects.create(name="w", pid=1, started_at=now, seen_at=now, queues=["default"], concurrency=4)
    for priority in ("critical", "high", "normal", "low"):
        add.apply_async((1, 2), priority=priority)
    release.release()
    assert publisher.in_use().depth("default") == 4
    assert publisher.in_use().depth("default", Priority.CRITICAL) == 1
    assert publisher.in_use().depth("default", Priority.NORMAL) == 2  # with those that were sent again, one step up


@pytest.mark.django_db(transaction=True)
def test_a_flushed_broker_is_seen_on_the_real_server(broker: RedisServer, wait_until: Callable[..., Any]) -> None:
    from redis import Redis

    job, reconciler = suspect(), Reconciler()
    assert look(reconciler) == 0
    with Redis.from_url(broker.url) as client:
        client.flushall()
    look(reconciler)
    later(reconciler)
    assert look(reconciler) == 1
    assert fresh(job).state == State.PENDING


def test_an_adopted_job_whose_worker_died_before_it_began_is_found(depth: dict[str, int]) -> None:
    """The message of a foreign producer, which this worker's death took along."""
    depth["default"] = 1
    intake.adopt(add.name, add, (1, 2), {}, {"queue": "default"})
    (job,) = Job.objects.all()
    assert evidence.progress(frozenset([str(job.pk)])) == {}
    Job.objects.update(sent_at=F("sent_at") - timedelta(minutes=5))
    report(ago=60, holds=(job,))
    assert look(watching(Reconciler())) == 1
