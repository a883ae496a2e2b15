"""For what the jobs of a queue wait, in numbers: the same reasons as for one job, at a cost that has a bound."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from celery import chord
from django.db import connection
from django.test.utils import CaptureQueriesContext

from jobs import backlog, bulk, control, lanes, lifecycle
from jobs.backlog import Number
from jobs.errors import OptionError
from jobs.explain import explain_queue
from jobs.models import Circuit, Job, Leader, Worker
from jobs.states import State
from tests.jobs.cli import run
from tests.platform import attempt, running
from tests.sample.tasks import add, alone, for_user, misbehave, note, pay, through_gateway, total

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


def told(queue: str = "default") -> dict[str, str]:
    """The reasons, each with how many jobs it concerns."""
    return {part.word: str(part.jobs) for part in explain_queue(queue).parts if part.jobs is not None}


def sentences() -> str:
    return explain_queue("default").sentence


def test_an_empty_queue_says_so() -> None:
    assert explain_queue("default").sentence == "No job waits in default."


def test_a_queue_that_there_is_not_is_refused() -> None:
    with pytest.raises(OptionError, match="no queue 'nowhere'"):
        explain_queue("nowhere")


def test_jobs_of_a_full_limit_are_counted_and_those_who_fill_it_named() -> None:
    for letter in "abcd":
        alone.delay(letter)
    lanes.release(10)
    first = Job.objects.get(state=State.RESERVED)
    assert told() == {"limit": "3"}
    assert f"3 jobs wait for the limit {alone.name}, which is full: 1 of 1, by {first.pk}." in sentences()
    assert explain_queue("default").next_at is None  # until a job has ended, which nobody knows


def test_jobs_without_a_token_are_counted_and_its_time_is_when_the_next_can_go() -> None:
    control.allot("gateway", rate="6/m", burst=1, by="ann")
    for number in range(4):
        through_gateway.apply_async((str(number),), tenant=str(number))
    lanes.release(10)
    found = explain_queue("default")
    assert told() == {"rate": "3"}
    (rate,) = [part for part in found.parts if part.word == "rate"]
    assert found.next_at == rate.until
    assert f"The next one can go at {found.next_at.astimezone():%Y}" in found.sentence if found.next_at else False


def test_a_pause_of_the_queue_concerns_all_and_one_of_a_task_its_own() -> None:
    for number in range(3):
        note.apply_async((str(number),), tenant="t")
        add.apply_async((1, 2), tenant="t")
    control.pause(task=note.name, reason="a fault", by="ann")
    lanes.release(1)
    parts = [part for part in explain_queue("default").parts if part.word == "paused"]
    assert [(part.details["name"], str(part.jobs)) for part in parts] == [(note.name, "3")]
    control.pause(queue="default", reason="a move", by="bob")
    found = explain_queue("default")
    first = found.parts[0]
    assert (first.word, first.details["by"], str(first.jobs)) == ("paused", "bob", str(found.waiting))
    assert found.next_at is None


def test_direct_jobs_of_a_paused_task_are_counted_too() -> None:
    for number in range(3):
        note.delay(str(number))
    control.pause(task=note.name, reason="a fault", by="ann")
    assert told() == {"paused": "3"}


def test_those_that_are_due_later_and_those_that_wait_for_others_are_counted() -> None:
    later = note.apply_async(("later",), countdown=60)
    note.apply_async(("much later",), countdown=600, tenant="t")
    attempt(misbehave.delay("transient").id)
    chord([add.s(1, 2)])(total.s())
    Job.objects.filter(state=State.RESERVED).delete()
    Job.objects.filter(state=State.RETRYING).update(due_at=lifecycle.database_now() + timedelta(seconds=30))
    assert told() == {"scheduled": "3", "waits for others": "1"}
    found = explain_queue("default")
    assert found.next_at == Job.objects.filter(state=State.RETRYING).get().due_at
    assert found.next_at is not None
    assert found.next_at < Job.objects.get(pk=later.id).due_at


def test_jobs_that_wait_for_their_turn_are_told_from_those_that_are_held() -> None:
    Worker.objects.update(concurrency=1)
    for number in range(3):
        note.apply_async((str(number),), tenant=f"t{number}")
    assert told() == {"line": "3"}  # before they are in a lane that is known
    lanes.release(1)
    assert told() == {"line": "2"}
    assert "2 jobs of 2 tenants wait only for their turn." in sentences()
    assert (
        explain_queue("default").parts[1].sentence == "The one hand for default is busy (with 1 that was handed over)."
    )
    attempt(Job.objects.get(state=State.RESERVED).pk)
    assert explain_queue("default").parts[-1].word == "next"


def test_without_a_worker_or_with_busy_ones_nobody_knows_when_the_next_goes() -> None:
    Worker.objects.update(concurrency=1, name="sleepy@here")
    Worker.objects.filter(name="w").delete()
    note.apply_async(("x",), tenant="t")
    running(add.delay(1, 2).id)
    found = explain_queue("default")
    assert "The one hand for default is busy." in found.sentence
    assert found.next_at is None
    Worker.objects.all().delete()
    Leader.objects.all().delete()
    words = [part.word for part in explain_queue("default").parts]
    assert words == ["line", "no worker", "sent", "no conductor"]


def test_jobs_that_are_with_the_broker_and_that_run_are_counted() -> None:
    add.delay(1, 2)
    running(add.delay(1, 2).id)
    assert "1 is with the broker, 1 runs." in sentences()


def test_other_queues_do_not_count() -> None:
    note.apply_async(("x",), tenant="t", queue="mail")
    assert sentences() == "No job waits in default."
    assert told("mail") == {"line": "1"}


def test_many_keys_are_told_together(monkeypatch: pytest.MonkeyPatch) -> None:
    for user in range(9):
        bulk.bulk(for_user, [(str(n), f"user{user}") for n in range(4)])
    lanes.release(100)
    parts = explain_queue("default").parts
    assert [part.word for part in parts[:6]] == ["limit"] * 5 + ["limits"]
    assert "8 jobs wait for 4 other keys." in sentences()


def test_what_is_not_counted_to_its_end_is_told_as_more_than(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backlog, "FEW", 3)
    monkeypatch.setattr(backlog, "MOST", 6)
    bulk.bulk(alone, [(str(n),) for n in range(12)])
    bulk.bulk(for_user, [(str(n), "u") for n in range(12)])
    lanes.release(100)
    assert told()["limit"] == "more than 6"


def test_the_rest_is_estimated_where_only_one_reason_has_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backlog, "FEW", 3)
    monkeypatch.setattr(backlog, "MOST", 6)
    bulk.bulk(alone, [(str(n),) for n in range(12)])
    for_user.apply_async(("x", "u"))
    lanes.release(100)
    assert told() == {"limit": "about 11"}


def test_of_more_lanes_than_are_looked_at_the_others_are_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backlog, "LANES", 5)
    Worker.objects.update(concurrency=1)
    for number in range(12):
        note.apply_async((str(number),), tenant=f"t{number}")
    lanes.release(1)
    assert told() == {"line": "about 11"}


def test_it_asks_as_often_for_many_as_for_few() -> None:
    def asked() -> int:
        with CaptureQueriesContext(
            connection,
        ) as queries:
            explain_queue("default")
        return len(queries)

    note.apply_async(("x",), tenant="t")
    lanes.release(0)
    few = asked()
    bulk.bulk(note, [str(n) for n in range(300)], tenant="u")
    for number in range(50):
        note.apply_async((str(number),), tenant=f"t{number}")
    lanes.release(1)
    assert asked() <= few + 1  # a lane with many is counted further


def test_the_command_tells_it_as_sentences_and_as_json() -> None:
    for letter in "ab":
        alone.delay(letter)
    lanes.release(10)
    lines = run("jobs", "explain", "--queue", "default").lines
    assert lines[0].startswith("1 job waits in default, the first that is due since ")
    assert lines[1].startswith(f"1 job waits for the limit {alone.name}, which is full: 1 of 1, by ")
    document = run("jobs", "explain", "--queue", "default", "--json").json
    assert document["waiting"] == {"of": 1, "about": False, "more": False}
    assert document["parts"][0]["jobs"]["of"] == 1
    assert document["next_at"] is None


@pytest.mark.parametrize("words", [(), ("--queue", "nowhere")])
def test_the_command_wants_a_job_or_a_queue_that_there_is(words: Any) -> None:
    answer = run("jobs", "explain", *words)
    assert (answer.code, len(answer.err.splitlines())) == (2, 1)


def test_numbers_are_told_as_exactly_as_they_are_known() -> None:
    assert str(Number(1000) + Number(1)) == "1,001"
    assert str(Number(1000, about=True) + Number(1)) == "about 1,001"
    assert str(Number(1000, about=True) + Number(1, more=True)) == "more than 1,001"


def test_a_circuit_that_is_open_is_told_with_its_jobs_and_until_when() -> None:
    jobs = [pay.delay(f"fails {number}", how="transient") for number in range(3)]
    lanes.release(100)
    for job in jobs:
        attempt(job.id)
    Job.objects.filter(state=State.RETRYING).update(due_at=lifecycle.database_now() + timedelta(hours=1))
    pay.delay("waits")
    lanes.release(100)
    (part,) = [part for part in explain_queue("default").parts if part.word == "circuit"]
    assert part.sentence.startswith("The circuit gateway is open until ")
    assert part.sentence.endswith("1 job waits for it.")
    assert explain_queue("default").next_at == part.until == Circuit.objects.get().open_until


def test_a_limit_of_the_whole_queue_holds_all_of_its_jobs() -> None:
    control.allot(queue="default", slots=1, by="ann", reason="a small machine")
    for number in range(3):
        note.apply_async((str(number),), tenant=f"t{number}")
    assert len(lanes.release(10)) == 1
    assert told() == {"limit": "2"}
    assert "2 jobs wait for the limit queue default, which is full: 1 of 1, by " in sentences()
    assert [part.word for part in explain_queue("default").parts] == ["limit", "sent"]
    assert sentences().count("queue default") == 1
    assert explain_queue("default").next_at is None


def test_a_limit_of_a_whole_task_is_told_like_any_other() -> None:
    control.allot(task=note.name, slots=1, by="ann", reason="a small machine")
    for number in range(3):
        note.apply_async((str(number),), tenant=f"t{number}")
    lanes.release(10)
    lanes.release(10)
    assert told() == {"limit": "2"}
    assert f"the limit task {note.name}, which is full" in sentences()


def test_in_a_paused_queue_nobody_waits_only_for_a_turn() -> None:
    note.apply_async(("a",), tenant="t")
    control.pause(queue="default", reason="", by="ann")
    assert told() == {"paused": "1"}
