"""The ledger: each fire becomes one job in one transaction, whoever looks, whatever was changed meanwhile."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import OperationalError
from django_celery_beat.models import ClockedSchedule, CrontabSchedule, IntervalSchedule, PeriodicTask

from jobs.models import Job, Schedule, Tick
from jobs.schedule import call, ledger, preview, rules
from jobs.schedule.agenda import Agenda
from tests.platform import drain

pytestmark = pytest.mark.django_db

ADD = "tests.sample.tasks.add"
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


def ago(**length: float) -> datetime:
    """A moment before now, by the database's clock."""
    return ledger.clock() - timedelta(**length)


def every(seconds: int = 10, **given: Any) -> PeriodicTask:
    """A schedule with an interval."""
    interval, _ = IntervalSchedule.objects.get_or_create(every=seconds, period="seconds")
    return PeriodicTask.objects.create(
        **{"name": "often", "interval": interval, "task": ADD, "args": "[1, 2]", **given}
    )


def daily(**given: Any) -> PeriodicTask:
    """A daily schedule that was due three hours ago, and last ran the day before."""
    due = ago(hours=3)
    crontab = CrontabSchedule.objects.create(minute=str(due.minute), hour=str(due.hour), timezone="UTC")
    last = {"last_run_at": ago(hours=27, minutes=-2)}
    return PeriodicTask.objects.create(
        **{"name": "daily", "crontab": crontab, "task": ADD, "args": "[1, 2]", **last, **given}
    )


def missed(task: PeriodicTask, **since: float) -> None:
    """As if nobody had looked since then."""
    moment = ago(**since)
    Schedule.objects.filter(name=task.name).update(decided_until=moment, anchor=moment)


def policy(task: PeriodicTask, misfire: str) -> None:
    Schedule.objects.filter(name=task.name).update(misfire=misfire)


def fired() -> int:
    return Tick.objects.filter(job_id__isnull=False).count()


def left_out() -> int:
    return sum(Tick.objects.values_list("left_out", flat=True))


# --- One fire, one job ------------------------------------------------------------------------------


def test_what_is_due_becomes_a_job_and_a_tick(sent: list[str]) -> None:
    task = every(10)
    missed(task, seconds=12)
    assert ledger.decide(task.pk).fired == 1
    job = Job.objects.get()
    assert (job.schedule, job.task, str(job.pk)) == ("often", ADD, str(Tick.objects.get().job_id))


def test_the_same_fire_is_not_fired_again(sent: list[str]) -> None:
    task = every(10)
    missed(task, seconds=12)
    assert [ledger.decide(task.pk).fired for _ in range(3)] == [1, 0, 0]


def test_a_fire_that_is_in_the_ledger_is_never_fired_again_even_if_it_were_due(sent: list[str]) -> None:
    task = every(3600)
    missed(task, seconds=3605)
    ledger.decide(task.pk)
    Schedule.objects.update(decided_until=ago(seconds=3605))
    assert ledger.decide(task.pk).fired == 0
    assert Job.objects.count() == 1


def test_a_beat_that_decided_on_an_older_look_changes_nothing(sent: list[str], monkeypatch: Any) -> None:
    task = every(3600)
    missed(task, seconds=3605)
    noted = ledger.noted

    def overtaken(*given: Any, **named: Any) -> Schedule:
        row = noted(*given, **named)
        Schedule.objects.update(decided_until=ago(seconds=1))
        return row

    monkeypatch.setattr(ledger, "noted", overtaken)
    assert ledger.decide(task.pk).fired == 0
    assert not Job.objects.exists()


def test_a_crash_in_the_middle_leaves_nothing(sent: list[str], monkeypatch: Any) -> None:
    task = every(10)
    missed(task, seconds=12)
    before = Schedule.objects.values().get()
    with monkeypatch.context() as patched:
        patched.setattr(ledger, "_advance", _away)
        with pytest.raises(OperationalError):
            ledger.decide(task.pk)
    assert (Job.objects.count(), Tick.objects.count(), Schedule.objects.values().get()) == (0, 0, before)
    assert ledger.decide(task.pk).fired == 1


def _away(*given: Any) -> None:
    raise OperationalError("the database is away")


def test_the_admin_is_told_when_it_ran_and_how_often(sent: list[str]) -> None:
    task = every(10)
    missed(task, seconds=12)
    ledger.decide(task.pk)
    task.refresh_from_db()
    assert task.total_run_count == 1
    assert task.last_run_at is not None
    assert task.last_run_at > ago(seconds=5)


def test_an_edit_that_a_person_makes_meanwhile_is_kept(sent: list[str], monkeypatch: Any) -> None:
    task = every(10)
    missed(task, seconds=12)
    enqueue = call.of

    def edited(*given: Any) -> Any:
        PeriodicTask.objects.filter(pk=task.pk).update(description="edited", args="[3, 4]")
        return enqueue(*given)

    monkeypatch.setattr(call, "of", edited)
    ledger.decide(task.pk)
    task.refresh_from_db()
    assert (task.description, task.args, task.total_run_count) == ("edited", "[3, 4]", 1)


# --- Misfires ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("misfire", "jobs", "without"), [("skip", 0, 1), ("once", 1, 0), ("all", 1, 0)])
def test_a_daily_schedule_three_hours_overdue_is_caught_up_by_policy(
    sent: list[str], misfire: str, jobs: int, without: int
) -> None:
    task = daily()
    policy(task, misfire)
    ledger.decide(task.pk)
    assert (fired(), left_out()) == (jobs, without)


def test_without_a_word_a_missed_fire_is_made_up_for_once(sent: list[str]) -> None:
    task = every(10)
    missed(task, seconds=305)
    ledger.decide(task.pk)
    assert (fired(), left_out()) == (1, 29)


def test_a_long_catch_up_comes_in_slices(sent: list[str]) -> None:
    task = every(1)
    policy(task, "all")
    missed(task, seconds=250)
    assert ledger.decide(task.pk).fired == ledger.BATCH
    while ledger.decide(task.pk).fired:
        pass
    assert fired() >= 250
    assert left_out() == 0


def test_what_was_left_out_is_in_the_ledger_in_bounded_form(sent: list[str]) -> None:
    task = every(1)
    missed(task, days=2)
    ledger.decide(task.pk)
    assert Tick.objects.count() <= 60
    assert left_out() + fired() in range(2 * 24 * 3600 - 1, 2 * 24 * 3600 + 5)


def test_jobs_of_a_catch_up_say_when_they_were_due(sent: list[str]) -> None:
    task = daily()
    ledger.decide(task.pk)
    assert Tick.objects.get().fire_at.isoformat() in Job.objects.get().delivery


def test_a_schedule_that_was_disabled_has_missed_nothing(sent: list[str]) -> None:
    task = daily()
    task.enabled = False
    task.save()
    task.enabled = True
    task.save()
    assert ledger.decide(task.pk).fired == 0


def test_a_bulk_update_that_disables_is_noticed_by_the_next_look(sent: list[str]) -> None:
    task = daily()
    PeriodicTask.objects.update(enabled=False)
    Agenda().read()
    PeriodicTask.objects.update(enabled=True)
    Agenda().read()
    assert ledger.decide(task.pk).fired == 0


def test_a_schedule_that_was_changed_begins_anew(sent: list[str]) -> None:
    task = every(10)
    missed(task, hours=2)
    task.interval.every = 60
    task.interval.save()
    assert ledger.decide(task.pk).fired == 0
    assert not Tick.objects.exists()


def test_a_schedule_that_is_made_again_under_its_name_begins_anew(sent: list[str]) -> None:
    task = every(10)
    missed(task, hours=2)
    task.delete()
    task = every(10)
    assert ledger.decide(task.pk).fired == 0


def test_a_schedule_that_is_made_again_unseen_begins_anew(sent: list[str]) -> None:
    task = every(10)
    missed(task, hours=2)
    PeriodicTask.objects.filter(pk=task.pk)._raw_delete("default")
    made = PeriodicTask(pk=task.pk + 1, name="often", interval=task.interval, task=ADD, date_changed=ago(seconds=1))
    PeriodicTask.objects.bulk_create([made])
    assert ledger.decide(made.pk).fired == 0


@pytest.mark.parametrize("how", ["save", "update"])
def test_a_schedule_that_is_renamed_goes_on(sent: list[str], how: str) -> None:
    task = every()
    policy(task, "all")
    missed(task, seconds=25)
    if how == "save":
        task.name = "renamed"
        task.save()
    else:
        PeriodicTask.objects.filter(pk=task.pk).update(name="renamed")
    assert ledger.decide(task.pk).fired == 2
    row = Schedule.objects.get()
    assert (row.name, row.misfire) == ("renamed", "all")


@pytest.mark.parametrize("zone", ["UTC", "Europe/Oslo"])
@pytest.mark.parametrize("kind", ["interval", "crontab"])
def test_a_project_without_zones_has_schedules_too(sent: list[str], settings: Any, zone: str, kind: str) -> None:
    settings.TIME_ZONE = zone
    settings.USE_TZ = False
    task = every()
    if kind == "crontab":
        task.interval, task.crontab = None, CrontabSchedule.objects.create(timezone="Asia/Kathmandu")
        task.save()
    missed(task, seconds=130)
    agenda = Agenda()
    agenda.read()
    assert agenda.due[task.pk] < ledger.clock()
    assert ledger.decide(task.pk).fired == 1
    agenda.read()
    assert ago(seconds=0) < agenda.due[task.pk] <= ago(seconds=-60)
    assert ago(minutes=3) < Tick.objects.filter(job_id__isnull=False).get().fire_at <= ago(seconds=0)
    task.refresh_from_db()
    assert abs(rules.given(task.last_run_at) - ledger.clock()) < timedelta(minutes=1)


FAR = [
    datetime.max.replace(tzinfo=UTC), datetime(9980, 1, 1, tzinfo=UTC), datetime.min.replace(tzinfo=UTC),
    datetime(1, 1, 2, tzinfo=UTC),
]  # fmt: skip


@pytest.mark.parametrize("at", FAR, ids=str)
@pytest.mark.parametrize("field", ["start_time", "expires", "clocked"])
@pytest.mark.parametrize("kind", ["interval", "crontab"])
def test_the_last_and_the_first_of_all_dates_do_not_keep_others_from_their_turn(
    sent: list[str], kind: str, field: str, at: datetime
) -> None:
    often, other = every(), every(name="other")
    if kind == "crontab":
        hourly = CrontabSchedule.objects.create(minute="0", timezone="Pacific/Auckland")
        PeriodicTask.objects.filter(pk=often.pk).update(interval=None, crontab=hourly)
    far = ClockedSchedule(clocked_time=at) if field == "clocked" else None
    if far is not None:
        ClockedSchedule.objects.bulk_create([far])
        PeriodicTask.objects.filter(pk=often.pk).update(interval=None, crontab=None, clocked=far, one_off=True)
    else:
        PeriodicTask.objects.filter(pk=often.pk).update(**{field: at})
    agenda = Agenda()
    agenda.read()
    assert other.pk in agenda.due
    assert len(preview.outlooks(3)) == 2
    ledger.decide(often.pk)


def test_setting_the_last_run_back_asks_to_catch_up_from_there(sent: list[str]) -> None:
    task = daily(last_run_at=None)
    assert ledger.decide(task.pk).fired == 0
    PeriodicTask.objects.update(last_run_at=ago(hours=26))
    assert ledger.decide(task.pk).fired == 1


# --- What a periodic task says ----------------------------------------------------------------------


def test_a_one_off_schedule_fires_once_and_is_disabled(sent: list[str]) -> None:
    task = every(10, one_off=True)
    policy(task, "all")
    missed(task, seconds=95)
    assert ledger.decide(task.pk).fired == 1
    task.refresh_from_db()
    assert task.enabled is False
    assert ledger.decide(task.pk).fired == 0


def test_a_clocked_time_that_passed_while_it_was_typed_in_is_fired(sent: list[str]) -> None:
    clocked = ClockedSchedule.objects.create(clocked_time=ago(minutes=2))
    task = PeriodicTask.objects.create(name="at", clocked=clocked, one_off=True, task=ADD, args="[1, 2]")
    assert ledger.decide(task.pk).fired == 1


def test_a_clocked_schedule_that_is_enabled_again_does_not_fire_again(sent: list[str]) -> None:
    clocked = ClockedSchedule.objects.create(clocked_time=ago(minutes=2))
    task = PeriodicTask.objects.create(name="at", clocked=clocked, one_off=True, task=ADD, args="[1, 2]")
    ledger.decide(task.pk)
    task.refresh_from_db()
    for enabled in (False, True):
        task.enabled = enabled
        task.save()
    assert ledger.decide(task.pk).fired == 0


def test_nothing_is_fired_before_the_start_time(sent: list[str]) -> None:
    task = every(10, start_time=ago(seconds=-3600))
    missed(task, seconds=60)
    decided = ledger.decide(task.pk)
    assert (decided.fired, decided.next_at) == (0, task.start_time)


def test_a_start_time_in_the_past_is_the_anchor(sent: list[str]) -> None:
    start = ago(hours=5).replace(microsecond=0)
    task = every(3600, start_time=start)
    next_at = ledger.decide(task.pk).next_at
    assert next_at is not None
    assert (next_at - start) % HOUR == timedelta(0)


def test_a_schedule_whose_end_has_come_is_disabled(sent: list[str]) -> None:
    task = every(10, expires=ago(seconds=-1))
    PeriodicTask.objects.update(expires=ago(seconds=1))
    missed(task, seconds=60)
    assert ledger.decide(task.pk).fired == 0
    ledger.decide(task.pk)
    task.refresh_from_db()
    assert task.enabled is False
    assert left_out() > 0


def test_the_options_of_a_periodic_task_are_those_of_the_job(sent: list[str]) -> None:
    task = every(10, queue="mail", priority=10, expire_seconds=600, headers='{"color": "red"}')
    missed(task, seconds=12)
    ledger.decide(task.pk)
    job = Job.objects.get()
    assert (job.queue, job.priority) == ("mail", 10)
    assert '"color"' in job.delivery
    assert job.expires_at is not None
    assert timedelta(seconds=590) < job.expires_at - job.created_at < timedelta(seconds=600)


def test_a_key_makes_two_fires_one_job(sent: list[str]) -> None:
    task = every(10, task="tests.sample.tasks.Once", args='["x"]')
    policy(task, "all")
    missed(task, seconds=32)
    ledger.decide(task.pk)
    assert (fired(), Job.objects.count()) == (3, 1)


# --- What cannot be fired ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [{"args": "[1,"}, {"args": '{"a": 1}'}, {"kwargs": "[]"}, {"args": '["x", "y"]'}, {"args": "[1, 2, 3]"},
     {"queue": "nobody"}, {"priority": 7}, {"headers": "[1]"}],
    ids=str,
)  # fmt: skip
def test_a_fire_that_the_front_door_refuses_is_a_dead_letter(sent: list[str], wrong: dict[str, Any]) -> None:
    task = every(10, **wrong)
    missed(task, seconds=12)
    assert ledger.decide(task.pk).fired == 1
    job = Job.objects.get()
    assert (job.state, job.schedule, bool(job.error_message)) == ("failed", "often", True)
    assert job.dead_letter.status == "open"


def test_a_task_that_nobody_knows_is_a_job_all_the_same(sent: list[str]) -> None:
    task = every(10, task="nobody.knows.it")
    missed(task, seconds=12)
    ledger.decide(task.pk)
    assert Job.objects.get().task == "nobody.knows.it"


def test_a_schedule_that_cannot_be_read_does_not_keep_others_from_their_turn(
    sent: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    crontab = CrontabSchedule.objects.create(minute="0", hour="0", day_of_month="31", month_of_year="2")
    PeriodicTask.objects.create(name="never", crontab=crontab, task=ADD)
    task = every(10)
    agenda = Agenda()
    agenda.read()
    agenda.read()
    assert list(agenda.due) == [task.pk]
    assert [record.getMessage().count("never comes") for record in caplog.records] == [1]


def test_a_fired_job_runs(sent: list[str]) -> None:
    task = every(10)
    missed(task, seconds=12)
    ledger.decide(task.pk)
    drain()
    assert Job.objects.get().state == "completed"


# --- Keeping ----------------------------------------------------------------------------------------


def test_old_ticks_are_forgotten_and_young_ones_kept() -> None:
    for days in (40, 31, 29):
        Tick.objects.create(schedule="often", fire_at=ago(days=days), decided_at=ago(days=days))
    assert ledger.forget_old() == 2
    assert Tick.objects.count() == 1
