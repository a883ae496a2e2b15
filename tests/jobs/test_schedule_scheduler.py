"""The scheduler of beat: entries of the settings, and going on when something is wrong."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from celery.schedules import crontab
from django.db import OperationalError
from django_celery_beat.models import IntervalSchedule, PeriodicTask

from jobs import lifecycle
from jobs.models import Job, Schedule
from jobs.schedule import ledger
from jobs.schedule.scheduler import Scheduler
from project.celery import app

pytestmark = pytest.mark.django_db

Entries = Callable[..., None]
ADD = "tests.sample.tasks.add"


@pytest.fixture
def scheduler(monkeypatch: pytest.MonkeyPatch) -> Scheduler:
    """A scheduler that looks each time it is asked."""
    monkeypatch.setattr("jobs.schedule.scheduler.LOOK", 0.0)
    return Scheduler(app=app)


@pytest.fixture
def due(scheduler: Scheduler) -> PeriodicTask:
    """A schedule that is due now."""
    interval = IntervalSchedule.objects.create(every=10, period="seconds")
    task = PeriodicTask.objects.create(name="due", interval=interval, task=ADD, args="[1, 2]")
    moment = ledger.clock() - timedelta(seconds=12)
    Schedule.objects.filter(name="due").update(decided_until=moment, anchor=moment)
    return task


@pytest.fixture
def entries() -> Iterator[Callable[..., None]]:
    """Put entries into the settings."""
    before = app.conf.beat_schedule

    def put(**given: Any) -> None:
        app.conf.beat_schedule = given

    yield put
    app.conf.beat_schedule = before


def test_entries_of_the_settings_become_schedules(scheduler: Scheduler, entries: Entries) -> None:
    entry = {"task": ADD, "schedule": crontab(minute="30", hour="2"), "args": [1, 2], "options": {"queue": "mail"}}
    entries(nightly=entry)
    scheduler.tick()
    kept = PeriodicTask.objects.get(name="nightly")
    assert (kept.crontab.hour, kept.queue, kept.args) == ("2", "mail", "[1, 2]")


def test_an_entry_says_its_policy_and_its_expiry(scheduler: Scheduler, entries: Entries) -> None:
    entries(often={"task": ADD, "schedule": 60.0, "options": {"misfire": "skip", "expires": 30}})
    scheduler.tick()
    assert Schedule.objects.get(name="often").misfire == "skip"
    assert PeriodicTask.objects.get(name="often").expire_seconds == 30


def test_a_restart_does_not_begin_an_entry_anew(scheduler: Scheduler, entries: Entries) -> None:
    entries(often={"task": ADD, "schedule": 60.0})
    scheduler.tick()
    before = Schedule.objects.values().get(name="often")
    Scheduler(app=app).tick()
    assert Schedule.objects.values().get(name="often") == before


def test_an_entry_that_cannot_be_kept_does_not_keep_others_from_their_turn(
    scheduler: Scheduler, entries: Entries, due: PeriodicTask, sent: list[str]
) -> None:
    entries(wrong={"task": ADD, "schedule": 60.0, "options": {"misfire": "sometimes"}})
    scheduler.tick()
    assert Job.objects.filter(schedule="due").exists()


def test_a_tick_comes_back_when_the_next_fire_is_due(
    scheduler: Scheduler, due: PeriodicTask, sent: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.schedule.scheduler.LOOK", 60.0)
    assert 0 < scheduler.tick() <= 5.0
    assert Job.objects.count() == 1


def test_a_schedule_that_fails_does_not_keep_others_from_their_turn(
    scheduler: Scheduler, due: PeriodicTask, sent: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = PeriodicTask.objects.create(name="first", interval=due.interval, task=ADD, args="[1, 2]")
    Schedule.objects.filter(name="first").update(decided_until=lifecycle.database_now() - timedelta(seconds=60))
    decide = ledger.decide

    def broken(task_id: int) -> Any:
        if task_id == first.pk:
            raise ArithmeticError("a mistake of ours")
        return decide(task_id)

    monkeypatch.setattr(ledger, "decide", broken)
    scheduler.tick()
    assert Job.objects.get().schedule == "due"


def test_a_database_that_is_away_does_not_end_beat(
    scheduler: Scheduler, due: PeriodicTask, sent: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*given: Any) -> Any:
        raise OperationalError("the server is away")

    monkeypatch.setattr(scheduler, "_reconnect", lambda: None)
    with monkeypatch.context() as patched:
        patched.setattr(lifecycle, "database_now", away)
        assert scheduler.tick() == 1.0
    scheduler.tick()
    assert Job.objects.count() == 1


def test_the_rows_are_not_written_when_nothing_is_due(scheduler: Scheduler, django_assert_max_num_queries: Any) -> None:
    interval = IntervalSchedule.objects.create(every=3600, period="seconds")
    PeriodicTask.objects.create(name="later", interval=interval, task=ADD)
    scheduler.tick()
    scheduler.tick()
    with django_assert_max_num_queries(2) as asked:
        scheduler.tick()
    assert all(query["sql"].startswith("SELECT") for query in asked.captured_queries)
