"""The loop that keeps jobs moving: one copy leads, chores that fail do not stop it."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db.models import F

from jobs import conductor as room
from jobs import lifecycle, release
from jobs.conductor import Conductor
from jobs.models import Job, Leader
from jobs.states import State
from tests.platform import Platform, fresh, running
from tests.sample.tasks import add, misbehave, note

pytestmark = pytest.mark.django_db

WaitUntil = Callable[..., Any]


# --- Who leads --------------------------------------------------------------------------------------


def test_of_two_copies_one_leads() -> None:
    first, second = Conductor(name="first"), Conductor(name="second")
    assert (first.lead(), second.lead(), first.lead()) == (True, False, True)
    assert Leader.objects.get().holder == "first"


def test_a_copy_that_does_not_lead_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    Conductor(name="first").lead()
    monkeypatch.setattr(Conductor, "chores", lambda self: pytest.fail("it acts without leading"))
    assert Conductor(name="second").tick() == 0


def test_a_leader_whose_lease_has_ended_is_replaced() -> None:
    first, second = Conductor(name="first"), Conductor(name="second")
    first.lead()
    Leader.objects.update(until=lifecycle.database_now() - timedelta(seconds=1))
    assert second.lead() is True
    first._renewed = float("-inf")
    assert first.lead() is False


def test_a_leader_that_resigns_is_replaced_at_once() -> None:
    first, second = Conductor(name="first"), Conductor(name="second")
    first.lead()
    Leader.objects.filter(holder="first").delete()
    assert second.lead() is True


def test_two_copies_have_two_names() -> None:
    assert room.own_name() != room.own_name()


# --- What a tick does -------------------------------------------------------------------------------


def test_a_tick_releases_what_is_due(sent: list[str]) -> None:
    job = note.apply_async(("x",), countdown=60)
    conductor = Conductor()
    assert conductor.tick() == 0
    Job.objects.update(due_at=F("created_at"))
    assert conductor.tick() == 1
    assert sent == [job.id]


def test_a_tick_rescues_expires_and_forces(sent: list[str]) -> None:
    lost = running(add.delay(1, 2).id, lease=-1)
    late = note.apply_async(("x",), expires=60)
    stubborn = running(add.delay(3, 4).id)
    Job.objects.filter(pk=late.id).update(expires_at=F("created_at"))
    Job.objects.filter(pk=stubborn.pk).update(cancel_requested_at=F("created_at") - timedelta(hours=1))
    Conductor().tick()
    assert fresh(lost).state == State.RETRYING
    assert fresh(late).state == State.CANCELLED
    assert fresh(stubborn).state == State.CANCELLED


@pytest.mark.django_db(transaction=True)
def test_a_chore_that_fails_does_not_keep_the_others_from_their_turn(
    sent: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = running(add.delay(1, 2).id, lease=-1)
    monkeypatch.setattr(release, "release", lambda: 1 / 0)
    monkeypatch.setattr(Conductor, "lead", lambda self: True)  # whatever the platform's conductor does
    conductor = Conductor()
    monkeypatch.setattr(conductor, "stopping", Stopping(after=3))
    conductor.run()
    # Not its state: the conductor of the module's platform, if that runs already, moves it on.
    assert fresh(lost).losses == 1


class Stopping:
    """An event that is set after so many looks at it, without waiting."""

    def __init__(self, after: int) -> None:
        self.left = after

    def wait(self, pause: float) -> bool:
        """Whether it is set now."""
        self.left -= 1
        return self.left < 0


# --- With real processes ------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_a_delay_is_released_on_time(platform: Platform, wait_until: WaitUntil) -> None:
    job = note.apply_async(("x",), countdown=0.5)
    wait_until(lambda: fresh(job).state == State.COMPLETED)
    waited = fresh(job).started_at - fresh(job).created_at
    assert timedelta(seconds=0.5) <= waited < timedelta(seconds=2)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("how", ["transient", "rate", "snooze", "exit", "memory"])
def test_what_was_put_back_runs_again(platform: Platform, wait_until: WaitUntil, how: str) -> None:
    job = misbehave.delay(how, until=2)
    wait_until(lambda: fresh(job).state == State.COMPLETED)
    assert fresh(job).attempt == 2
    assert platform.witness.lines == [f"start:{how}:1", f"start:{how}:2", f"end:{how}:2"]
