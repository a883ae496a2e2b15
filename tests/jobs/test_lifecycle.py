"""The one door for state: guarded moves, and the constraints that the database holds itself."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from uuid import UUID, uuid4

import pytest
from django.db import IntegrityError, connections, transaction

from jobs import lifecycle
from jobs.errors import MoveRefused
from jobs.lifecycle import NOW, Clock
from jobs.models import Attempt, Job
from jobs.states import FINAL, MOVES, State
from tests.platform import fresh, running
from tests.sample.tasks import add

pytestmark = pytest.mark.django_db

LEASE = timedelta(seconds=20)


def reserved() -> Job:
    """A job that waits in the broker."""
    return fresh(add.delay(1, 2))


def in_state(state: State) -> Job:
    """A job in this state."""
    job = reserved()
    changes: dict[str, object] = {"state": state}
    if state in FINAL:
        changes["finished_at"] = job.created_at
    if state is State.RUNNING:
        changes |= {"lease_until": job.created_at, "token": uuid4()}
    Job.objects.filter(pk=job.pk).update(**changes)
    return fresh(job)


# --- Claiming ---------------------------------------------------------------------------------------


def test_a_claim_starts_the_next_attempt_with_a_token_and_a_lease() -> None:
    job = running(reserved().pk, lease=20, pid=17)
    assert (job.state, job.attempt, job.worker, job.pid) == (State.RUNNING, 1, "sleepy@here", 17)
    assert job.token is not None
    # The clock is read twice in the statement.
    assert abs(job.lease_until - job.started_at - LEASE) < timedelta(seconds=1)


@pytest.mark.parametrize("state", sorted(set(State) - {State.RESERVED}))
def test_only_a_reserved_job_can_be_claimed(state: State) -> None:
    job = in_state(state)
    assert lifecycle.claim(job.pk, token=uuid4(), worker="w", pid=1, lease=LEASE) is None
    assert fresh(job).attempt == job.attempt


def test_a_job_that_has_expired_cannot_be_claimed() -> None:
    job = reserved()
    Job.objects.filter(pk=job.pk).update(expires_at=job.created_at)
    assert lifecycle.claim(job.pk, token=uuid4(), worker="w", pid=1, lease=LEASE) is None


@pytest.mark.parametrize(("kind", "name"), [("queue", "default"), ("task", add.name)])
def test_a_paused_job_cannot_be_claimed(kind: str, name: str) -> None:
    from jobs.models import Pause

    job = reserved()
    Pause.objects.create(kind=kind, name=name, created_at=job.created_at)
    assert lifecycle.claim(job.pk, token=uuid4(), worker="w", pid=1, lease=LEASE) is None


@pytest.mark.django_db(transaction=True)
def test_of_many_runners_that_claim_at_once_one_wins(sent: list[str]) -> None:
    job = reserved()
    together = threading.Barrier(10)

    def claim(_: int) -> bool:
        together.wait()
        try:
            return lifecycle.claim(job.pk, token=uuid4(), worker="w", pid=1, lease=LEASE) is not None
        finally:
            connections.close_all()

    with ThreadPoolExecutor(10) as runners:
        assert sum(runners.map(claim, range(10))) == 1
    assert fresh(job).attempt == 1


# --- Moving -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", sorted(State))
def test_a_job_makes_only_the_moves_that_the_table_allows(state: State) -> None:
    for target in set(State) - MOVES[state]:
        job = in_state(state)
        with pytest.raises(MoveRefused):
            lifecycle.move(job, target)
        assert fresh(job).state == state


def test_a_move_from_a_state_that_has_passed_is_refused() -> None:
    seen = reserved()
    lifecycle.move(seen, State.CANCELLED)
    with pytest.raises(MoveRefused):
        lifecycle.move(seen, State.PENDING)
    assert fresh(seen).state == State.CANCELLED


def test_a_late_attempt_cannot_overwrite_its_rescuer() -> None:
    late = running(reserved().pk)
    lifecycle.move(late, State.RETRYING, due_at=NOW)
    lifecycle.reserve_due(1)
    rescuer = running(late.pk)
    with pytest.raises(MoveRefused):
        lifecycle.move(late, State.FAILED)
    assert lifecycle.complete(late, "1") is False
    assert lifecycle.amend(late, progress={"done": 1}) is False
    assert fresh(late).token == rescuer.token


def test_an_attempt_with_another_token_cannot_record() -> None:
    job = running(reserved().pk)
    job.token = uuid4()
    assert lifecycle.complete(job, "1") is False


@pytest.mark.parametrize("target", sorted(FINAL))
def test_a_final_move_says_when(target: State) -> None:
    assert lifecycle.move(running(reserved().pk), target).finished_at is not None


def test_a_job_that_others_follow_is_not_completed_by_the_short_way() -> None:
    job = running(reserved().pk)
    Job.objects.filter(pk=job.pk).update(followed=True)
    assert lifecycle.complete(job, "1") is False


def test_an_attempt_is_recorded_once() -> None:
    job = running(reserved().pk)
    for outcome in ("transient", "lost"):
        lifecycle.record_attempt(job, outcome=outcome, decision=State.RETRYING)
    assert [a.outcome for a in Attempt.objects.all()] == ["transient"]


# --- What becomes due -------------------------------------------------------------------------------


def pending(due: timedelta, **changes: object) -> Job:
    """A job that waits in the database until ``due`` from now."""
    job = reserved()
    return lifecycle.move(job, State.PENDING, "scheduled", due_at=Clock(due), **changes)


def test_what_is_due_is_reserved_and_marked_as_sent() -> None:
    job = pending(timedelta(seconds=-1))
    assert [due.pk for due in lifecycle.reserve_due(10)] == [job.pk]
    assert fresh(job).state == State.RESERVED
    assert fresh(job).sends == 2


def test_what_is_not_due_stays() -> None:
    pending(timedelta(seconds=60))
    assert lifecycle.reserve_due(10) == []


def test_the_most_urgent_goes_first_and_of_equals_the_one_due_first() -> None:
    low = pending(timedelta(seconds=-9), priority=30)
    late, early = pending(timedelta(seconds=-1)), pending(timedelta(seconds=-2))
    critical = pending(timedelta(seconds=-1), priority=0)
    assert [job.pk for job in lifecycle.reserve_due(10)] == [critical.pk, early.pk, late.pk, low.pk]


def test_no_more_than_the_limit_is_reserved() -> None:
    for _ in range(3):
        pending(timedelta(seconds=-1))
    assert len(lifecycle.reserve_due(2)) == 2


def test_a_job_that_waits_for_others_is_never_due() -> None:
    job = reserved()
    lifecycle.move(job, State.PENDING, due_at=None)
    assert lifecycle.reserve_due(10) == []


# --- What the database refuses itself -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("only_final_jobs_are_finished", {"state": State.RUNNING, "finished_at": "now"}),
        ("final_jobs_are_finished", {"state": State.COMPLETED}),
        ("running_jobs_hold_a_lease", {"state": State.RUNNING, "lease_until": None}),
    ],
)
def test_the_database_refuses_a_row_that_breaks_a_rule(name: str, changes: dict[str, object]) -> None:
    job = running(reserved().pk)
    if changes.get("finished_at"):
        changes = {**changes, "finished_at": job.created_at}
    with pytest.raises(IntegrityError, match=name), transaction.atomic():
        Job.objects.filter(pk=job.pk).update(**changes)


def test_no_more_members_of_a_chord_can_remain_than_began() -> None:
    from jobs.models import FanIn

    with pytest.raises(IntegrityError), transaction.atomic():
        FanIn.objects.create(id=UUID(int=1), size=1, remaining=2, created_at=lifecycle.database_now())


def test_the_clock_is_the_databases_and_runs_inside_a_transaction() -> None:
    first = lifecycle.database_now()
    later = lifecycle.database_now()
    while later <= first:
        later = lifecycle.database_now()
    assert later - first < timedelta(seconds=5)
