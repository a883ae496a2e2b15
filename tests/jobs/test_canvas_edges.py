"""The corners of canvas: who waits for whom, and that nobody waits for ever."""

from datetime import timedelta
from typing import Any

import pytest
from celery import chain, chord
from django.contrib.auth.models import Group
from django.utils import timezone

from dlq import replay
from dlq.models import DeadLetter
from jobs import conclusion, lifecycle
from jobs.celery import _adopt_tasks
from jobs.conclusion import Report
from jobs.failures import Failure, Kind
from jobs.models import FanIn, Job
from jobs.states import State
from project.celery import app
from tests.platform import Witness, attempt, drain, fresh, hurry, running
from tests.sample.tasks import (
    Charge,
    Deliver,
    Once,
    Page,
    add,
    boom,
    collect,
    localized,
    note,
    on_typed_error,
    replaced_by_chain_into_group,
    snoozes_then_retries,
    walk,
    wide,
)

pytestmark = pytest.mark.django_db


def settled() -> bool:
    """Whether no job is left unfinished."""
    return not Job.objects.filter(finished_at__isnull=True).exists()


def fail(result: Any) -> None:
    """Let an attempt of a job fail for good."""
    conclusion.conclude(running(result.id), Failure(Kind.PERMANENT, "no use"), Report("shop.Refused", "no", ""))


# --- Chords -----------------------------------------------------------------------------------------


def test_a_chord_counts_a_member_that_settled_as_it_was_inserted(witness: Witness) -> None:
    Once.delay("a")
    drain()
    body = chord([Once.s("a"), add.s(1, 1), add.s(2, 2)], collect.s()).apply_async()
    drain()
    assert fresh(body).result == '["a",2,4]'
    assert FanIn.objects.get().remaining == 0


def test_a_chord_whose_members_all_settled_at_once_releases_its_body(witness: Witness) -> None:
    Once.delay("a")
    drain()
    body = chord([Once.s("a"), Once.s("a")], collect.s()).apply_async()
    drain()
    assert fresh(body).state == State.COMPLETED


def test_a_chord_s_body_may_have_the_key_of_a_member(witness: Witness) -> None:
    chord([Charge.si(1), Charge.si(2)], Charge.si(1)).apply_async()
    drain()
    assert settled()


def test_a_chord_s_body_keeps_the_key_that_it_was_given(witness: Witness) -> None:
    body = chord([add.s(1, 1)], collect.s().set(key="sheet")).apply_async()
    drain()
    assert fresh(body).key == "sheet"


def test_a_chord_s_body_waits_for_its_own_delay(witness: Witness) -> None:
    body = chord([add.s(1, 1)], collect.s().set(countdown=600)).apply_async()
    drain()
    waiting = fresh(body)
    assert waiting.state == State.PENDING
    assert waiting.due_at > timezone.now() + timedelta(minutes=9)


def test_the_results_of_a_chord_may_be_larger_than_a_payload(witness: Witness) -> None:
    body = chord([wide.s(n) for n in range(400)], collect.s()).apply_async()
    drain(1000)
    assert fresh(body).state == State.COMPLETED


# --- Replacing --------------------------------------------------------------------------------------


def test_a_job_replaced_by_a_chain_that_ends_in_a_group_settles(witness: Witness) -> None:
    job = replaced_by_chain_into_group.delay()
    drain()
    assert fresh(job).result == "[3,4]"


def test_a_task_may_replace_itself_under_the_same_key(witness: Witness) -> None:
    job = Page.delay(7)
    drain()
    assert fresh(job).result == "3"
    assert witness.lines == ["page:7:1", "page:7:2", "page:7:3"]


def test_what_a_transactional_body_wrote_before_it_was_replaced_is_kept(witness: Witness) -> None:
    job = Deliver.delay("kept")
    drain()
    assert Group.objects.filter(name="kept").exists()
    assert fresh(job).result == "4"


# --- Followers ----------------------------------------------------------------------------------------


def test_the_replay_of_a_follower_follows_the_replay_of_the_owner(witness: Witness) -> None:
    owner = Charge.delay(5)
    chain(Charge.s(5), note.si("after")).apply_async()
    fail(owner)
    _, refused = replay.replay_many(DeadLetter.objects.order_by("pk").values_list("pk", flat=True), by="ann")
    drain()
    assert not refused
    assert [line.split(":")[1] for line in witness.lines if line.startswith("charge")] == ["5"]
    assert "after" in witness.lines
    assert settled()


def test_a_follower_is_not_replayed_before_the_owner(witness: Witness) -> None:
    owner = Charge.delay(5)
    follower = chain(Charge.s(5), note.si("after"))
    follower.apply_async()
    fail(owner)
    letter = DeadLetter.objects.exclude(job_id=owner.id).get(task=Charge.name)
    with pytest.raises(replay.Refused, match="Replay that one first"):
        replay.replay(letter.pk, by="ann")


def test_a_dependent_that_moved_meanwhile_does_not_undo_the_outcome(
    witness: Witness, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = Charge.delay(5)
    chain(Charge.s(5), note.si("after")).apply_async()
    move = lifecycle.move

    def overtaken(job: Job, *args: Any, **kwargs: Any) -> Job:
        if job.follows_id is not None:
            raise lifecycle.MoveRefused("somebody was faster")
        return move(job, *args, **kwargs)

    monkeypatch.setattr(lifecycle, "move", overtaken)
    attempt(owner.id)
    assert fresh(owner).state == State.COMPLETED


# --- Steps, errors, attempts ----------------------------------------------------------------------------


def test_a_step_that_expired_before_its_turn_is_cancelled(witness: Witness) -> None:
    chain(add.s(1, 1), add.s(2).set(expires=timezone.now() + timedelta(hours=1))).apply_async()
    first = Job.objects.get()
    first.canvas = first.canvas.replace(str(timezone.now().year), "2020")
    first.save(update_fields=["canvas"])
    drain()
    step = Job.objects.exclude(pk=first.pk).get()
    assert (step.state, step.reason) == (State.CANCELLED, "expired")


def test_an_error_callback_of_ours_is_given_the_request_and_the_error(witness: Witness) -> None:
    job = boom.apply_async(link_error=on_typed_error.s())
    drain()
    assert witness.lines[-1].startswith(f"on_typed_error:{job.id}:")


def test_snoozes_do_not_use_up_the_attempts_that_a_retry_asks_for(witness: Witness) -> None:
    app.mainstay_tries = []
    snoozes_then_retries.delay()
    for _ in range(10):
        hurry()
        drain()
    assert app.mainstay_tries == ["snooze"] * 3 + ["retry"] * 3


def test_a_body_may_call_its_own_task(witness: Witness) -> None:
    job = walk.delay(3)
    drain()
    assert fresh(job).result == "3"


def test_the_call_of_a_project_s_own_base_class_runs_and_its_attributes_stay_its_own(witness: Witness) -> None:
    _adopt_tasks(app)
    job = localized.delay(4)
    drain()
    assert witness.lines == ["localized", "body:4"]
    assert fresh(job).key is None
