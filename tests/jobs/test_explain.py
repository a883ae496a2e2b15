"""Why a job does not run: each reason by a sentence that names what must change."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest

from jobs import control, lanes, lifecycle
from jobs.errors import JobNotFound, Refused
from jobs.explain import explain
from jobs.models import Act, Allotment, Job, Leader, Worker
from jobs.states import State
from tests.platform import fresh, running
from tests.sample.tasks import add, alone, note, through_gateway

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
