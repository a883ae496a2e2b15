"""Sending a dead letter's job through the front door again, once; or closing the letter with a reason."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

import pytest
from celery import chain
from django.contrib.auth.models import Group
from django.db import connections

from dlq import replay
from dlq.models import DeadLetter, Replay, Status
from dlq.replay import NotOpen
from jobs import lanes
from jobs.errors import PayloadError, Refused
from jobs.models import Act, Job
from jobs.payload import Payload
from jobs.states import State
from tests.platform import Witness, attempt, drain, fresh
from tests.sample.tasks import Charge, add, boom, enlighten, fail_unless, note

pytestmark = pytest.mark.django_db


def dead(call: Callable[[], Any] = lambda: fail_unless.delay("open", 5)) -> DeadLetter:
    """The letter of a job that failed."""
    job = call()
    lanes.release(1)
    attempt(job.id)
    return DeadLetter.objects.get(job_id=job.id)


def test_a_replay_is_a_new_job_that_completes_when_the_trouble_is_over() -> None:
    letter = dead()
    Group.objects.create(name="open")
    job = replay.replay(letter.pk, by="ann", reason="repaired")
    drain()
    assert job.pk != letter.job_id
    assert (fresh(job).state, fresh(job).result) == (State.COMPLETED, "5")
    assert fresh(letter.job).state == State.FAILED


def test_a_replay_is_on_record() -> None:
    letter = dead()
    job = replay.replay(letter.pk, by="ann", reason="repaired")
    record, act = Replay.objects.get(), Act.objects.get()
    assert (record.letter, record.job_id, record.by, record.reason) == (letter, job.pk, "ann", "repaired")
    assert record.edited is False
    assert (act.verb, act.by, act.job_id, act.details) == ("replay", "ann", job.pk, {"original": str(letter.job_id)})


def test_a_replay_closes_its_letter() -> None:
    letter = dead()
    replay.replay(letter.pk, by="ann", reason="repaired")
    letter.refresh_from_db()
    assert (letter.status, letter.closed_by, letter.closing_reason) == (Status.REPLAYED, "ann", "repaired")


def test_a_letter_cannot_be_replayed_twice() -> None:
    letter = dead()
    replay.replay(letter.pk, by="ann")
    with pytest.raises(NotOpen, match="is replayed already, by ann"):
        replay.replay(letter.pk, by="bob")
    assert Job.objects.filter(replay_of_id=letter.job_id).count() == 1


@pytest.mark.django_db(transaction=True)
def test_a_letter_cannot_be_replayed_twice_at_once(sent: list[str]) -> None:
    letter = dead()
    together = threading.Barrier(8)

    def press(_: int) -> bool:
        together.wait()
        try:
            replay.replay(letter.pk, by="ann")
        except NotOpen:
            return False
        finally:
            connections.close_all()
        return True

    with ThreadPoolExecutor(8) as people:
        assert sum(people.map(press, range(8))) == 1
    assert Job.objects.filter(replay_of_id=letter.job_id).count() == 1


def test_a_replay_that_fails_again_leaves_a_letter_of_its_own() -> None:
    letter = dead()
    job = replay.replay(letter.pk, by="ann")
    drain()
    again = DeadLetter.objects.get(job_id=job.pk)
    assert again.is_open
    assert fresh(replay.replay(again.pk, by="ann")).origin_id == letter.job_id


def test_a_replay_repeats_what_the_job_carried() -> None:
    letter = dead(
        lambda: boom.apply_async(queue="mail", priority="high", tenant="acme", tags=["a"], correlation_id="r")
    )
    job = fresh(replay.replay(letter.pk, by="ann"))
    assert (job.queue, job.priority, job.tenant, job.tags, job.correlation_id) == ("mail", 10, "acme", ["a"], "r")
    assert job.replay_of_id == letter.job_id


def test_a_replay_bypasses_the_key() -> None:
    letter = dead(lambda: boom.apply_async(key="mine"))
    holder = boom.apply_async(key="mine")
    job = replay.replay(letter.pk, by="ann")
    assert str(job.pk) != holder.id
    assert fresh(job).key is None


def test_the_token_for_the_outside_world_is_that_of_the_original(witness: Witness) -> None:
    original = enlighten.delay("x")
    Job.objects.filter(pk=original.id).update(payload='{"args":[],"kwargs":{}}')
    attempt(original.id)
    letter = DeadLetter.objects.get()
    replay.replay(letter.pk, by="ann", payload=Payload(("x",)))
    drain()
    assert f"token:{original.id}" in witness.lines


# --- An edited payload --------------------------------------------------------------------------------


def test_a_replay_with_an_edited_payload_runs_with_it_and_says_so() -> None:
    letter = dead()
    Group.objects.create(name="other")
    job = replay.replay(letter.pk, by="ann", payload=Payload(("other", 7)))
    drain()
    assert fresh(job).result == "7"
    record = Replay.objects.get()
    assert record.edited
    assert record.payload_after == '{"args":["other",7],"kwargs":{}}'


def test_a_replay_payload_that_does_not_fit_is_refused_and_nothing_changes() -> None:
    letter = dead()
    with pytest.raises(PayloadError, match="valid integer"):
        replay.replay(letter.pk, by="ann", payload=Payload(("open", "five")))
    letter.refresh_from_db()
    assert letter.is_open
    assert (Replay.objects.count(), Act.objects.count(), Job.objects.count()) == (0, 0, 1)


def test_an_edited_payload_is_coerced() -> None:
    letter = dead()
    job = replay.replay(letter.pk, by="ann", payload=Payload(("open", "5")))
    assert job.payload == '{"args":["open",5],"kwargs":{}}'


# --- The place in a canvas ------------------------------------------------------------------------------


def test_a_replay_continues_the_chain(witness: Witness) -> None:
    end = chain(fail_unless.s("open", 5), add.s(10), note.si("done")).apply_async()
    drain()
    Group.objects.create(name="open")
    replay.replay(DeadLetter.objects.get().pk, by="ann")
    drain()
    assert witness.lines == ["done"]
    assert fresh(end).state == State.COMPLETED


def test_a_replay_runs_the_links(witness: Witness) -> None:
    fail_unless.apply_async(("open", 5), link=note.si("linked"))
    drain()
    Group.objects.create(name="open")
    replay.replay(DeadLetter.objects.get().pk, by="ann")
    drain()
    assert witness.lines == ["linked"]


# --- Many ----------------------------------------------------------------------------------------------


def test_a_selection_is_replayed_each_by_itself() -> None:
    letters = [dead() for _ in range(3)]
    replay.resolve(letters[1].pk, by="ann", reason="done by hand")
    jobs, refused = replay.replay_many([letter.pk for letter in letters], by="ann")
    assert {job.replay_of_id for job in jobs} == {letters[0].job_id, letters[2].job_id}
    assert list(refused) == [letters[1].pk]
    assert "is resolved already" in refused[letters[1].pk]


# --- Resolve and discard --------------------------------------------------------------------------------


@pytest.mark.parametrize(("verb", "status"), [(replay.resolve, "resolved"), (replay.discard, "discarded")])
def test_a_letter_is_closed_by_a_person_with_a_reason(verb: Callable[..., DeadLetter], status: str) -> None:
    letter = verb(dead().pk, by="ann", reason="done by hand")
    letter.refresh_from_db()
    assert (letter.status, letter.closed_by, letter.closing_reason) == (status, "ann", "done by hand")
    assert Act.objects.get().verb == status


@pytest.mark.parametrize("verb", [replay.resolve, replay.discard])
@pytest.mark.parametrize("reason", ["", "  "])
def test_a_letter_is_not_closed_without_a_reason(verb: Callable[..., DeadLetter], reason: str) -> None:
    letter = dead()
    with pytest.raises(Refused, match="Say why"):
        verb(letter.pk, by="ann", reason=reason)
    letter.refresh_from_db()
    assert letter.is_open


@pytest.mark.parametrize("verb", [replay.resolve, replay.discard, replay.replay])
def test_a_letter_that_is_not_there_is_an_error(verb: Callable[..., Any]) -> None:
    with pytest.raises(NotOpen, match="There is no dead letter 0"):
        verb(0, by="ann", reason="x")


def test_a_key_that_was_freed_by_the_failure_can_be_used_again() -> None:
    first = Charge.delay(7)
    Job.objects.filter(pk=first.id).update(payload='{"args":[],"kwargs":{}}')
    attempt(first.id)
    assert UUID(Charge.delay(7).id) != UUID(first.id)
