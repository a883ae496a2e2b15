"""Letting finished jobs go: by age, never one with an open letter."""

from datetime import timedelta
from typing import Any

import pytest
from celery import chord
from django.contrib.auth.models import Group
from django.db import connection
from django.db.models import F
from django.test.utils import CaptureQueriesContext

from dlq import replay
from dlq.models import DeadLetter
from jobs import retention
from jobs.errors import Refused
from jobs.models import Attempt, FanIn, Job
from jobs.states import FINAL, State
from tests.platform import attempt, drain, fresh, hurry
from tests.sample.models import Audit, Campaign, Purchase, Remark
from tests.sample.tasks import add, boom, fail_unless, misbehave, total

pytestmark = pytest.mark.django_db

DAY = timedelta(days=1)


def finished(job: Any, days: float = 2) -> Job:
    """A job after its attempt, which ended some days ago."""
    attempt(job.id)
    age(days)
    return fresh(job)


def age(days: float) -> None:
    """Make everything that has finished so old."""
    Job.objects.filter(finished_at__isnull=False).update(finished_at=F("finished_at") - timedelta(days=days))


def test_old_finished_jobs_are_pruned_and_young_ones_kept() -> None:
    finished(add.delay(1, 2))
    young = add.delay(3, 4)
    attempt(young.id)
    assert retention.prune(DAY) == 1
    assert [str(pk) for pk in Job.objects.values_list("pk", flat=True)] == [young.id]


def test_jobs_that_have_not_finished_are_never_pruned() -> None:
    add.delay(1, 2)
    Job.objects.update(created_at=F("created_at") - timedelta(days=99), due_at=None)
    assert retention.prune(DAY) == 0


def test_failed_jobs_are_pruned_only_when_asked_for() -> None:
    finished(boom.delay())
    letter = DeadLetter.objects.get()
    replay.resolve(letter.pk, by="ann", reason="done by hand")
    assert retention.prune(DAY) == 0
    assert retention.prune(DAY, states=[State.FAILED]) == 1
    assert not DeadLetter.objects.exists()


def test_a_job_with_an_open_letter_is_never_pruned() -> None:
    finished(boom.delay())
    assert retention.prune(DAY, states=FINAL) == 0
    assert DeadLetter.objects.count() == 1


def test_the_attempts_go_with_their_job() -> None:
    job = misbehave.delay("transient", until=2)
    attempt(job.id)
    hurry()
    drain()
    age(2)
    assert retention.prune(DAY) == 1
    assert Attempt.objects.count() == 0


def test_a_row_that_outlives_its_job_is_kept_without_it() -> None:
    purchase = Purchase.objects.create(job=finished(add.delay(1, 2)))
    assert retention.prune(DAY) == 1
    purchase.refresh_from_db()
    assert purchase.job is None


def test_a_row_that_leaves_with_its_job_leaves() -> None:
    Remark.objects.create(job=finished(add.delay(1, 2)))
    assert retention.prune(DAY) == 1
    assert not Remark.objects.exists()


def test_a_row_with_many_jobs_loses_one() -> None:
    campaign = Campaign.objects.create()
    campaign.jobs.set([finished(add.delay(1, 2)), fresh(add.delay(3, 4))])
    assert retention.prune(DAY) == 1
    assert campaign.jobs.count() == 1


def test_a_job_that_a_row_protects_is_kept() -> None:
    audited = finished(add.delay(1, 2))
    Audit.objects.create(job=audited)
    finished(add.delay(3, 4))
    assert retention.prune(DAY) == 1
    assert Job.objects.get() == audited


def test_a_row_that_could_protect_a_job_and_has_none_keeps_none() -> None:
    Audit.objects.create(job=None)
    finished(add.delay(1, 2))
    assert retention.prune(DAY) == 1


def test_pruning_reads_no_payloads() -> None:
    finished(add.delay(1, 2))
    with CaptureQueriesContext(connection) as asked:
        retention.prune(DAY)
    assert not [query["sql"] for query in asked if "traceback" in query["sql"]]


def test_members_of_a_chord_that_has_not_ended_are_kept() -> None:
    body = chord([add.s(1, 1), add.s(2, 2)], total.s()).apply_async()
    attempt(Job.objects.filter(task=add.name).first().pk)
    age(2)
    assert retention.prune(DAY) == 0
    drain()
    assert fresh(body).result == "6"


def test_members_of_a_failed_chord_are_kept_while_a_replay_can_still_complete_it() -> None:
    body = chord([add.s(1, 1), fail_unless.s("open", 5)], total.s()).apply_async()
    drain()
    age(2)
    assert retention.prune(DAY, states=FINAL) == 0
    Group.objects.create(name="open")
    replay.replay(DeadLetter.objects.get(task=fail_unless.name).pk, by="ann")
    drain()
    assert Job.objects.get(replay_of_id=body.id).result == "7"


def test_members_of_a_failed_chord_go_when_its_letters_are_closed() -> None:
    chord([add.s(1, 1), fail_unless.s("open", 5)], total.s()).apply_async()
    drain()
    age(2)
    for letter in DeadLetter.objects.all():
        replay.discard(letter.pk, by="ann", reason="not wanted")
    assert retention.prune(DAY, states=FINAL) == 3


def test_no_more_than_the_limit_is_pruned() -> None:
    for n in range(3):
        finished(add.delay(1, n))
    assert retention.prune(DAY, limit=2) == 2


def test_pruning_goes_in_slices_and_tells_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "SLICE", 2)
    for n in range(5):
        finished(add.delay(1, n))
    told: list[int] = []
    assert retention.prune(DAY, progress=told.append) == 5
    assert told == [2, 4, 5]


@pytest.mark.parametrize("older_than", [None, timedelta(0), timedelta(days=-1), 30])
def test_a_prune_without_an_age_is_refused(older_than: Any) -> None:
    with pytest.raises(Refused, match="Prune needs an age"):
        retention.prune(older_than)


@pytest.mark.parametrize("states", [[], [State.RUNNING], [State.COMPLETED, State.PENDING]])
def test_a_prune_of_jobs_that_are_not_final_is_refused(states: list[State]) -> None:
    with pytest.raises(Refused, match="Only finished jobs can be pruned"):
        retention.prune(DAY, states=states)


def test_the_count_of_a_chord_goes_with_its_last_member() -> None:
    chord([add.s(1, 1), add.s(2, 2)], total.s()).apply_async()
    drain()
    age(2)
    assert retention.prune(DAY) == 3
    assert not FanIn.objects.exists()
