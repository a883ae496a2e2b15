"""Schedules with the broker away: what fires is recorded, and runs when the broker is back."""

import pytest
from django_celery_beat.models import IntervalSchedule, PeriodicTask

from jobs.models import Job
from tests.conftest import Spawn, WaitUntil

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.slow, pytest.mark.one_database]


@pytest.fixture
def every_second() -> PeriodicTask:
    """A schedule that fires each second."""
    interval, _ = IntervalSchedule.objects.get_or_create(every=1, period="seconds")
    return PeriodicTask.objects.create(
        name="each second", interval=interval, task="tests.sample.tasks.add", args="[1, 2]"
    )


def test_a_beat_that_starts_while_the_broker_is_down_fires_all_the_same(
    every_second: PeriodicTask, beat: Spawn, wait_until: WaitUntil
) -> None:
    beat(env={"BROKER_URL": "redis://127.0.0.1:9/0"})
    wait_until(lambda: Job.objects.filter(state="pending").count() >= 2, timeout=30)


def test_a_job_that_a_schedule_fired_says_which_one(
    every_second: PeriodicTask, beat: Spawn, wait_until: WaitUntil
) -> None:
    beat()
    fired = wait_until(lambda: Job.objects.first(), timeout=30)
    assert fired.schedule == "each second"
