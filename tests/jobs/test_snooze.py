"""Snooze: a job is put back for later, and nothing else changes: no attempt, no error, no slot, no key is lost."""

import pickle
from datetime import timedelta
from typing import Any

import pytest
from celery import chain, chord
from django.contrib.auth.models import Group
from django.db.models import F

from dlq.models import DeadLetter
from jobs import control, lanes, lifecycle
from jobs.errors import DeclarationError, OptionError, Refused, Snooze
from jobs.models import Act, Attempt, Job, Slot
from jobs.retry import RetryPolicy
from jobs.states import WAITING, State
from jobs.task import task
from tests.platform import attempt, drain, fresh, running
from tests.sample.tasks import (
    add,
    auto,
    drowsy,
    misbehave,
    note,
    old_sleeper,
    sleepy,
    total,
    writes_and_snoozes,
)

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def nothing_leaves(sent: list[str]) -> None:
    """Nothing goes to a broker."""
    lanes._flows.clear()


def awake() -> None:
    """All that sleeps is due, and runs."""
    for pk in Job.objects.filter(state__in=WAITING, due_at__isnull=False).values_list("pk", flat=True):
        control.retry(pk, by="ann")
    drain()


# --- By a body --------------------------------------------------------------------------------------


def test_no_attempt_is_used_and_no_error_is_shown() -> None:
    job = misbehave.delay("snooze")
    attempt(job.id)
    row = fresh(job)
    assert (row.state, row.reason, row.error_type, row.traceback) == (State.PENDING, "snoozed", "", "")
    assert row.max_attempts - row.attempt == 3
    assert row.snoozes == 1


def test_each_snooze_is_on_record() -> None:
    job = sleepy.delay("a", 2)
    drain()
    awake()
    awake()
    told = [(a.number, a.outcome, a.reason, a.delay, a.error_type) for a in Attempt.objects.all()]
    assert told == [(1, "snoozed", "not yet", 30.0, ""), (2, "snoozed", "not yet", 30.0, "")]
    assert job.get(timeout=1) == "a after 2"


def test_whoever_asks_for_the_result_meanwhile_is_told_that_it_waits() -> None:
    job = sleepy.delay("a")
    drain()
    assert (job.state, job.ready()) == ("PENDING", False)


def test_its_slot_is_free_while_it_sleeps() -> None:
    sleepy.delay("a")
    second = sleepy.delay("b", 0)
    drain()
    assert fresh(second).state == State.COMPLETED
    lanes.release(10)
    assert not Slot.objects.exists()


def test_its_key_is_held_while_it_sleeps() -> None:
    job = drowsy.delay()
    attempt(job.id)
    assert drowsy.delay().id == job.id


def test_a_policy_bounds_how_often_a_body_snoozes() -> None:
    job = drowsy.delay()
    attempt(job.id)
    awake()
    assert fresh(job).state == State.PENDING
    awake()
    assert (fresh(job).state, fresh(job).reason) == (State.FAILED, "exhausted: snoozed 2 times")
    assert DeadLetter.objects.get().error_type == "jobs.errors.Snooze"


def test_what_else_used_no_attempt_is_not_counted_as_a_snooze() -> None:
    from jobs import attempt as attempts

    job = drowsy.delay()
    for _ in range(3):
        lifecycle.reserve_due(1)
        attempts.hand_back(running(job.id))
    assert fresh(job).snoozes == 3
    awake()
    assert fresh(job).state == State.PENDING


def test_a_policy_bounds_until_when_a_body_snoozes() -> None:
    job = old_sleeper.delay()
    attempt(job.id)
    assert fresh(job).state == State.PENDING
    Job.objects.update(created_at=F("created_at") - timedelta(hours=2))
    awake()
    assert (fresh(job).state, fresh(job).reason) == (State.FAILED, "exhausted: it may snooze for 3600 s")


@pytest.mark.parametrize(
    ("how", "state", "why"),
    [("snooze", State.PENDING, "snoozed"), ("rate", State.RETRYING, "rate limited: RateLimited")],
)
def test_celerys_autoretry_does_not_take_it_for_an_error(how: str, state: State, why: str) -> None:
    job = auto.delay(how)
    drain()
    for _ in range(3):
        awake()
    assert (fresh(job).reason, fresh(job).state) == (why, state)
    assert fresh(job).attempt == 4
    assert fresh(job).max_attempts == 2 + 4


def test_celerys_autoretry_still_counts_errors() -> None:
    job = auto.delay("unclassified")
    drain()
    awake()
    assert fresh(job).state == State.FAILED


def test_what_a_transactional_body_wrote_is_rolled_back() -> None:
    job = writes_and_snoozes.delay()
    drain()
    assert fresh(job).state == State.PENDING
    assert not Group.objects.exists()


def test_a_chord_waits_for_a_member_that_sleeps() -> None:
    result = chord([sleepy.s("a"), note.s("b")], count_all.s()).apply_async()
    drain()
    assert not result.ready()
    awake()
    drain()
    assert result.get(timeout=1) == 2


def test_a_chain_goes_on_after_a_step_has_slept() -> None:
    result = chain(sleepy.s("a"), note.s()).apply_async()
    drain()
    awake()
    drain()
    assert result.get(timeout=1) == "a after 1"


def test_a_sleeping_job_can_be_cancelled_and_expires() -> None:
    job, other = misbehave.delay("snooze"), misbehave.apply_async(("snooze",), expires=60)
    attempt(job.id), attempt(other.id)
    control.cancel(fresh(job).pk, reason="x", by="ann")
    assert fresh(job).state == State.CANCELLED
    Job.objects.update(created_at=F("created_at") - timedelta(hours=1), expires_at=F("expires_at") - timedelta(hours=1))
    control.expire()
    assert (fresh(other).state, fresh(other).reason) == (State.CANCELLED, "expired")


def test_a_cancel_that_was_asked_for_before_it_sleeps_holds() -> None:
    job = misbehave.delay("snooze")
    claimed = running(job.id)
    control.cancel(claimed.pk, reason="not wanted", by="ann")
    from jobs import conclusion
    from jobs.failures import Failure, Kind

    conclusion.conclude(claimed, Failure(Kind.SNOOZED, "x", timedelta(5)), conclusion.Report())
    assert fresh(job).state == State.CANCELLED


@pytest.mark.parametrize("delay", [-1, float("nan")])
def test_a_delay_that_makes_no_sense_is_refused(delay: float) -> None:
    with pytest.raises(OptionError, match="delay of 0 seconds or more"):
        Snooze(delay)


@pytest.mark.parametrize("wrong", [{"max_snoozes": -1}, {"snooze_for": 0}, {"snooze_for": timedelta(0)}])
def test_a_bound_that_makes_no_sense_is_refused(wrong: Any) -> None:
    with pytest.raises(DeclarationError, match=next(iter(wrong))):
        RetryPolicy(**wrong)


# --- By an operator ---------------------------------------------------------------------------------


def test_a_scheduled_job_is_put_off() -> None:
    job = add.apply_async((1, 2), countdown=10)
    control.snooze(fresh(job).pk, timedelta(hours=1), by="ann", reason="later")
    row = fresh(job)
    assert (row.state, row.reason, row.attempt) == (State.PENDING, "snoozed by ann: later", 0)
    assert timedelta(minutes=59) < row.due_at - lifecycle.database_now() <= timedelta(hours=1)
    act = Act.objects.get()
    assert (act.verb, act.by, act.reason) == ("snooze", "ann", "later")


def test_a_job_in_the_broker_is_put_off_and_its_message_is_refused() -> None:
    job = note.delay("x")
    control.snooze(fresh(job).pk, timedelta(hours=1), by="ann")
    attempt(job.id)
    assert (fresh(job).state, fresh(job).attempt) == (State.PENDING, 0)


def test_a_job_that_waits_for_its_next_attempt_is_put_off() -> None:
    job = misbehave.delay("transient")
    attempt(job.id)
    until = lifecycle.database_now() + timedelta(days=2)
    control.snooze(fresh(job).pk, until, by="ann")
    assert (fresh(job).state, fresh(job).due_at) == (State.RETRYING, until)


def test_a_job_in_line_is_put_off_and_goes_when_it_is_due() -> None:
    job = note.apply_async(("x",), tenant="acme")
    lanes.release(0)
    control.snooze(fresh(job).pk, timedelta(hours=1), by="ann")
    assert lanes.release(10) == []
    control.retry(fresh(job).pk, by="ann")
    assert [one.pk for one in lanes.release(10)] == [fresh(job).pk]


@pytest.mark.parametrize("until", [timedelta(0), timedelta(hours=-1), timedelta(days=40_000)])
def test_a_time_that_is_over_is_refused(until: timedelta) -> None:
    job = add.apply_async((1, 2), countdown=10)
    with pytest.raises(Refused, match="for some time from now"):
        control.snooze(fresh(job).pk, until, by="ann")


def test_a_job_that_runs_waits_for_others_or_has_ended_is_not_put_off() -> None:
    job = add.delay(1, 2)
    running(job.id)
    body = chord([add.s(1, 2)], total.s()).apply_async()
    for one in (fresh(job), fresh(body)):
        with pytest.raises(Refused):
            control.snooze(one.pk, timedelta(hours=1), by="ann")
    control.cancel(fresh(body).pk, reason="x", by="ann")
    with pytest.raises(Refused, match="is cancelled"):
        control.snooze(fresh(body).pk, timedelta(hours=1), by="ann")


@task
def count_all(found: list[str]) -> int:
    return len(found)


def test_it_can_be_pickled() -> None:
    again = pickle.loads(pickle.dumps(Snooze(5, "too early")))
    assert (again.delay, again.reason) == (timedelta(seconds=5), "too early")
