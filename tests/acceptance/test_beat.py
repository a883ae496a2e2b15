"""Real beats: several at once, killed at each of their statements, with the broker or the database away."""

import json
import os
import signal
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from django.db import connection
from django_celery_beat.models import ClockedSchedule, CrontabSchedule, IntervalSchedule, PeriodicTask

from jobs import lifecycle
from jobs.models import Job, Leader, Schedule, Tick
from project.servers import RedisServer
from tests import environment
from tests.acceptance.dying_beat import POINTS
from tests.children import Child, python
from tests.conftest import Spawn, WaitUntil
from tests.platform import QUICK

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.slow]

ADD = "tests.sample.tasks.add"
FAKETIME = [str(path) for path in Path("/usr/lib").glob("*/faketime/libfaketime.so.1")]
QUICKLY = {"TEST_JOBS": json.dumps(QUICK)}


@pytest.fixture
def every_second() -> PeriodicTask:
    """A schedule that fires each second."""
    interval, _ = IntervalSchedule.objects.get_or_create(every=1, period="seconds")
    return PeriodicTask.objects.create(name="each second", interval=interval, task=ADD, args="[1, 2]")


@pytest.fixture
def hours_overdue() -> PeriodicTask:
    """A daily schedule that last ran yesterday, and was due again three hours ago."""
    now = lifecycle.database_now()
    due = now - timedelta(hours=3)
    crontab = CrontabSchedule.objects.create(minute=str(due.minute), hour=str(due.hour), timezone="UTC")
    return PeriodicTask.objects.create(
        name="daily", crontab=crontab, task=ADD, args="[1, 2]", last_run_at=due - timedelta(hours=23, minutes=50)
    )


def whole(jobs: int) -> Callable[[], bool]:
    """Whether so many fires are in the ledger as jobs."""
    return lambda: Tick.objects.filter(job_id__isnull=False).count() >= jobs


def assert_each_fire_is_one_job() -> None:
    """No fire without its job, no job without its fire, none twice, and none missing in between."""
    ticks = list(Tick.objects.order_by("fire_at"))
    ids = [tick.job_id for tick in ticks if not tick.left_out]
    assert sorted(map(str, ids)) == sorted(map(str, Job.objects.values_list("pk", flat=True)))
    seconds = sum(max(1, tick.left_out) for tick in ticks) - 1
    assert ticks[-1].fire_at - ticks[0].fire_at == timedelta(seconds=seconds)


# --- The broker is away -----------------------------------------------------------------------------


@pytest.mark.one_database
def test_a_beat_that_starts_while_the_broker_is_down_fires_all_the_same(
    every_second: PeriodicTask, beat: Spawn, wait_until: WaitUntil
) -> None:
    beat(env={"BROKER_URL": "redis://127.0.0.1:9/0"})
    wait_until(lambda: Job.objects.filter(state="pending").count() >= 2, timeout=30)


@pytest.mark.one_database
def test_a_one_off_whose_publish_fails_is_not_burnt(
    beat: Spawn, worker: Spawn, broker: RedisServer, wait_until: WaitUntil
) -> None:
    clocked = ClockedSchedule.objects.create(clocked_time=lifecycle.database_now())
    PeriodicTask.objects.create(name="once", clocked=clocked, one_off=True, task=ADD, args="[1, 2]")
    broker.stop()
    beat(env=QUICKLY)
    wait_until(whole(1), timeout=30)
    broker.start()
    worker(env=QUICKLY)
    wait_until(lambda: Job.objects.get().state == "completed", timeout=40)
    assert PeriodicTask.objects.get(name="once").enabled is False


@pytest.mark.one_database
def test_a_job_that_a_schedule_fired_says_which_one(
    every_second: PeriodicTask, beat: Spawn, wait_until: WaitUntil
) -> None:
    beat()
    fired = wait_until(lambda: Job.objects.first(), timeout=30)
    assert fired.schedule == "each second"


# --- Several beats, dying beats ---------------------------------------------------------------------


def test_two_beats_fire_each_time_once_and_one_goes_on_when_the_other_dies(
    every_second: PeriodicTask, beat: Spawn, wait_until: WaitUntil
) -> None:
    first = beat(env=QUICKLY)
    beat(env=QUICKLY)
    wait_until(whole(4), timeout=40)
    first.kill()
    wait_until(whole(Tick.objects.count() + 4), timeout=15)
    assert_each_fire_is_one_job()
    assert sum(Tick.objects.values_list("left_out", flat=True)) == 0


def test_two_beats_whose_clocks_are_five_minutes_apart_fire_each_time_once(
    every_second: PeriodicTask, beat: Spawn, wait_until: WaitUntil
) -> None:
    if environment.DATABASE != "postgres" or not FAKETIME:
        pytest.skip("it takes a server with a clock of its own (PostgreSQL), and libfaketime")
    for minutes in ("+5m", "-5m"):
        beat(env={**QUICKLY, "LD_PRELOAD": FAKETIME[0], "FAKETIME": minutes})
    wait_until(whole(8), timeout=40)
    assert_each_fire_is_one_job()
    now = lifecycle.database_now()
    assert all(abs(now - tick.fire_at) < timedelta(seconds=60) for tick in Tick.objects.all())


@pytest.mark.parametrize("point", POINTS)
def test_a_beat_that_is_killed_at_a_point_neither_loses_nor_doubles_a_fire(
    every_second: PeriodicTask, spawn: Spawn, beat: Spawn, wait_until: WaitUntil, point: str
) -> None:
    dying = spawn("dying beat", python("-m", "tests.acceptance.dying_beat", point), QUICKLY)
    wait_until(lambda: not dying.running, timeout=40)
    assert dying.process.returncode == -signal.SIGKILL
    committed = Tick.objects.count()
    assert bool(committed) == (point == "after the commit")
    Schedule.objects.update(misfire="all")
    beat(env=QUICKLY)
    wait_until(whole(committed + 3), timeout=40)
    assert_each_fire_is_one_job()


def test_a_beat_killed_and_started_again_and_again_loses_and_doubles_nothing(
    every_second: PeriodicTask, beat: Spawn, wait_until: WaitUntil
) -> None:
    Schedule.objects.update(misfire="all")
    for _ in range(3):
        killed = beat(env=QUICKLY)
        wait_until(whole(Tick.objects.count() + 2), timeout=40)
        killed.kill()
    assert_each_fire_is_one_job()
    assert Job.objects.count() >= 6


# --- What was missed --------------------------------------------------------------------------------


@pytest.mark.parametrize(("misfire", "jobs"), [("skip", 0), ("once", 1), ("all", 1)])
def test_a_daily_schedule_three_hours_overdue_is_caught_up_by_its_policy(
    hours_overdue: PeriodicTask, beat: Spawn, wait_until: WaitUntil, misfire: str, jobs: int
) -> None:
    Schedule.objects.update(misfire=misfire)
    beat(env=QUICKLY)
    wait_until(lambda: Tick.objects.filter(schedule="daily").exists(), timeout=30)
    assert Job.objects.filter(schedule="daily").count() == jobs
    assert Tick.objects.filter(left_out=1).count() == 1 - jobs


def test_a_fire_that_was_due_while_the_database_was_away_is_caught_up(
    every_second: PeriodicTask, beat: Spawn, wait_until: WaitUntil
) -> None:
    Schedule.objects.update(misfire="all")
    running = beat(env=QUICKLY)
    wait_until(whole(2), timeout=30)
    away_for_a_while(running, wait_until)
    wait_until(whole(Tick.objects.count() + 3), timeout=40)
    assert running.running
    assert_each_fire_is_one_job()


def away_for_a_while(running: Child, wait_until: WaitUntil) -> None:
    """Take the database away until beat says so: stop the server, or lock the file for longer than anybody waits."""
    if environment.DATABASE == "postgres" and "TEST_DATABASE_URL" not in os.environ:
        server = environment.postgres()
        connection.close()
        server.stop()
        try:
            wait_until(lambda: "could not reach the database" in running.log, timeout=30)
        finally:
            server.start()
    else:
        pytest.skip("SQLite is a file: it does not go away; the run on PostgreSQL has this test")


def test_a_beat_that_starts_while_the_database_is_away_waits_for_it(
    every_second: PeriodicTask, beat: Spawn, wait_until: WaitUntil
) -> None:
    if environment.DATABASE != "postgres" or "TEST_DATABASE_URL" in os.environ:
        pytest.skip("SQLite is a file: it does not go away; the run on PostgreSQL has this test")
    server = environment.postgres()
    connection.close()
    server.stop()
    try:
        running = beat(env=QUICKLY)
        wait_until(lambda: "could not reach the database" in running.log, timeout=30)
    finally:
        server.start()
    wait_until(whole(2), timeout=30)
    assert_each_fire_is_one_job()


def test_the_conductor_of_beat_still_leads(every_second: PeriodicTask, beat: Spawn, wait_until: WaitUntil) -> None:
    beat(env=QUICKLY)
    wait_until(lambda: Leader.objects.filter(office="conductor").exists(), timeout=30)
