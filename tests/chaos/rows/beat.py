"""Rows about schedules: several beats, dying beats, clocks that differ, and what is down when a fire is due."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from project import processes
from tests.chaos.matrix import row
from tests.chaos.stage import Stage

NO_LEDGER = "its beat keeps no account of fires, so that there is nothing to compare"
SECOND = timedelta(seconds=1)
FAKETIME = [str(path) for path in Path("/usr/lib").glob("*/faketime/libfaketime.so.1")]

# Number 0: every fire is a job of its own, told apart by its id.
MAKE = """
from django_celery_beat.models import CrontabSchedule, IntervalSchedule, PeriodicTask
from jobs import lifecycle
from jobs.models import Schedule
from datetime import timedelta
task = {"task": "tests.chaos.tasks.plain", "kwargs": '{"number": 0}'}
"""
EACH_SECOND = (
    MAKE
    + """
interval = IntervalSchedule.objects.create(every=1, period="seconds")
PeriodicTask.objects.create(name="scheduled", interval=interval, **task)
Schedule.objects.update(misfire="all")
"""
)
OVERDUE = (
    MAKE
    + """
due = lifecycle.database_now() - timedelta(hours=3)
crontab = CrontabSchedule.objects.create(minute=str(due.minute), hour=str(due.hour), timezone="UTC")
for misfire in ("skip", "once", "all"):
    PeriodicTask.objects.create(name=misfire, crontab=crontab, last_run_at=due - timedelta(hours=23), **task)
    Schedule.objects.filter(name=misfire).update(misfire=misfire)
"""
)


def ticks(stage: Stage) -> list[tuple[datetime, str]]:
    """The fires in the ledger, in order, with the job of each."""
    rows = stage.database.rows("SELECT fire_at, job_id FROM jobs_tick WHERE schedule = 'scheduled' ORDER BY fire_at")
    return [(moment(at), str(job or "").replace("-", "")) for at, job in rows]


def moment(value: Any) -> datetime:
    """A time as a database gives it."""
    found = datetime.fromisoformat(value) if isinstance(value, str) else value
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def wait_ticks(stage: Stage, more: int, timeout: float = 40) -> None:
    """Wait until so many more fires are in the ledger."""
    there = len(ticks(stage))
    stage.wait(lambda: len(ticks(stage)) >= there + more, f"{more} more fires", timeout)


def close(stage: Stage) -> None:
    """Disable the schedule, let everything settle, and require one job for each second and none beside."""
    disabled = "UPDATE django_celery_beat_periodictask SET enabled = "
    stage.database.execute(disabled + ("0" if stage.database.vendor == "sqlite" else "false"))
    stage.sleep(1.5)
    stage.settle()
    fires = ticks(stage)
    jobs = [str(job).replace("-", "") for (job,) in stage.database.rows("SELECT id FROM jobs_job")]
    missing = (fires[-1][0] - fires[0][0]) // SECOND + 1 - len(fires)
    stage.measure(fires=len(fires), fires_missing=missing, fires_doubled=len(jobs) - len(fires))
    stage.require(missing == 0, "every second has its fire")
    stage.require(sorted(jobs) == sorted(job for _, job in fires), "every fire has one job, and no job is beside")


@row(35, "two beats", must="one job per tick", celery=NO_LEDGER)
def two_beats(stage: Stage) -> None:
    stage.manage("shell", "-c", EACH_SECOND)
    stage.start()
    first = stage.start_beat()
    stage.start_beat()
    wait_ticks(stage, stage.scaled(20, 6))
    first.kill()
    wait_ticks(stage, stage.scaled(10, 4))
    close(stage)


@row(36, "beat SIGKILL after fire", must="no double, no miss", celery=NO_LEDGER)
def beat_killed(stage: Stage) -> None:
    stage.manage("shell", "-c", EACH_SECOND)
    stage.start()
    for _ in range(stage.scaled(8, 3)):
        stage.start_beat()
        wait_ticks(stage, 2)
        stage.beat.kill()
    stage.start_beat()
    wait_ticks(stage, 2)
    close(stage)


@row(37, "broker down at tick", must="tick kept", brokers=("redis", "rabbitmq"), celery=NO_LEDGER)
def broker_down_at_tick(stage: Stage) -> None:
    stage.manage("shell", "-c", EACH_SECOND)
    stage.start()
    stage.start_beat()
    wait_ticks(stage, 2)
    stage.fault()
    stage.broker.stop()
    wait_ticks(stage, stage.scaled(10, 4))
    stage.broker.start()
    wait_ticks(stage, 2)
    close(stage)


@row(38, "beat down 3 h over a daily run", must="catch-up per policy", celery=NO_LEDGER)
def daily_overdue(stage: Stage) -> None:
    stage.manage("shell", "-c", OVERDUE)
    stage.start()
    stage.start_beat()
    decided = "SELECT schedule, job_id FROM jobs_tick"
    stage.wait(lambda: len(stage.database.rows(decided)) >= 3, "all three are decided", timeout=40)
    stage.settle()
    caught_up = sorted(name for name, job in stage.database.rows(decided) if job)
    stage.require(caught_up == ["all", "once"], "once and all are made up for, skip is left out")


@row(180, "two beats, their clocks ten minutes apart", must="one job per tick, none missing", databases=("postgres",),
     celery=NO_LEDGER)  # fmt: skip
def beats_with_other_clocks(stage: Stage) -> None:
    if not FAKETIME:
        stage.skip("libfaketime is missing (Debian: apt install libfaketime)")
    stage.manage("shell", "-c", EACH_SECOND)
    stage.start()
    for ahead in ("+5m", "-5m"):
        stage.start_beat(environ={"LD_PRELOAD": FAKETIME[0], "FAKETIME": ahead})
    wait_ticks(stage, stage.scaled(20, 6))
    close(stage)


@row(181, "database down at tick", must="caught up when it is back", databases=("postgres",), own_database=True,
     celery=NO_LEDGER)  # fmt: skip
def database_down_at_tick(stage: Stage) -> None:
    stage.manage("shell", "-c", EACH_SECOND)
    stage.start()
    stage.start_beat()
    wait_ticks(stage, 2)
    stage.fault()
    stage.database.server.stop()
    stage.sleep(stage.scaled(15, 5))
    stage.database.server.start()
    wait_ticks(stage, stage.scaled(17, 7))
    close(stage)


@row(182, "beat killed at each of its statements", must="no double, no miss", celery=NO_LEDGER, limit=1500)
def beat_dies_at_statements(stage: Stage) -> None:
    stage.manage("shell", "-c", EACH_SECOND)
    stage.start()
    numbers = sorted(stage.random.sample(range(1, 80), 4)) if stage.quick else range(1, 80)
    deaths = 0
    for number in numbers:
        for when in ("before", "after"):
            stage.arm("main MainThread")
            beat = stage.start_beat(ready=False, die=f"{number}:{when}")
            processes.wait_until(lambda: not beat.running, 30)  # noqa: B023
            deaths += not beat.running
            beat.end()
            stage.world.armed.unlink(missing_ok=True)
    if stage.quick:
        stage.leave_out(f"{len(numbers)} statements instead of all")
    stage.measure(deaths=deaths)
    stage.require(deaths, "some beat died")
    stage.start_beat()
    wait_ticks(stage, 3)
    close(stage)
