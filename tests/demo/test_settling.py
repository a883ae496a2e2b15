"""Settling: schedules stop once they have fired, and nothing is over while anything may still happen."""

import pytest
from django.utils import timezone
from django_celery_beat.models import IntervalSchedule, PeriodicTask

from jobs.models import Job
from jobs.states import FINAL, State
from project.demo import settling
from project.demo.expected import NIGHTLY, Ends
from project.demo.settling import LAST_FIRE, REPORTS_PATIENCE, Settlement

pytestmark = pytest.mark.django_db


class Clock:
    """A clock that stands still until it is told otherwise."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def settlement(clock):
    return Settlement(clock)


@pytest.fixture
def schedule():
    interval = IntervalSchedule.objects.create(every=5, period=IntervalSchedule.SECONDS)
    return PeriodicTask.objects.create(name="Nightly report", task=NIGHTLY, interval=interval)


def job(task=NIGHTLY, state=State.COMPLETED):
    now = timezone.now()
    finished = now if state in FINAL else None
    return Job.objects.create(
        task=task,
        payload="{}",
        queue="reports",
        max_attempts=5,
        state=state,
        created_at=now,
        finished_at=finished,
    )


def test_schedules_go_on_until_they_were_seen_to_fire(settlement, schedule):
    settlement.stop_schedules()
    schedule.refresh_from_db()
    assert schedule.enabled


def test_schedules_stop_once_they_have_fired_twice(settlement, schedule):
    job()
    job()
    settlement.stop_schedules()
    schedule.refresh_from_db()
    assert not schedule.enabled


def test_schedules_that_never_fire_are_stopped_when_patience_ends(settlement, schedule, clock):
    clock.now += REPORTS_PATIENCE
    assert settlement.stop_schedules()


def test_it_is_not_quiet_while_a_beat_may_fire_once_more(settlement, clock):
    clock.now += REPORTS_PATIENCE
    settlement.stop_schedules()
    clock.now += LAST_FIRE / 2
    assert not settlement.quiet()


def test_nothing_has_settled_while_a_job_waits(settlement, clock):
    settlement.chores, settlement.stopped = [], 0.0
    clock.now += LAST_FIRE * 2
    job(state=State.PENDING)
    assert not settlement.advance()


def test_all_has_settled_when_chores_schedules_and_jobs_are_done(settlement, clock):
    settlement.chores, settlement.stopped = [], 0.0
    clock.now += LAST_FIRE * 2
    job()
    assert settlement.advance()


def test_the_ends_of_jobs_are_counted_by_task():
    job("shop.charge"), job("shop.charge", State.FAILED), job("shop.charge"), job("shop.ship")
    assert settling.ends() == {"shop.charge": Ends(completed=2, failed=1), "shop.ship": Ends(completed=1)}


def test_a_straggler_is_named_with_its_state():
    waiting = job("shop.charge", State.PENDING)
    assert settling.stragglers() == [f"shop.charge {waiting.pk} is pending (no reason), attempt 0"]
