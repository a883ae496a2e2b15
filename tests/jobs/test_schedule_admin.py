"""The pages of schedules: policy, preview, ledger, and what is refused before it is saved."""

from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client
from django_celery_beat.models import CrontabSchedule, IntervalSchedule, PeriodicTask

from jobs import lifecycle
from jobs.models import Job, Schedule
from jobs.schedule import ledger

pytestmark = pytest.mark.django_db

ADD = "tests.sample.tasks.add"
LIST = "/admin/django_celery_beat/periodictask/"


@pytest.fixture
def admin(client: Client) -> Client:
    client.force_login(User.objects.create_superuser("root"))
    return client


@pytest.fixture
def often() -> PeriodicTask:
    interval = IntervalSchedule.objects.create(every=10, period="seconds")
    return PeriodicTask.objects.create(name="often", interval=interval, task=ADD, args="[1, 2]")


def form(**changes: Any) -> dict[str, Any]:
    """What the browser sends."""
    return {
        "name": "often", "task": ADD, "enabled": "on", "args": "[1, 2]", "kwargs": "{}", "headers": "{}",
        "misfire": "once", **changes,
    }  # fmt: skip


def text(response: Any) -> str:
    return str(response.content.decode())


def test_the_policy_is_chosen_on_the_page_of_the_schedule(admin: Client, often: PeriodicTask) -> None:
    sent = form(interval=often.interval_id, misfire="all")
    response = admin.post(f"{LIST}{often.pk}/change/", sent)
    assert response.status_code == 302, text(response)
    assert Schedule.objects.get(name="often").misfire == "all"
    assert 'value="all" selected' in text(admin.get(f"{LIST}{often.pk}/change/"))


def test_a_new_schedule_can_be_added(admin: Client, often: PeriodicTask) -> None:
    sent = form(name="new", interval=often.interval_id, misfire="skip")
    assert admin.get(f"{LIST}add/").status_code == 200
    response = admin.post(f"{LIST}add/", sent)
    assert response.status_code == 302, text(response)
    row = Schedule.objects.get(name="new")
    assert (row.misfire, row.decided_until is not None) == ("skip", True)


def test_the_page_shows_the_next_fires_with_their_distance_from_utc(admin: Client) -> None:
    crontab = CrontabSchedule.objects.create(minute="30", hour="2", timezone="Asia/Kathmandu")
    task = PeriodicTask.objects.create(name="daily", crontab=crontab, task=ADD, args="[1, 2]")
    assert text(admin.get(f"{LIST}{task.pk}/change/")).count("02:30:00 +05:45") == 10


def test_the_page_shows_what_became_of_the_last_fires(admin: Client, often: PeriodicTask, sent: list[str]) -> None:
    moment = lifecycle.database_now() - timedelta(seconds=300)
    Schedule.objects.update(decided_until=moment, anchor=moment)
    ledger.decide(often.pk)
    page = text(admin.get(f"{LIST}{often.pk}/change/"))
    assert f"/admin/jobs/job/{Job.objects.get().pk}/" in page
    assert "left out" in page


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"args": "[1]"}, "b"),
        ({"args": '{"a": 1}'}, "args must be a JSON list"),
        ({"kwargs": "[]"}, "kwargs must be a JSON object"),
        ({"queue": "nobody"}, "unknown queue"),
        ({"priority": "7"}, "priority"),
    ],
)
def test_a_call_that_would_be_refused_is_refused_on_the_page(
    admin: Client, often: PeriodicTask, wrong: dict[str, str], sentence: str
) -> None:
    response = admin.post(f"{LIST}{often.pk}/change/", form(interval=often.interval_id, **wrong))
    assert response.status_code == 200
    assert sentence in " ".join(map(str, response.context["adminform"].form.non_field_errors()))


@pytest.mark.parametrize(("day", "month"), [("31", "2"), ("30", "2"), ("31", "4,6,9,11")])
def test_an_impossible_date_is_refused_with_a_sentence(admin: Client, day: str, month: str) -> None:
    sent = {"minute": "0", "hour": "0", "day_of_month": day, "month_of_year": month, "day_of_week": "*"}
    response = admin.post("/admin/django_celery_beat/crontabschedule/add/", {**sent, "timezone": "UTC"})
    assert "never comes" in text(response)
    assert not CrontabSchedule.objects.filter(day_of_month=day).exists()


def test_a_schedule_that_can_never_fire_is_refused_and_shown(admin: Client) -> None:
    crontab = CrontabSchedule.objects.create(minute="0", hour="0", day_of_month="31", month_of_year="2")
    task = PeriodicTask.objects.create(name="never", crontab=crontab, task=ADD, args="[1, 2]")
    assert "never&quot; is enabled and cannot fire. There is no such date" in text(admin.get(LIST))
    assert "There is no such date" in text(admin.get(f"{LIST}{task.pk}/change/"))
    response = admin.post(f"{LIST}{task.pk}/change/", form(name="never", crontab=crontab.pk))
    assert "There is no such date" in text(response)
    assert response.status_code == 200


def test_too_short_an_interval_is_refused(admin: Client) -> None:
    response = admin.post("/admin/django_celery_beat/intervalschedule/add/", {"every": "5", "period": "microseconds"})
    assert "the shortest interval" in text(response)


def test_a_schedule_that_nobody_decides_is_shown_as_overdue(admin: Client, often: PeriodicTask) -> None:
    Schedule.objects.update(decided_until=lifecycle.database_now() - timedelta(minutes=5))
    assert "overdue" in text(admin.get(LIST))


@pytest.mark.parametrize("action", ["enable_tasks", "toggle_tasks"])
def test_enabling_on_the_list_begins_anew(admin: Client, often: PeriodicTask, action: str, sent: list[str]) -> None:
    PeriodicTask.objects.update(enabled=False)
    Schedule.objects.update(decided_until=None)
    admin.post(LIST, {"action": action, "_selected_action": [often.pk]})
    row = Schedule.objects.get()
    assert row.decided_until is not None
    assert lifecycle.database_now() - row.decided_until < timedelta(seconds=30)


def test_the_list_asks_the_database_no_more_for_more_schedules(
    admin: Client, often: PeriodicTask, django_assert_max_num_queries: Any
) -> None:
    for number in range(30):
        PeriodicTask.objects.create(name=f"n{number}", interval=often.interval, task=ADD, args="[1, 2]")
    with django_assert_max_num_queries(25):
        admin.get(LIST)


@pytest.mark.parametrize("action", ["enable_tasks", "disable_tasks", "toggle_tasks", "run_tasks"])
def test_who_may_only_look_cannot_act(
    client: Client, often: PeriodicTask, action: str, django_capture_on_commit_callbacks: Any
) -> None:
    reader = User.objects.create_user("reader", is_staff=True)
    reader.user_permissions.add(Permission.objects.get(codename="view_periodictask"))
    client.force_login(reader)
    PeriodicTask.objects.filter(pk=often.pk).update(enabled=action == "disable_tasks")
    with django_capture_on_commit_callbacks(execute=True):
        client.post(LIST, {"action": action, "_selected_action": [often.pk]})
    assert PeriodicTask.objects.get(pk=often.pk).enabled is (action == "disable_tasks")
    assert not Job.objects.exists()


def test_who_may_only_look_sees_a_schedule_and_cannot_save_it(client: Client, often: PeriodicTask) -> None:
    reader = User.objects.create_user("reader", is_staff=True)
    reader.user_permissions.add(Permission.objects.get(codename="view_periodictask"))
    client.force_login(reader)
    page = client.get(f"{LIST}{often.pk}/change/")
    assert page.status_code == 200
    assert "+00:00" in text(page)
    assert client.post(f"{LIST}{often.pk}/change/", form(interval=often.interval_id, misfire="all")).status_code == 403
    assert Schedule.objects.get(name="often").misfire == "once"


def test_running_a_schedule_now_with_bad_arguments_is_a_sentence(admin: Client, often: PeriodicTask) -> None:
    PeriodicTask.objects.update(args='["x", "y"]')
    response = admin.post(LIST, {"action": "run_tasks", "_selected_action": [often.pk]}, follow=True)
    assert "Not run:" in text(response)


# --- The command line and the checks ----------------------------------------------------------------


def listed(*words: str) -> str:
    from io import StringIO

    from django.core.management import call_command

    out = StringIO()
    call_command("jobs", "schedules", *words, stdout=out)
    return out.getvalue()


def test_the_command_previews_the_next_fires() -> None:
    crontab = CrontabSchedule.objects.create(minute="30", hour="2", timezone="Asia/Kathmandu")
    PeriodicTask.objects.create(name="daily", crontab=crontab, task=ADD, args="[1, 2]")
    assert listed("--next", "7", "dai").count("02:30:00 +05:45") == 7


def test_the_command_lists_policy_and_troubles(often: PeriodicTask) -> None:
    crontab = CrontabSchedule.objects.create(minute="0", hour="0", day_of_month="31", month_of_year="2")
    PeriodicTask.objects.create(name="never", crontab=crontab, task=ADD)
    lines = {line.split()[0]: line for line in listed().splitlines()}
    assert "once" in lines["often"]
    assert "cannot fire: There is no such date" in lines["never"]


def test_the_command_speaks_json(often: PeriodicTask) -> None:
    import json

    found = json.loads(listed("--json", "--next", "3"))["schedules"][0]
    assert (found["name"], found["misfire"], len(found["next"])) == ("often", "once", 3)


def test_a_schedule_that_cannot_fire_is_found_by_the_check() -> None:
    from jobs.checks import check_schedules

    crontab = CrontabSchedule.objects.create(minute="0", hour="0", day_of_month="31", month_of_year="2")
    PeriodicTask.objects.create(name="never", crontab=crontab, task=ADD)
    assert [(found.id, found.obj) for found in check_schedules(databases=["default"])] == [("jobs.W013", "never")]
    assert check_schedules() == []


@pytest.mark.parametrize(
    ("scheduler", "ids"),
    [
        ("jobs.schedule.scheduler:Scheduler", []),
        ("django_celery_beat.schedulers:DatabaseScheduler", ["jobs.W012"]),
        ("celery.beat:PersistentScheduler", ["jobs.W012"]),
        ("ours.beat:Scheduler", []),
    ],
)
def test_a_scheduler_without_a_ledger_is_named(scheduler: str, ids: list[str]) -> None:
    from types import SimpleNamespace

    from jobs.checks.celery import _scheduler

    given = SimpleNamespace(beat_scheduler=scheduler, beat_schedule={})
    assert [found.id for found in _scheduler(given)] == ids
