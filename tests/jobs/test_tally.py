"""Counting the finished once, as they pass, and many unfinished ones now and then."""

import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.db import close_old_connections, connection, connections, transaction
from django.db.models import F, Sum
from django.test.utils import CaptureQueriesContext

from jobs import lifecycle, retention, stats, tally
from jobs.models import Census, Job, Tally
from tests.jobs.admin import rows

pytestmark = pytest.mark.django_db

OLD = timedelta(hours=1)


def history(count: int, state: str = "completed", ago: timedelta = OLD, **columns: Any) -> None:
    """Jobs that finished so long ago."""
    at = lifecycle.database_now() - ago
    for _ in range(count):
        rows.job(state, created_at=at, finished_at=at, **columns)


def tallied(span: str = "ever", **filters: Any) -> int:
    """How many jobs the tallies of a span have."""
    return Tally.objects.filter(span=span, **filters).aggregate(n=Sum("ended"))["n"] or 0


def test_what_finished_is_counted_by_task_queue_and_state() -> None:
    history(3, task="shop.a", queue="mail")
    history(2, "cancelled", task="shop.a")
    tally.fold()
    assert tallied(task="shop.a", queue="mail", state="completed") == 3
    assert tallied(task="shop.a", state="cancelled") == 2


def test_a_job_is_counted_once_however_often_it_is_tried() -> None:
    history(3)
    for _ in range(3):
        tally.fold()
    assert tallied() == tallied("minute") == 3


def test_what_finished_just_now_is_left_for_later_as_others_may_still_commit() -> None:
    history(1, ago=timedelta(seconds=5))
    tally.fold()
    assert tallied() == 0
    assert stats.statistics()["per_state"]["completed"] == 1


def test_a_count_that_is_broken_off_loses_and_doubles_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    history(3)

    counted: list[str] = []
    real = tally._add_ended

    def dies(span: str, *_: Any) -> None:
        counted.append(span)
        if len(counted) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tally, "_add_ended", lambda *given: (real(*given), dies(*given)))
        with pytest.raises(KeyboardInterrupt):
            tally.fold()
    assert counted == ["minute", "ever"]
    assert tallied() == 0
    tally.fold()
    assert tallied() == 3


def test_a_long_history_is_counted_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "STEP", 2)
    for n in range(7):
        history(1, ago=OLD + timedelta(minutes=n))
    history(3, ago=OLD + timedelta(days=9))
    assert tally.fold() > 3
    assert tallied() == 10


def test_jobs_that_finished_at_the_same_moment_are_counted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "STEP", 2)
    at = lifecycle.database_now() - OLD
    for _ in range(7):
        rows.job("completed", created_at=at, finished_at=at)
    tally.fold()
    assert tallied() == 7


def test_old_history_is_counted_by_the_hour_and_the_day() -> None:
    history(2, ago=timedelta(days=3))
    history(1, ago=timedelta(days=200))
    history(4)
    tally.fold()
    assert (tallied("day"), tallied("hour"), tallied("minute")) == (1, 2, 4)


def test_minutes_become_hours_and_hours_days() -> None:
    history(2)
    tally.fold()
    Tally.objects.filter(span="minute").update(begins=F("begins") - timedelta(days=4))
    tally.coarsen()
    assert (tallied("hour"), tallied("minute")) == (2, 0)
    Tally.objects.filter(span="hour").update(begins=F("begins") - timedelta(days=99))
    tally.coarsen()
    assert (tallied("day"), tallied("hour"), tallied()) == (2, 0, 2)


def test_a_pruned_job_has_ended_all_the_same() -> None:
    history(3, ago=timedelta(days=2))
    history(2)
    assert retention.prune(timedelta(days=1)) == 3
    numbers = stats.statistics()
    assert numbers["ended"]["completed"] == 5
    assert (numbers["per_state"]["completed"], numbers["total"]) == (2, 2)


def test_what_is_pruned_before_it_is_counted_is_counted_then() -> None:
    history(3, ago=timedelta(seconds=10))
    assert retention.prune(timedelta(seconds=1)) == 3
    assert (tallied(), tallied("minute")) == (3, 3)
    tally.fold()
    assert stats.statistics()["ended"]["completed"] == 3
    assert stats.statistics()["total"] == 0


def test_what_went_without_being_noted_is_gone_after_a_recount() -> None:
    history(5)
    history(2, "cancelled")
    history(1, ago=timedelta(seconds=5))
    tally.fold()
    retention.prune(timedelta(minutes=30), ["cancelled"])
    Job.objects.filter(pk__in=list(Job.objects.order_by("finished_at").values_list("pk", flat=True)[:2])).delete()
    assert stats.statistics()["per_state"]["completed"] == 6
    assert tally.recount() == 3
    numbers = stats.statistics()
    assert (numbers["per_state"]["completed"], numbers["per_state"]["cancelled"]) == (4, 0)
    assert (numbers["ended"]["completed"], numbers["ended"]["cancelled"]) == (6, 2)


def test_a_recount_before_anything_was_counted_changes_nothing() -> None:
    history(2)
    history(1, ago=timedelta(seconds=10))
    retention.prune(timedelta(minutes=30))
    assert tally.recount() == 0
    tally.fold()
    assert (stats.statistics()["per_state"]["completed"], stats.statistics()["ended"]["completed"]) == (1, 3)


def test_a_clock_that_is_set_back_makes_no_job_uncounted_or_counted_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    real = lifecycle.database_now

    def at(**ahead: float) -> None:
        monkeypatch.setattr(lifecycle, "database_now", lambda: real() + timedelta(**ahead))

    monkeypatch.setattr(tally, "_settled", lambda: lifecycle.database_now() - tally.LATE)
    at(hours=24)
    history(2, ago=timedelta(minutes=2))
    tally.fold()
    at(hours=1)  # the clock was wrong for a day
    tally.fold()
    at(hours=2)
    history(3, ago=timedelta(minutes=2))
    tally.fold()
    assert tallied() == tallied("minute") == 3
    assert stats.statistics()["per_state"]["completed"] == 5
    at(hours=25)
    tally.fold()
    assert tallied() == tallied("minute") == 5


def test_few_unfinished_are_counted_exactly() -> None:
    rows.job("pending", queue="mail", priority=10)
    rows.job("running")
    assert sum(n for *_, n in tally.unfinished().counts) == 2
    assert tally.unfinished().as_of is None


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> None:
    """More unfinished jobs than are counted at each look."""
    monkeypatch.setattr(tally, "FEW", 2)
    for _ in range(5):
        rows.job("pending")


def test_many_unfinished_are_those_of_the_conductor_s_last_count(many: None) -> None:
    tally.count_unfinished()
    Job.objects.filter(state="pending").first().delete()
    numbers = stats.statistics()
    assert numbers["unfinished"] == 5
    assert numbers["as_of"] <= lifecycle.database_now()


def test_a_count_that_nobody_renewed_is_not_believed(many: None) -> None:
    tally.count_unfinished()
    Census.objects.update(until=F("until") - timedelta(minutes=5))
    Job.objects.filter(state="pending").first().delete()
    assert stats.statistics()["unfinished"] == 4


def test_a_number_at_which_counting_stopped_says_so(many: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "MOST", 3)
    numbers = stats.statistics()
    assert (numbers["unfinished"], numbers["at_least"]) == (3, True)


def test_the_conductor_counts_no_more_than_it_has_time_for(many: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "MANY", 4)
    tally.count_unfinished()
    numbers = stats.statistics()
    assert (numbers["unfinished"], numbers["at_least"]) == (4, True)


def test_a_backlog_that_is_gone_leaves_no_count(many: None) -> None:
    tally.count_unfinished()
    Job.objects.filter(state="pending").delete()
    Census.objects.update(until=F("until") - timedelta(minutes=1))
    tally.count_unfinished()
    assert not Census.objects.filter(name="unfinished").exists()


def test_the_numbers_take_as_many_queries_with_any_history() -> None:
    counts = []
    for _ in range(2):
        history(20)
        with CaptureQueriesContext(connection) as queries:
            stats.statistics()
        counts.append(len(queries))
    assert counts[0] == counts[1]


# --- Side by side


@pytest.fixture
def beside() -> Iterator[Any]:
    """Run something in threads with connections of their own, and wait for all of them."""
    running: list[threading.Thread] = []

    def start(act: Any) -> threading.Thread:
        def run() -> None:
            try:
                act()
            finally:
                connections.close_all()

        running.append(threading.Thread(target=run))
        running[-1].start()
        return running[-1]

    yield start
    for thread in running:
        thread.join(30)
    close_old_connections()


@pytest.mark.django_db(transaction=True)
def test_several_conductors_count_each_job_once(beside: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "STEP", 3)
    for n in range(40):
        history(1, ago=OLD + timedelta(minutes=n))
    threads = [beside(tally.fold) for _ in range(3)]
    for thread in threads:
        thread.join(30)
    tally.fold()
    assert tallied() == tallied("minute") == 40


@pytest.mark.django_db(transaction=True)
def test_the_conductor_does_not_wait_for_a_recount(beside: Any) -> None:
    if connection.vendor != "postgresql":
        pytest.skip("SQLite has one writer, who is waited for")
    tally.fold()
    history(3)
    held, folded = threading.Event(), threading.Event()

    def counts_for_long() -> None:
        with transaction.atomic():
            tally.recount()
            held.set()
            folded.wait(20)

    slow = beside(counts_for_long)
    assert held.wait(20)
    with connection.cursor() as cursor:
        cursor.execute("SET lock_timeout = '1s'")
    assert tally.tick() == 0
    folded.set()
    slow.join(20)
    assert tally.tick() > 0


@pytest.mark.django_db(transaction=True)
def test_a_job_whose_transaction_is_still_open_is_counted_when_it_has_committed(
    beside: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if connection.vendor != "postgresql":
        pytest.skip("SQLite has one writer: nobody counts while it writes")
    monkeypatch.setattr(tally, "LATE", timedelta(0))
    finished, counted = threading.Event(), threading.Event()
    job = rows.job("running")

    def finishes_late() -> None:
        with transaction.atomic():
            lifecycle.complete(Job.objects.get(pk=job.pk), None)
            finished.set()
            counted.wait(20)

    history(1)
    late = beside(finishes_late)
    assert finished.wait(20)
    tally.fold()
    counted.set()
    late.join(20)
    tally.fold()
    assert tallied() == 2


@pytest.mark.django_db(transaction=True)
def test_no_number_is_lost_or_doubled_while_jobs_finish_and_are_counted(
    beside: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tally, "LATE", timedelta(milliseconds=20))
    jobs = [rows.job("running") for _ in range(60)]
    done = threading.Event()

    def finish_them() -> None:
        for job in jobs:
            lifecycle.complete(Job.objects.get(pk=job.pk), None)
        done.set()

    beside(finish_them)
    while not done.is_set():
        tally.fold()
    monkeypatch.setattr(tally, "LATE", timedelta(0))
    tally.fold()
    assert tallied() == 60
