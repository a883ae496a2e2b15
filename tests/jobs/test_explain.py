"""Why a job does not run: each reason by a sentence that names what must change."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from celery import chord
from django.db.models import F

from jobs import control, epoch, lanes, lifecycle, outbox, rescue
from jobs.errors import JobNotFound, Refused
from jobs.explain import explain
from jobs.models import Act, Allotment, Epoch, Job, Leader, Worker
from jobs.states import State
from tests.platform import attempt, fresh, running
from tests.sample.tasks import add, alone, misbehave, note, of_tenant, through_gateway, total

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def around(sent: list[str]) -> Iterator[None]:
    """A worker with many hands, and a conductor."""
    lanes._flows.clear()
    now = lifecycle.database_now()
    Worker.objects.create(name="w", pid=1, started_at=now, seen_at=now, queues=["default"], concurrency=20)
    Leader.objects.create(office="conductor", holder="x", until=now + timedelta(hours=1))
    yield
    lanes._flows.clear()


def words(job: Any) -> list[str]:
    """The reasons, as words."""
    return [part.word for part in explain(job.id).parts]


def test_a_job_that_goes_next_is_held_up_by_nothing() -> None:
    job = note.apply_async(("x",), tenant="t")
    assert explain(job.id).sentence == "Nothing holds it up: the next release lets it go."


def test_a_full_limit_is_named_with_the_jobs_that_fill_it() -> None:
    first, second = alone.delay("a"), alone.delay("b")
    lanes.release(10)
    told = explain(second.id)
    assert told.sentence.startswith(f"The limit {alone.name} is full: 1 of 1, by {first.id}.")
    assert told.parts[0].details["jobs"] == [first.id]


def test_a_job_that_was_ended_by_force_fills_its_limit_until_its_body_must_have_ended() -> None:
    first, second = alone.delay("a"), alone.delay("b")
    lanes.release(10)
    running(first.id, lease=60)
    control.cancel(first.id, reason="", by="ann")
    Job.objects.update(cancel_requested_at=F("cancel_requested_at") - timedelta(hours=1))
    assert rescue.force_cancel() == 1
    assert lanes.release(10) == []
    told = explain(second.id)
    assert told.sentence.startswith(f"The limit {alone.name} is full: 1 of 1, by {first.id}.")
    assert lanes.release(10) == []
    Job.objects.update(lease_until=F("lease_until") - timedelta(hours=1))
    assert "full" not in explain(second.id).sentence
    assert [str(job.pk) for job in lanes.release(10)] == [second.id]


def test_the_time_of_the_next_token_is_told() -> None:
    control.allot("gateway", rate="6/m", burst=3, by="ann")
    jobs = [through_gateway.apply_async((str(n),), tenant=str(n)) for n in range(4)]
    lanes.release(10)
    (part,) = [part for part in explain(jobs[3].id).parts if part.word == "rate"]
    assert part.until is not None
    assert timedelta(0) < part.until - lifecycle.database_now() <= timedelta(seconds=10)


def test_who_paused_it_is_told() -> None:
    job = note.apply_async(("x",), tenant="t")
    control.pause(queue="default", reason="a move", by="ann")
    assert "The queue default is paused since" in explain(job.id).sentence
    assert "by ann: a move." in explain(job.id).sentence


def test_how_many_are_before_it_is_told() -> None:
    for number in range(3):
        note.apply_async((str(number),), priority="high", tenant="t")
    first = note.apply_async(("first",), priority="low", tenant="t")
    second = note.apply_async(("second",), priority="low", tenant="t")
    assert "Behind 3 jobs of a higher priority" in explain(first.id).sentence
    assert words(second) == ["priority", "line"]


def test_other_states_and_reasons_are_told() -> None:
    later = note.apply_async(("later",), countdown=60)
    assert (words(later), explain(later.id).until) == (["scheduled"], fresh(later).due_at)
    job = add.delay(1, 2)
    assert words(job) == ["sent"]
    running(job.id)
    assert words(job) == ["running"]
    Worker.objects.all().delete()
    Leader.objects.all().delete()
    assert words(note.apply_async(("x",), tenant="t")) == ["no worker", "no conductor"]
    with pytest.raises(JobNotFound):
        explain(uuid4())


def test_a_paused_job_is_also_told_which_limit_is_full() -> None:
    alone.delay("a")
    second = alone.delay("b")
    lanes.release(10)
    running(Job.objects.get(state=State.RESERVED).pk)
    control.pause(task=alone.name, reason="a fault", by="ann")
    assert words(second)[:2] == ["paused", "limit"]
    assert explain(second.id).parts[0].details["reason"] == "a fault"


def test_a_slot_of_a_job_that_has_ended_fills_no_limit() -> None:
    first, second = alone.delay("a"), alone.delay("b")
    lanes.release(10)
    attempt(first.id)
    assert words(second) == ["next"]


def test_of_the_more_urgent_it_is_told_how_many_are_held_up_themselves() -> None:
    for letter in "abc":
        alone.apply_async((letter,), priority="high")
    low = note.apply_async(("low",), priority="low")
    control.pause(task=note.name, reason="a fault", by="ann")
    lanes.release(10)
    told = explain(low.id).sentence
    assert "Behind 2 jobs of a higher priority in default, of which 2 are held up themselves." in told


def test_other_tenants_that_take_turns_with_it_are_told() -> None:
    Worker.objects.update(concurrency=1)
    jobs = [note.apply_async((str(n),), tenant=f"t{n}") for n in range(4)]
    lanes.release(1)
    lanes.release(1)
    waiting = next(job for job in jobs if fresh(job).state == State.PENDING)
    (part,) = [part for part in explain(waiting.id).parts if part.word == "turns"]
    assert part.details["tenants"] in (1, 2)


def test_who_is_behind_others_for_a_rate_is_told_its_earliest_time() -> None:
    control.allot("gateway", rate="6/m", burst=1, by="ann")
    jobs = [through_gateway.apply_async((str(n),), tenant="t") for n in range(4)]
    lanes.release(10)
    told = explain(jobs[3].id)
    assert told.until is not None
    assert timedelta(seconds=25) < told.until - lifecycle.database_now() <= timedelta(seconds=30)


def test_a_worker_that_has_received_it_is_named() -> None:
    job = add.delay(1, 2)
    Worker.objects.update(holds=[job.id])
    assert words(job) == ["received"]
    assert "The worker w has received it" in explain(job.id).sentence


def test_those_that_were_handed_over_before_are_counted() -> None:
    first, second = add.delay(1, 2), add.delay(1, 2)
    assert words(first) == ["sent"]
    assert explain(second.id).parts[1].details == {"before": 1}


def test_busy_hands_are_told_whatever_queue_keeps_them_busy() -> None:
    Worker.objects.update(queues=["default", "mail"], concurrency=1, name="sleepy@here")
    Worker.objects.filter(name="w").delete()
    running(add.apply_async((1, 2), queue="mail").id)
    assert words(note.apply_async(("x",), tenant="t")) == ["busy"]


def test_a_retry_is_told_with_why_the_attempt_failed() -> None:
    job = misbehave.delay("transient")
    attempt(job.id)
    Job.objects.update(due_at=lifecycle.database_now() + timedelta(seconds=30))
    (part,) = explain(job.id).parts
    assert part.word == "scheduled"
    assert part.sentence.startswith("Attempt 2 is due at ")
    assert fresh(job).reason in part.sentence


def test_a_job_that_waits_for_others_says_so_and_needs_no_worker_yet() -> None:
    Worker.objects.all().delete()
    result = chord([add.s(1, 2)])(total.s())
    (part,) = explain(result.id).parts
    assert part.word == "waits for others"
    assert part.sentence == "It waits for the members of its chord."


def test_a_running_job_that_was_asked_to_stop_and_whose_worker_is_silent_says_both() -> None:
    job = running(add.delay(1, 2).id, lease=-1.0)
    control.cancel(job.pk, reason="wrong file", by="ann")
    told = explain(job.pk)
    assert [part.word for part in told.parts] == ["running", "cancelling", "lost"]
    assert "wrong file" in told.sentence
    assert "The conductor takes it back." in told.sentence


def test_the_end_of_a_job_is_told() -> None:
    done, failed, cancelled = add.delay(1, 2), misbehave.delay("permanent"), add.delay(1, 2)
    attempt(done.id)
    attempt(failed.id)
    control.cancel(fresh(cancelled).pk, reason="wrong file", by="ann")
    assert explain(done.id).sentence.startswith("It is completed since ")
    assert "replay its dead letter" in explain(failed.id).sentence
    assert explain(cancelled.id).sentence.endswith("(wrong file).")
    assert all(words(job) == ["finished"] for job in (done, failed, cancelled))


def test_a_broker_that_the_conductor_does_not_reach_is_told_by_every_process() -> None:
    job = note.apply_async(("x",), tenant="t")
    now = lifecycle.database_now()
    Leader.objects.update(ticked_at=now)
    Epoch.objects.create(broker=epoch.BROKER, server="run", serial=1, marked_at=now - timedelta(seconds=2))
    assert words(job) == ["next"]
    Epoch.objects.update(marked_at=now - timedelta(seconds=9))
    assert words(job) == ["broker"]
    Leader.objects.update(until=now - timedelta(seconds=9))
    assert words(job) == ["no conductor"]  # nobody tried


def test_a_broker_that_could_not_be_reached_is_told_with_its_answer() -> None:
    job = fresh(note.apply_async(("x",), tenant="t"))
    lanes.release(1)
    outbox.take_back([fresh(job)], "the broker could not be reached: Connection refused")
    told = explain(job.pk)
    assert [part.word for part in told.parts] == ["scheduled", "broker"]
    assert "when it was last tried (Connection refused)." in told.sentence


def test_times_are_told_in_the_zone_of_the_project(settings: Any) -> None:
    settings.TIME_ZONE = "Asia/Tokyo"
    later = note.apply_async(("later",), countdown=60)
    assert " JST" in explain(later.id).sentence


# --- What an operator says in place of the code -----------------------------------------------------


def test_a_limit_that_an_operator_raises_holds_at_once() -> None:
    for letter in "abc":
        alone.delay(letter)
    assert len(lanes.release(10)) == 1
    control.allot("{task}", slots=2, by="ann", reason="it is night")
    assert len(lanes.release(10)) == 2  # the one that had not begun was taken back, and goes first again
    assert Act.objects.get(verb="allot").details == {"said": "2"}


def test_a_limit_that_an_operator_lowers_takes_back_what_has_not_begun() -> None:
    jobs = [through_gateway.apply_async((str(n),), tenant="t") for n in range(2)]
    assert len(lanes.release(10)) == 2
    running(jobs[0].id)
    control.allot("{tenant}", slots=1, by="ann")
    assert fresh(jobs[1]).state == State.PENDING
    assert lanes.release(10) == []


def test_what_was_said_can_be_withdrawn() -> None:
    control.allot("{task}", slots=5, by="ann")
    assert control.withdraw("slots", "{task}", by="ann")
    assert not control.withdraw("slots", "{task}", by="ann")
    for letter in "abc":
        alone.delay(letter)
    assert len(lanes.release(10)) == 1


@pytest.mark.parametrize(
    "said",
    [{}, {"slots": 0}, {"rate": "fast"}, {"weight": 0}, {"slots": 1, "rate": "1/s"}, {"rate": "1/s", "burst": 0}],
)
def test_what_makes_no_sense_is_refused(said: dict[str, Any]) -> None:
    with pytest.raises(Refused):
        control.allot("x", by="ann", **said)
    assert not Allotment.objects.exists()


def test_a_weight_is_said_of_a_tenant() -> None:
    assert control.allot("acme", weight=2.5, by="ann").amount == 2.5
    assert Job.objects.count() == 0


def test_a_message_that_lies_in_a_queue_without_workers_waits_there() -> None:
    job = note.apply_async(("x",), queue="mail")
    told = explain(job.id)
    assert [part.word for part in told.parts] == ["sent", "no worker"]
    assert told.parts[0].sentence.endswith(": it waits there for a worker.")


def test_of_a_message_in_a_paused_queue_it_is_not_said_that_it_starts() -> None:
    control.pause(queue="default", reason="", by="ann")
    job = note.delay("x")  # by a process that does not know of the pause yet
    told = explain(job.id)
    assert [part.word for part in told.parts] == ["paused", "sent"]
    assert told.parts[1].sentence.endswith(": the worker that gets it puts it back.")


def test_a_job_itself_may_be_asked_about() -> None:
    job = fresh(note.apply_async(("x",), tenant="t"))
    assert explain(job).sentence == explain(job.pk).sentence == explain(str(job.pk)).sentence


def test_a_key_that_two_rules_make_is_told_once() -> None:
    control.allot(tenant="acme", slots=1, by="ann")
    jobs = [of_tenant.apply_async((letter,), tenant="acme") for letter in "abc"]
    lanes.release(10)
    assert words(jobs[2]) == ["limit", "line"]
