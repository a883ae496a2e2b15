"""What follows a job that settled: links, chains, chords, followers. Run here, attempt by attempt."""

from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import pytest
from celery import chain, chord, group
from django.contrib.auth.models import Group

from dlq import replay
from dlq.models import DeadLetter
from jobs import control, rescue
from jobs.models import FanIn, Job
from jobs.states import State
from project.celery import app
from tests.platform import Witness, attempt, drain, fresh, running
from tests.sample.tasks import (
    Charge,
    add,
    boom,
    collect,
    fail_unless,
    ignored,
    note,
    remember_failure,
    replaced,
    replaced_by_group,
    total,
)

pytestmark = pytest.mark.django_db


def outcome(result: Any) -> Any:
    """State and result of what a canvas ends with."""
    drain()
    job = fresh(result)
    return job.state, job.result


# --- What a canvas computes ---------------------------------------------------------------------------

CANVASES: dict[str, tuple[Callable[[], Any], str]] = {
    "chain": (lambda: chain(add.s(1, 2), add.s(10), add.s(100)), "113"),
    "chain with an immutable step": (lambda: chain(add.s(1, 2), add.si(10, 10), add.s(1)), "21"),
    "chord": (lambda: chord([add.s(n, n) for n in range(5)], total.s()), "20"),
    "chord of one": (lambda: chord([add.s(1, 1)], total.s()), "2"),
    "order of a chord's results": (
        lambda: chord([add.s(n, 0) for n in range(12)], collect.s()),
        str(list(range(12))).replace(" ", ""),
    ),
    "group then task": (lambda: group(add.s(1, 1), add.s(2, 2)) | total.s(), "6"),
    "group in the middle of a chain": (lambda: add.s(1, 1) | group(add.s(1), add.s(2)) | total.s(), "7"),
    "chord in a chain": (lambda: chain(add.s(1, 1), chord([add.s(1), add.s(2)], total.s()), add.s(100)), "107"),
    "chain in a chord's header": (lambda: chord([chain(add.s(1, 1), add.s(1)), add.s(5, 5)], collect.s()), "[3,10]"),
    "chord in a chord's header": (
        lambda: chord([chord([add.s(1, 1), add.s(2, 2)], total.s()), add.s(5, 5)], collect.s()),
        "[6,10]",
    ),
    "chord in the middle of a header": (
        lambda: chord([add.s(5, 5), chord([add.s(1, 1), add.s(2, 2)], total.s()), add.s(7, 7)], collect.s()),
        "[10,6,14]",
    ),
    "group in a chord's header": (lambda: chord([group(add.s(1, 1), add.s(2, 2)), add.s(5, 5)], total.s()), "16"),
    "chord whose body is a chain": (lambda: chord([add.s(1, 1), add.s(2, 2)], chain(total.s(), add.s(1))), "7"),
    "two chords in a row": (
        lambda: group(add.s(1, 1), add.s(2, 2)) | total.s() | group(add.s(1), add.s(2)) | total.s(),
        "15",
    ),
    "chord of three levels": (
        lambda: chord(
            [chord([chord([add.s(1, 1), add.s(1, 1)], total.s()), add.s(1, 0)], total.s()), add.s(1, 0)], total.s()
        ),
        "6",
    ),
}


@pytest.mark.parametrize("name", CANVASES)
def test_a_canvas_ends_with_what_it_computes(name: str) -> None:
    canvas, result = CANVASES[name]
    assert outcome(canvas().apply_async()) == (State.COMPLETED, result)
    assert set(Job.objects.values_list("state", flat=True)) == {State.COMPLETED}
    assert set(Job.objects.values_list("attempt", flat=True)) == {1}


def test_an_empty_chord_runs_its_body() -> None:
    chord([], collect.s()).apply_async()
    drain()
    assert Job.objects.get(task=collect.name).result == "[]"


def test_a_successor_knows_its_parent_and_its_root() -> None:
    last = chain(add.s(1, 2), add.s(3)).apply_async()
    drain()
    assert fresh(last).parent_id == UUID(last.parent.id)
    assert fresh(last).root_id == UUID(last.parent.id)


def test_a_chords_body_is_on_record_from_the_start() -> None:
    body = fresh(chord([add.s(1, 1)], total.s()).apply_async())
    assert (body.state, body.reason, body.due_at) == (State.PENDING, "waits for the members of its chord", None)


def test_a_link_gets_the_result(witness: Witness) -> None:
    add.apply_async((1, 2), link=add.s(10))
    drain()
    assert sorted(Job.objects.values_list("result", flat=True)) == ["13", "3"]


def test_every_link_runs(witness: Witness) -> None:
    add.apply_async((1, 2), link=[note.si("a"), note.si("b")])
    drain()
    assert sorted(witness.lines) == ["a", "b"]


def test_an_error_link_runs_once_for_a_failure_and_gets_the_failed_jobs_id(witness: Witness) -> None:
    failed = boom.apply_async(link_error=remember_failure.s())
    drain()
    assert witness.lines == [f"errback:{failed.id}"]


def test_no_error_link_runs_while_the_job_is_to_be_retried(witness: Witness) -> None:
    from tests.sample.tasks import misbehave

    job = misbehave.apply_async(("transient",), link_error=remember_failure.s())
    attempt(job.id)
    assert not Job.objects.filter(task=remember_failure.name).exists()


def test_an_error_link_runs_for_a_job_whose_worker_was_lost(witness: Witness) -> None:
    job = add.apply_async((1, 2), link_error=remember_failure.s(), correlation_id="req-1")
    Job.objects.update(losses=2)
    running(job.id, lease=-1)
    assert rescue.rescue() == 1
    drain()
    assert witness.lines == [f"errback:{job.id}"]
    assert Job.objects.get(task=remember_failure.name).correlation_id == "req-1"


def test_the_rest_of_a_chain_does_not_run_after_a_failure(witness: Witness) -> None:
    chain(boom.si(), note.si("never")).apply_async()
    drain()
    assert witness.lines == []
    assert not Job.objects.filter(task=note.name).exists()


# --- A successor that cannot be enqueued is not lost ----------------------------------------------------


def test_a_successor_whose_payload_does_not_fit_ends_as_a_letter() -> None:
    last = chain(note.s("text"), add.s(1)).apply_async()
    drain()
    assert (fresh(last).state, fresh(last).reason) == (State.FAILED, "could not be enqueued")
    assert DeadLetter.objects.get().job_id == UUID(last.id)


@pytest.mark.parametrize("option", ["tenant", "correlation_id"])
def test_a_next_job_whose_options_are_wrong_does_not_spoil_the_outcome_of_the_one_before(option: str) -> None:
    last = chain(add.s(1, 2), add.s(3).set(**{option: "x" * 200})).apply_async()
    drain()
    assert fresh(last.parent).state == State.COMPLETED
    assert (fresh(last).state, fresh(last).reason) == (State.FAILED, "could not be enqueued")


def test_a_chord_whose_results_do_not_fit_its_body_ends_as_a_letter() -> None:
    body = chord([note.s("text")], total.s()).apply_async()
    drain()
    assert fresh(body).state == State.FAILED
    assert "valid integer" in DeadLetter.objects.get().error_message


# --- Chords whose header fails --------------------------------------------------------------------------


def failing_chord(**options: Any) -> Any:
    """A chord with a member that fails until a group is there."""
    return chord([add.s(1, 1), fail_unless.s("open", 5), add.s(2, 2)], total.s()).apply_async(**options)


def test_a_chord_with_a_failed_member_fails_its_body_with_a_letter_that_says_what_to_do() -> None:
    body = failing_chord()
    assert outcome(body)[0] == State.FAILED
    letter = DeadLetter.objects.get(job_id=body.id)
    assert letter.error_type == "jobs.errors.DependencyFailed"
    assert "Replay it: this job is replayed with it." in letter.error_message


def test_a_chords_body_waits_for_all_members_before_it_fails() -> None:
    body = chord([boom.si(), add.s(1, 1)], total.s()).apply_async()
    attempt(Job.objects.get(task=boom.name).pk)
    assert fresh(body).state == State.PENDING


def replay_letter_of(task: str) -> Job:
    """Replay the open letter of a task."""
    return replay.replay(DeadLetter.objects.get(task=task, status="open").pk, by="ann", reason="repaired")


def test_replaying_the_failed_member_completes_the_chord() -> None:
    body = failing_chord()
    drain()
    Group.objects.create(name="open")
    replay_letter_of(fail_unless.name)
    drain()
    again = Job.objects.get(replay_of_id=body.id)
    assert (again.state, again.result) == (State.COMPLETED, "11")
    assert not DeadLetter.objects.filter(status="open").exists()


def test_replaying_a_member_in_vain_leaves_the_chord_failed() -> None:
    body = failing_chord()
    drain()
    replay_letter_of(fail_unless.name)
    drain()
    assert not Job.objects.filter(replay_of_id=body.id).exists()
    Group.objects.create(name="open")
    replay_letter_of(fail_unless.name)
    drain()
    assert Job.objects.get(replay_of_id=body.id).result == "11"


def test_what_follows_the_chord_goes_on_after_the_replay() -> None:
    end = chain(chord([add.s(1, 1), fail_unless.s("open", 5)], total.s()), add.s(100)).apply_async()
    drain()
    Group.objects.create(name="open")
    replay_letter_of(fail_unless.name)
    drain()
    assert (fresh(end).state, fresh(end).result) == (State.COMPLETED, "107")


def test_the_letter_of_the_body_itself_cannot_be_replayed_before_its_members() -> None:
    from jobs.errors import Refused

    body = failing_chord()
    drain()
    with pytest.raises(Refused, match="Replay the member that failed"):
        replay.replay(DeadLetter.objects.get(job_id=body.id).pk, by="ann")


def test_a_failure_inside_a_nested_chord_reaches_the_outer_body() -> None:
    outer = chord([chord([fail_unless.s("open", 5), add.s(1, 1)], total.s()), add.s(5, 5)], total.s()).apply_async()
    assert outcome(outer)[0] == State.FAILED


def test_replaying_inside_a_nested_chord_completes_the_outer_one() -> None:
    outer = chord([chord([fail_unless.s("open", 5), add.s(1, 1)], total.s()), add.s(5, 5)], total.s()).apply_async()
    drain()
    Group.objects.create(name="open")
    replay_letter_of(fail_unless.name)
    drain()
    assert Job.objects.get(replay_of_id=outer.id).result == "17"


def test_a_failure_in_a_chain_of_the_header_reaches_the_body() -> None:
    body = chord([chain(fail_unless.si("open", 5), add.s(1)), add.s(5, 5)], total.s()).apply_async()
    assert outcome(body)[0] == State.FAILED


def test_replaying_in_a_chain_of_the_header_completes_the_chord() -> None:
    body = chord([chain(fail_unless.si("open", 5), add.s(1)), add.s(5, 5)], total.s()).apply_async()
    drain()
    Group.objects.create(name="open")
    replay_letter_of(fail_unless.name)
    drain()
    assert Job.objects.get(replay_of_id=body.id).result == "16"


@pytest.mark.parametrize("end", ["cancelled", "ignored"])
def test_a_member_that_is_cancelled_fails_the_chord(end: str) -> None:
    member = ignored.si() if end == "ignored" else add.s(7, 7).set(task_id=str(uuid4()))
    body = chord([add.s(1, 1), member], total.s()).apply_async()
    if end == "cancelled":
        control.cancel(Job.objects.get(task=add.name, payload__contains="7").pk, reason="not wanted", by="ann")
    assert outcome(body)[0] == State.FAILED


@pytest.mark.filterwarnings("ignore:task_allow_error_cb_on_chord_header")
def test_an_error_link_of_a_chord_runs(witness: Witness) -> None:
    canvas = chord([boom.si(), add.s(1, 1)], total.s())
    canvas.link_error(remember_failure.s())
    body = canvas.apply_async()
    drain()
    assert f"errback:{body.id}" in witness.lines


# --- Counting ------------------------------------------------------------------------------------------


def test_a_member_that_was_rescued_counts_once() -> None:
    body = chord([add.s(1, 1), add.s(2, 2)], total.s()).apply_async()
    first = Job.objects.filter(task=add.name).first()
    running(first.pk, lease=-1)
    rescue.rescue()
    assert FanIn.objects.get().remaining == 2
    assert outcome(body) == (State.COMPLETED, "6")


def test_a_second_message_of_a_member_does_not_count() -> None:
    body = chord([add.s(1, 1), add.s(2, 2)], total.s()).apply_async()
    first = Job.objects.filter(task=add.name).first()
    attempt(first.pk)
    attempt(first.pk)
    assert FanIn.objects.get().remaining == 1
    assert fresh(body).state == State.PENDING


# --- Members and steps whose key is taken ----------------------------------------------------------------


def test_a_member_whose_key_is_taken_follows_the_existing_job() -> None:
    existing = Charge.delay(7)
    body = chord([Charge.s(7), add.s(1, 1)], collect.s()).apply_async()
    assert outcome(body) == (State.COMPLETED, '["7:1.0",2]')
    assert Job.objects.filter(task=Charge.name, attempt=1).get().pk == UUID(existing.id)


def test_a_step_of_a_chain_whose_key_is_taken_follows_the_existing_job() -> None:
    Charge.delay(7)
    end = chain(Charge.si(7), note.s()).apply_async()
    assert outcome(end) == (State.COMPLETED, '"7:1.0"')
    assert Job.objects.filter(task=Charge.name, attempt=1).count() == 1


def test_a_follower_of_a_job_that_fails_fails_with_it() -> None:
    owner = boom.apply_async(key="same")
    follower = boom.apply_async(key="same", task_id=str(uuid4()))
    assert outcome(follower)[0] == State.FAILED
    assert fresh(follower).error_message == fresh(owner).error_message


def test_two_members_with_one_key_are_one_job() -> None:
    body = chord([Charge.s(7), Charge.s(7)], collect.s()).apply_async()
    assert outcome(body) == (State.COMPLETED, '["7:1.0","7:1.0"]')
    assert Job.objects.filter(task=Charge.name, attempt=1).count() == 1


# --- Replacing -----------------------------------------------------------------------------------------


def test_a_replaced_job_settles_as_its_replacement() -> None:
    job = replaced.delay(1)
    assert outcome(job) == (State.COMPLETED, "111")


def test_a_chain_goes_on_with_the_result_of_the_replacement() -> None:
    end = chain(replaced.s(1), add.s(1000)).apply_async()
    assert outcome(end) == (State.COMPLETED, "1111")


def test_a_job_replaced_by_a_group_settles_with_the_list() -> None:
    job = replaced_by_group.delay()
    assert outcome(job) == (State.COMPLETED, "[2,4]")


def test_a_replaced_member_counts_when_its_replacement_has_ended() -> None:
    body = chord([replaced.s(1), add.s(1, 1)], total.s()).apply_async()
    assert outcome(body) == (State.COMPLETED, "113")


# --- Untracked tasks inside a canvas ---------------------------------------------------------------------


def test_an_opted_out_task_is_tracked_where_others_wait_for_it() -> None:
    from tests.sample.tasks import untracked

    end = chain(untracked.s("x"), note.s()).apply_async()
    assert outcome(end) == (State.COMPLETED, '"x"')


def test_a_fanin_is_gone_or_settled_when_its_chord_has_ended() -> None:
    chord([add.s(1, 1)], total.s()).apply_async()
    drain()
    assert not FanIn.objects.filter(remaining__gt=0).exists()


def test_all_of_a_canvas_is_run_by_jobs_of_ours_alone() -> None:
    """Celery's own dispatch is off: nothing is in the broker's hands that no row knows."""
    end = chain(add.s(1, 2), add.s(3)).apply_async()
    drain()
    assert Job.objects.count() == 2
    assert app.AsyncResult(end.id).get(timeout=1) == 6
