"""Limits of a whole queue, task or tenant, set while jobs wait and run: they bind all of them."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from celery import chord
from django.db.models import F

from jobs import control, lanes, lifecycle, outbox, standing
from jobs.conclusion import Report, conclude
from jobs.errors import Refused
from jobs.explain import explain
from jobs.failures import Failure, Kind
from jobs.models import Bucket, Job, Lane, Slot, Worker
from jobs.release import release
from jobs.states import State
from tests.platform import attempt, fresh, running
from tests.sample.tasks import Mail, add, note, of_tenant, total, transfer

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def nothing_learned(sent: list[str]) -> Iterator[None]:
    """Many hands, of which nothing was learned; nothing goes to a broker."""
    lanes._flows.clear()
    now = lifecycle.database_now()
    for queue in ("default", "mail"):
        Worker.objects.create(name=f"{queue}@here", pid=1, started_at=now, seen_at=now, queues=[queue], concurrency=50)
    yield
    lanes._flows.clear()


def reserved() -> int:
    """How many jobs may be begun; a plain one may not."""
    return Job.objects.filter(state=State.RESERVED).exclude(lane="").count()


@pytest.mark.parametrize(
    ("scope", "options"),
    [({"queue": "default"}, {}), ({"task": note.name}, {}), ({"tenant": "acme"}, {"tenant": "acme"})],
    ids=["queue", "task", "tenant"],
)
def test_a_limit_that_is_set_binds_jobs_in_the_broker_those_that_wait_and_those_that_run(
    scope: dict[str, str], options: dict[str, Any]
) -> None:
    jobs = [note.apply_async((str(n),), **options) for n in range(6)]
    release()
    running(jobs[0].id)
    control.allot(**scope, slots=2, by="ann")
    assert reserved() == 0
    release()
    assert reserved() == 1  # one runs
    note.apply_async(("later",), **options)
    release()
    assert reserved() == 1
    attempt(Job.objects.exclude(lane="").get(state=State.RESERVED).pk)
    release()
    assert reserved() == 1


def test_what_was_taken_back_keeps_its_place() -> None:
    jobs = [note.delay(str(n)) for n in range(3)]
    control.allot(queue="default", slots=1, by="ann")
    note.apply_async(("3",), tenant="a")
    order = []
    for _ in range(3):
        release()
        (job,) = Job.objects.filter(state=State.RESERVED)
        order.append(str(job.pk))
        attempt(job.pk)
    assert [one for one in order if one in {job.id for job in jobs}] == [job.id for job in jobs][: len(order) - 1]


def test_a_plain_job_of_somebody_who_does_not_know_yet_cannot_begin() -> None:
    control.allot(queue="default", slots=1, by="ann")
    first, second = note.delay("a"), note.delay("b")
    assert fresh(second).state == State.RESERVED
    attempt(second.id)
    assert (fresh(second).state, fresh(second).reason) == (State.PENDING, "waits for its turn")
    release()
    assert fresh(second).lane
    assert not fresh(first).lane  # it has not been tried yet
    assert reserved() == 1


def test_who_enqueues_knows_after_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    note.delay("first")
    control.allot(task=note.name, rate="1/h", by="ann")
    monkeypatch.setattr(outbox, "LOOK_EVERY", 0.0)
    assert fresh(note.delay("x")).state == State.PENDING
    assert fresh(add.delay(1, 2)).state == State.RESERVED


def test_a_plain_job_that_is_due_later_is_bound_too() -> None:
    later = note.apply_async(("x",), countdown=60)
    control.allot(queue="default", rate="1/h", by="ann")
    release()
    assert fresh(later).lane
    Job.objects.filter(pk=later.id).update(due_at=lifecycle.database_now())
    note.apply_async(("y",), tenant="a")
    Lane.objects.all().delete()
    lanes.mend()
    release()
    release()
    assert reserved() == 1


@pytest.mark.parametrize("scope", [{"queue": "default"}, {"task": note.name}], ids=["queue", "task"])
def test_a_direct_release_leaves_to_the_line_what_it_binds(scope: dict[str, str]) -> None:
    later = note.apply_async(("x",), countdown=60)
    other = add.apply_async((1, 2), countdown=60, queue="mail")
    control.allot(**scope, slots=1, by="ann")
    Job.objects.update(due_at=lifecycle.database_now())
    assert [str(job.pk) for job in lifecycle.reserve_due(10)] == [other.id]
    assert fresh(later).state == State.PENDING


def test_the_body_of_a_chord_is_bound_too() -> None:
    result = chord([add.s(1, 2)], total.s()).apply_async()
    control.allot(queue="default", slots=1, by="ann")
    release()
    attempt(result.parent.results[0].id)
    assert fresh(result.parent.results[0]).state == State.COMPLETED
    assert (fresh(result).state, fresh(result).lane != "") == (State.PENDING, True)
    release()
    assert Slot.objects.filter(job_id=result.id, key="queue default").exists()


def test_a_chunk_that_runs_counts_once() -> None:
    chunk()
    control.allot(queue="default", slots=2, by="ann")
    note.apply_async(("x",), tenant="t")
    release()
    assert Slot.objects.filter(key="queue default").count() == 2
    assert reserved() == 1


def test_a_chunk_counts_for_as_long_as_one_of_it_runs() -> None:
    first, *others = chunk()
    control.allot(queue="default", slots=1, by="ann")
    release()
    for one in (first, *others):
        note.apply_async(("x",), tenant="t")
        release()
        assert reserved() == 0
        conclude(one, Failure(Kind.PERMANENT, "no"), Report())
    release()
    assert reserved() == 1


def chunk() -> list[Job]:
    """A chunk of three that runs."""
    for name in "abc":
        Mail.delay(name)
    (leader,) = lanes.release(10)
    lease = timedelta(seconds=60)
    return lifecycle.claim_chunk(leader.pk, token=uuid4(), worker="w", pid=1, lease=lease)


def test_it_is_known_when_the_next_token_of_a_whole_queue_comes() -> None:
    control.allot(queue="default", rate="1/h", burst=1, by="ann")
    for number in range(2):
        note.apply_async((str(number),), tenant="t")
    release()
    assert reserved() == 1
    assert lanes.changes(3590)[3] is False
    assert lanes.changes(3610)[3] is True
    Bucket.objects.update(filled_at=F("filled_at") - timedelta(hours=1), wake_at=F("wake_at") - timedelta(hours=1))
    assert lanes.changes(0)[0] is True
    release()
    assert reserved() == 2


def test_the_longest_name_that_is_taken_can_be_waited_for() -> None:
    longest = "x" * (control.NAME_LENGTH - len("task "))
    control.allot(task=longest, slots=1, by="ann")
    with pytest.raises(Refused, match="at most"):
        control.allot(task=f"{longest}x", slots=1, by="ann")
    waits = max(f"{kind} {standing.name('task', longest)}" for kind in standing.COUNTED)
    assert len(waits) <= (Lane._meta.get_field("waits_on").max_length or 0)


def test_others_are_not_concerned() -> None:
    control.allot(queue="mail", slots=1, by="ann")
    for _ in range(3):
        note.delay("x")
        note.apply_async(("x",), queue="mail")
    begun = [attempt(job.pk) for job in Job.objects.filter(state=State.RESERVED)]
    assert len(begun) == 6
    release()
    assert Job.objects.filter(queue="default", state=State.COMPLETED).count() == 3
    assert Job.objects.filter(queue="mail", state=State.COMPLETED).count() == 0
    assert reserved() == 1


def test_when_it_is_withdrawn_all_go() -> None:
    control.allot(queue="default", slots=1, by="ann")
    for number in range(5):
        note.apply_async((str(number),), tenant="a")
    release()
    assert reserved() == 1
    assert control.withdraw("slots", "queue default", by="ann")
    release()
    release()
    assert reserved() == 5


def test_why_a_job_waits_for_it_is_told() -> None:
    control.allot(queue="default", slots=1, by="ann")
    note.apply_async(("a",), tenant="t")
    second = note.apply_async(("b",), tenant="t")
    release()
    assert "The limit queue default is full: 1 of 1" in explain(second.id).sentence


def test_it_closes_no_lane_of_the_queue_however_many_there_are() -> None:
    control.allot(queue="default", slots=1, by="ann")
    for number in range(20):
        note.apply_async(("a",), tenant=str(number))
    release()
    release()
    assert not Lane.objects.exclude(waits_on="").exists()
    assert Slot.objects.filter(key="queue default").count() == 1


@pytest.mark.parametrize(
    "given",
    [{"slots": 1}, {"name": "x", "queue": "y", "slots": 1}, {"queue": "x", "weight": 2.0}, {"queue": "x", "slots": 0}],
    ids=str,
)
def test_what_cannot_be_meant_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(Refused):
        control.allot(**given, by="ann")


def test_a_key_that_two_rules_make_counts_once() -> None:
    """Such as one that an operator set for a tenant, and a task declares for each tenant by the same name."""
    control.allot(tenant="acme", slots=3, by="ann")
    for letter in "abcd":
        of_tenant.apply_async((letter,), tenant="acme")
    assert len(lanes.release(10)) == 3
    assert Slot.objects.filter(key="tenant acme").count() == 3


def test_a_token_is_taken_once_where_two_rules_make_its_key() -> None:
    transfer.delay("savings", "savings")
    lanes.release(10)
    assert Bucket.objects.get(key="account:savings").tokens == pytest.approx(1.0)
