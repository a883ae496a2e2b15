"""Letting finished jobs go: by age, never one with an open letter."""

import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from celery import chain, chord
from django.contrib.auth.models import Group
from django.db import connection, transaction
from django.db.models import F
from django.test import override_settings
from django.test.utils import CaptureQueriesContext

from dlq import replay
from dlq.models import DeadLetter
from jobs import control, lifecycle, retention
from jobs.errors import Refused
from jobs.models import Attempt, FanIn, Job
from jobs.states import FINAL, State
from tests.jobs.admin import rows
from tests.platform import attempt, drain, fresh, hurry
from tests.sample.models import Audit, Campaign, Purchase, Receipt, Remark
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


def test_members_of_a_chord_are_kept_while_a_replay_can_still_bring_the_end_of_a_chain_among_them() -> None:
    body = chord([chain(fail_unless.s("open", 5), add.s(1)), add.s(1, 1)], total.s()).apply_async()
    drain()
    age(2)
    assert retention.prune(DAY, states=FINAL) == 0
    Group.objects.create(name="open")
    replay.replay(DeadLetter.objects.get(task=fail_unless.name).pk, by="ann")
    drain()
    assert Job.objects.get(replay_of_id=body.id).result == "8"


@pytest.mark.parametrize("others", [[], [(1, 1)]], ids=["alone", "with another member"])
def test_a_chord_that_nothing_can_complete_goes(others: list[tuple[int, int]]) -> None:
    chord([chain(add.s(1, 1), add.s(1)), *(add.s(*other) for other in others)], total.s()).apply_async()
    control.cancel(Job.objects.exclude(canvas="").get(task=add.name).pk, reason="", by="ann")
    drain()
    age(2)
    replay.discard(DeadLetter.objects.get(task=total.name).pk, by="ann", reason="not wanted")
    assert retention.prune(DAY, states=FINAL) == 2 + len(others)
    assert not FanIn.objects.exists()


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


# --- Slices


def test_a_pass_looks_at_no_job_twice_also_where_letters_keep_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "SLICE", 2)
    for _ in range(5):
        finished(boom.delay(), days=1)
    kept = set(Job.objects.values_list("pk", flat=True))
    for _ in range(3):
        finished(boom.delay(), days=2)
    for letter in DeadLetter.objects.exclude(job__in=kept):
        replay.resolve(letter.pk, by="ann", reason="done")
    Job.objects.filter(pk__in=kept).update(finished_at=F("finished_at") - timedelta(days=9))
    seen: list[Any] = []
    real = retention.Pass.free

    def noted(walk: retention.Pass, jobs: Any) -> Any:
        seen.extend(job_id for job_id, _, _ in jobs)
        return real(walk, jobs)

    monkeypatch.setattr(retention.Pass, "free", noted)
    assert retention.prune(DAY, states=[State.FAILED]) == 3
    assert len(seen) == len(set(seen)) == 8
    assert set(Job.objects.values_list("pk", flat=True)) == kept


def test_jobs_that_ended_at_the_same_moment_are_all_pruned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "SLICE", 2)
    for n in range(5):
        finished(add.delay(1, n))
    Job.objects.update(finished_at=lifecycle.database_now() - 2 * DAY)
    assert retention.prune(DAY) == 5


def test_a_dry_run_counts_what_would_go_and_stops_where_it_is_told() -> None:
    finished(boom.delay())
    for n in range(3):
        finished(add.delay(1, n))
    assert retention.prunable(DAY, states=FINAL) == 3
    assert retention.prunable(DAY, most=2) == 2


@pytest.mark.django_db(transaction=True)
def test_a_job_that_somebody_has_locked_is_left_and_the_others_go() -> None:
    if connection.vendor != "postgresql":
        pytest.skip("SQLite has no locks of rows")
    long_ago = lifecycle.database_now() - 2 * DAY
    jobs = [rows.job("completed", created_at=long_ago, finished_at=long_ago) for _ in range(3)]
    locked, done = threading.Event(), threading.Event()

    def hold() -> None:
        with transaction.atomic():
            Job.objects.select_for_update().get(pk=jobs[1].pk)
            locked.set()
            done.wait(20)
        connection.close()

    holder = threading.Thread(target=hold)
    holder.start()
    try:
        assert locked.wait(20)
        assert retention.prune(DAY) == 2
    finally:
        done.set()
        holder.join(20)
    assert list(Job.objects.values_list("pk", flat=True)) == [jobs[1].pk]


# --- What the database keeps


def old(count: int) -> list[Job]:
    """Completed jobs of two days ago."""
    long_ago = lifecycle.database_now() - 2 * DAY
    return [rows.job("completed", created_at=long_ago, finished_at=long_ago) for _ in range(count)]


@pytest.fixture
def strange_table() -> Iterator[Callable[[Job], None]]:
    """A table that Django does not know, with a foreign key to jobs; add a row to it."""
    uuid = "uuid" if connection.vendor == "postgresql" else "char(32)"

    def refer(job: Job) -> None:
        with connection.cursor() as cursor:
            value = job.pk if connection.vendor == "postgresql" else job.pk.hex
            cursor.execute("INSERT INTO strange VALUES (%s)", [value])

    with connection.cursor() as cursor:
        cursor.execute(f"CREATE TABLE strange (job {uuid} REFERENCES jobs_job (id))")
    yield refer
    with connection.cursor() as cursor:
        cursor.execute("DROP TABLE strange")


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("slices", [2, 500])
def test_a_job_that_a_row_refers_to_which_does_nothing_stays_and_the_others_go(
    slices: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(retention, "SLICE", slices)
    jobs = old(9)
    for kept in (jobs[2], jobs[3], jobs[7]):
        Receipt.objects.create(job=kept)
    try:
        assert retention.prune(DAY) == 6
        assert set(Job.objects.values_list("pk", flat=True)) == {jobs[2].pk, jobs[3].pk, jobs[7].pk}
        assert "3 completed jobs are kept although they are old enough" in caplog.text
    finally:
        Receipt.objects.all().delete()


@pytest.mark.django_db(transaction=True)
def test_a_job_that_a_table_refers_to_which_django_does_not_know_stays_and_the_others_go(
    strange_table: Callable[[Job], None], caplog: pytest.LogCaptureFixture
) -> None:
    jobs = old(40)
    for kept in (jobs[0], jobs[17], jobs[18], jobs[39]):
        strange_table(kept)
    assert retention.prune(DAY) == 36
    assert set(Job.objects.values_list("pk", flat=True)) == {jobs[n].pk for n in (0, 17, 18, 39)}
    assert "4 completed jobs are kept" in caplog.text


def test_a_job_that_is_refused_in_a_transaction_of_somebody_leaves_that_as_it_was() -> None:
    if connection.vendor != "postgresql":
        pytest.skip("SQLite looks at foreign keys when a transaction commits, and not before")
    jobs = old(3)
    Receipt.objects.create(job=jobs[1])
    assert retention.prune(DAY) == 2
    assert Job.objects.get() == jobs[1]


@pytest.mark.django_db(transaction=True)
@override_settings(JOBS={"KEEP_COMPLETED": 24 * 3600})
def test_the_conductor_says_once_what_the_database_keeps(caplog: pytest.LogCaptureFixture) -> None:
    Receipt.objects.create(job=old(2)[0])
    keeper = retention.Retention()
    try:
        assert keeper.tick() == 1
        keeper.resting_until = 0.0
        assert keeper.tick() == 0
        assert caplog.text.count("1 completed jobs are kept") == 1
    finally:
        Receipt.objects.all().delete()


# --- By itself


def test_nothing_is_pruned_by_itself_unless_the_settings_say_so() -> None:
    finished(add.delay(1, 2), days=999)
    assert retention.Retention().tick() == 0
    assert Job.objects.count() == 1


@override_settings(JOBS={"KEEP_COMPLETED": 24 * 3600})
def test_jobs_that_are_older_than_the_settings_keep_them_go_by_themselves() -> None:
    finished(add.delay(1, 2), days=2)
    failed = finished(boom.delay(), days=2)
    young = add.delay(3, 4)
    attempt(young.id)
    assert retention.Retention().tick() == 1
    assert set(Job.objects.values_list("pk", flat=True)) == {failed.pk, fresh(young).pk}


@override_settings(JOBS={"KEEP_COMPLETED": 24 * 3600})
def test_a_turn_ends_in_time_and_the_next_one_goes_on_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "SLICE", 2)
    for n in range(5):
        finished(add.delay(1, n), days=2)
    keeper = retention.Retention()
    monkeypatch.setattr(retention, "A_TURN", 1e-9)
    turns = [keeper.tick() for _ in range(4)]
    assert max(turns) == 2
    assert sum(turns) == 5


@override_settings(JOBS={"KEEP_COMPLETED": 24 * 3600})
def test_after_a_pass_the_next_one_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    keeper = retention.Retention()
    finished(add.delay(1, 2), days=2)
    assert keeper.tick() == 1
    finished(add.delay(1, 2), days=2)
    assert keeper.tick() == 0
    monkeypatch.setattr(keeper, "resting_until", 0.0)
    assert keeper.tick() == 1


def test_a_walk_looks_at_no_job_twice_also_at_a_whole_second() -> None:
    for _ in range(3):
        finished(add.delay(1, 2))
    with connection.cursor() as cursor:  # as the database's clock writes it
        cursor.execute("UPDATE jobs_job SET finished_at = '2020-01-01 00:00:00.000000'")
    walk = retention.Pass(State.COMPLETED, lifecycle.database_now())
    seen = [job_id for _ in range(3) for job_id, *_ in walk.ahead(1)]
    assert len(set(seen)) == 3
    assert walk.ahead(1) == []
