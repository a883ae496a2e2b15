"""Cancelling meets everything else that may happen to a job, and what hangs on the job; each ends in one state."""

import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
from celery import chain, chord, group
from celery.exceptions import WorkerTerminate
from django.db import connection
from django.db.models import F

from dlq.models import DeadLetter
from jobs import conclusion, control, lifecycle, rescue
from jobs.conclusion import Report
from jobs.errors import MoveRefused, Refused
from jobs.failures import Failure, Kind
from jobs.models import Job
from jobs.states import State
from tests.environment import DATABASE
from tests.platform import Witness, attempt, drain, fresh, hurry, running
from tests.sample import tasks as sample
from tests.sample.tasks import Page, add, misbehave, note, remember_failure, total

pytestmark = pytest.mark.django_db


def cancel(job: Any) -> None:
    """Cancel as somebody does."""
    control.cancel(fresh(job).pk, reason="not wanted", by="ann")


# --- Between the look of a cancel and its act, the job moves --------------------------------------------

MEANWHILE: dict[str, Callable[[Any], Any]] = {
    "claimed": lambda job: running(job.id),
    "completed": lambda job: attempt(job.id),
    "claimed, and put back": lambda job: conclusion.conclude(running(job.id), Failure(Kind.TRANSIENT, "odd"), Report()),
    "rescued": lambda job: (running(job.id, lease=-1), rescue.rescue()),
    "cancelled": cancel,
}


@pytest.mark.parametrize("what", MEANWHILE)
def test_a_cancel_that_is_overtaken_looks_again(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    job = add.delay(1, 2)
    look, happened = control._existing, list[int]()

    def look_and_be_overtaken(job_id: Any) -> Job:
        found = look(job_id)
        if not happened:
            happened.append(1)
            MEANWHILE[what](job)
        return found

    monkeypatch.setattr(control, "_existing", look_and_be_overtaken)
    try:
        cancel(job)
    except Refused:
        assert what in {"completed", "cancelled"}
    monkeypatch.undo()
    rescue.force_cancel()
    hurry()
    drain()
    Job.objects.filter(state=State.RUNNING).update(cancel_requested_at=F("created_at") - timedelta(hours=1))
    rescue.force_cancel()
    assert fresh(job).state == (State.COMPLETED if what == "completed" else State.CANCELLED)


@pytest.mark.parametrize("how", ["transient", "rate", "snooze", "exit", "permanent"])
def test_a_job_that_is_cancelled_as_its_body_fails_is_cancelled_and_not_run_again(
    monkeypatch: pytest.MonkeyPatch, witness: Witness, how: str
) -> None:
    job = misbehave.delay(how)
    act = sample._MENU[how]
    monkeypatch.setitem(sample._MENU, how, lambda: (cancel(job), act()))
    attempt(job.id)
    rescue.force_cancel()
    hurry()
    drain()
    # A failure for good was decided by the body itself, and keeps its dead letter.
    assert fresh(job).state == (State.FAILED if how == "permanent" else State.CANCELLED)
    assert witness.lines == [f"start:{how}:1"]


def test_a_job_that_is_cancelled_as_its_worker_hands_it_back_does_not_run_again(
    monkeypatch: pytest.MonkeyPatch, witness: Witness
) -> None:
    job = misbehave.delay("transient")

    def end_the_worker() -> None:
        cancel(job)
        raise WorkerTerminate

    monkeypatch.setitem(sample._MENU, "transient", end_the_worker)
    with suppress(WorkerTerminate):
        attempt(job.id)
    lifecycle.reserve_due(10)
    drain()
    rescue.force_cancel()
    assert (fresh(job).state, witness.lines) == (State.CANCELLED, ["start:transient:1"])


def test_what_would_replace_a_cancelled_job_does_not_start(monkeypatch: pytest.MonkeyPatch, witness: Witness) -> None:
    job = Page.delay(7)
    run = Page.run
    monkeypatch.setattr(Page, "run", lambda self, *args: (cancel(job), run(self, *args))[1])
    attempt(job.id)
    drain()
    assert (fresh(job).state, fresh(job).reason) == (State.CANCELLED, "not wanted")
    assert witness.lines == ["page:7:1"]


@pytest.mark.django_db(transaction=True)
@pytest.mark.skipif(DATABASE == "sqlite", reason="SQLite has one writer at a time")
@pytest.mark.parametrize("rival", ["claim", "complete", "put back", "rescue"])
def test_of_a_cancel_and_a_rival_at_the_same_moment_one_outcome_is_left(
    sent: list[str], witness: Witness, rival: str
) -> None:
    for _ in range(15):
        job = note.delay("x")
        held = None if rival == "claim" else running(job.id, lease=-1 if rival == "rescue" else 20)
        acts: dict[str, Callable[[], Any]] = {
            "claim": lambda job=job: attempt(job.id),
            "complete": lambda held=held: lifecycle.complete(held, None),
            "put back": lambda held=held: conclusion.conclude(held, Failure(Kind.TRANSIENT, "odd"), Report()),
            "rescue": rescue.rescue,
        }
        refused = together(lambda job=job: cancel(job), acts[rival])
        Job.objects.filter(state=State.RUNNING).update(cancel_requested_at=F("created_at") - timedelta(hours=1))
        rescue.force_cancel()
        state = fresh(job).state
        assert state in {State.COMPLETED, State.CANCELLED}
        assert state == State.CANCELLED or Refused in refused or held is not None or witness.lines


def together(*acts: Callable[[], Any]) -> list[type[BaseException]]:
    """Do acts at the same moment, each on a connection of its own; return what they raised."""
    start, raised = threading.Barrier(len(acts)), list[type[BaseException]]()

    def do(act: Callable[[], Any]) -> None:
        start.wait(10)
        try:
            act()
        except (Refused, MoveRefused) as error:
            raised.append(type(error))
        finally:
            connection.close()

    threads = [threading.Thread(target=do, args=(act,)) for act in acts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return raised


# --- What hangs on a cancelled job -----------------------------------------------------------------------


def test_what_follows_a_cancelled_job_in_a_chain_never_comes(witness: Witness) -> None:
    end = chain(add.s(1, 1), add.s(1)).apply_async()
    cancel(end.parent)
    drain()
    assert fresh(end.parent).state == State.CANCELLED
    assert Job.objects.count() == 1


def test_an_error_link_of_a_cancelled_job_is_called(witness: Witness) -> None:
    job = note.apply_async(("x",), link_error=remember_failure.s())
    cancel(job)
    drain()
    assert witness.lines == [f"errback:{job.id}"]


def test_the_body_of_a_chord_whose_member_was_cancelled_is_a_dead_letter() -> None:
    body = chord([add.s(1, 1), add.s(2, 2)], total.s()).apply_async()
    cancel(Job.objects.filter(task=add.name).earliest("created_at"))
    drain()
    assert (fresh(body).state, fresh(body).reason) == (State.FAILED, "a member of its chord did not complete")
    assert DeadLetter.objects.get().job_id == fresh(body).pk


def test_a_cancelled_chord_body_does_not_run_and_its_members_do() -> None:
    body = chord([add.s(1, 1), add.s(2, 2)], total.s()).apply_async()
    cancel(body)
    drain()
    assert fresh(body).state == State.CANCELLED
    assert Job.objects.filter(task=add.name, state=State.COMPLETED).count() == 2


def test_the_other_members_of_a_group_go_on() -> None:
    result = group(add.s(1, 1), add.s(2, 2), add.s(3, 3)).apply_async()
    cancel(result.children[1])
    drain()
    assert [fresh(child).state for child in result.children] == [
        State.COMPLETED, State.CANCELLED, State.COMPLETED,
    ]  # fmt: skip
