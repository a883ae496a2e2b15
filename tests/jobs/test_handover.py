"""What a child does with a claim that was made for it, and what it leaves to be recorded."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from celery.exceptions import Ignore
from django.utils import timezone

from jobs import attempt, control, handover, heartbeat, lifecycle, shutdown
from jobs.conf import current as settings
from jobs.handover import Claimed, Inward
from jobs.models import Job
from jobs.states import State
from tests.platform import fresh, running
from tests.sample.tasks import add

pytestmark = pytest.mark.django_db


@pytest.fixture
def held(sent: list[str]) -> Job:
    """A job that the main process of a worker has claimed; its lease is half over."""
    held: Job = running(add.delay(1, 1).id, lease=settings().LEASE / 2, pid=1)
    return held


def begun(claim: Claimed) -> Any:
    """What a child takes over that is told of this claim."""
    job_id = claim.job_id
    return handover.traced(Inward(claim, False), lambda: attempt.claim(job_id, "a worker"))


def claim_of(job: Job, *, age: float, certain: bool = True) -> Claimed:
    """How the main process speaks of it, so many seconds later."""
    assert job.token is not None
    claim = Claimed(job.pk, job.token, heartbeat.clock() - age)
    return claim.having(row_of(job)) if certain else claim


def row_of(job: Job) -> tuple[Any, ...]:
    """The slim columns of a job, as the database gives them."""
    names = [field.column for field in lifecycle._slim()]
    with lifecycle.database().cursor() as cursor:
        cursor.execute(f"SELECT {', '.join(names)} FROM jobs_job WHERE attempt = 1", [])
        row: tuple[Any, ...] = cursor.fetchone()
    return row


def test_a_child_begins_at_once_with_a_fresh_claim(held: Job, django_assert_num_queries: Any) -> None:
    claim = claim_of(held, age=0.01)
    with django_assert_num_queries(0):
        job, leased = begun(claim)
    assert (job.pk, job.token, leased) == (held.pk, held.token, claim.asked)


@pytest.mark.parametrize("paused", [{"queue": "default"}, {"task": add.name}], ids=str)
def test_a_job_that_was_claimed_ahead_is_not_begun_when_it_is_paused_meanwhile(
    held: Job, paused: dict[str, str]
) -> None:
    control.pause(**paused, reason="", by="ann")
    with pytest.raises(Ignore):
        begun(claim_of(held, age=1.0))
    assert (fresh(held).state, fresh(held).due_at) == (State.PENDING, held.due_at)


@pytest.mark.parametrize("certain", [True, False])
def test_a_claim_that_waited_is_leased_anew(held: Job, certain: bool) -> None:
    before = heartbeat.clock()
    job, leased = begun(claim_of(held, age=settings().LEASE / 2, certain=certain))
    lease = fresh(held).lease_until
    assert (job.pk, job.token) == (held.pk, held.token)
    assert lease is not None
    assert lease > timezone.now() + timedelta(seconds=0.9 * settings().LEASE)
    assert leased >= before


@pytest.mark.parametrize("certain", [True, False])
def test_a_claim_that_was_lost_meanwhile_is_not_begun(held: Job, certain: bool) -> None:
    claim = claim_of(held, age=settings().LEASE / 2, certain=certain)
    lifecycle.move(held, State.RETRYING, "lost", token=uuid4())
    with pytest.raises(Ignore):
        begun(claim)
    assert fresh(held).state == State.RETRYING


def test_the_claim_of_another_job_is_none(held: Job, sent: list[str]) -> None:
    other = add.delay(2, 2)
    claim = claim_of(held, age=0.0)
    job, _ = handover.traced(Inward(claim, False), lambda: attempt.claim(UUID(other.id), "a worker"))
    assert job.pk == UUID(other.id)
    assert job.token != held.token


def test_a_claim_that_is_handed_back_says_that_the_job_never_began(held: Job) -> None:
    allowed = held.max_attempts - held.attempt
    shutdown.unclaim([claim_of(held, age=1.0)])
    job = fresh(held)
    assert (job.state, job.reason) == (State.PENDING, "handed back before it began")
    assert job.max_attempts - job.attempt == allowed + 1
    assert job.losses == 0


def test_the_claim_of_somebody_else_is_not_handed_back(held: Job) -> None:
    shutdown.unclaim([Claimed(held.pk, uuid4(), 0.0)])
    assert fresh(held).state == State.RUNNING
