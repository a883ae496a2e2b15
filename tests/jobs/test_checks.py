"""Each system check finds what it is for, says the remedy, and is silent about a sound project."""

import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery
from celery import Task as CeleryTask
from django.core import checks as django_checks
from django.core.checks import CheckMessage
from django.test import override_settings
from kombu import Queue

from jobs import checks, declared, publisher
from jobs.celery import install
from jobs.errors import DeclarationError
from jobs.retry import RetryPolicy
from jobs.task import Task
from tests.children import ROOT
from tests.jobs.apps import only_for_now

Project = Callable[..., Celery]


@pytest.fixture
def project(monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """Make a Celery app with Mainstay as this project has it, except for what is given."""

    def make(**configured: Any) -> Celery:
        app = Celery("checked", set_as_current=False)
        app.config_from_object("django.conf:settings", namespace="CELERY")
        app.conf.update(configured)
        return install(app)

    with only_for_now(monkeypatch):
        yield make


def found(messages: list[CheckMessage] | Iterator[CheckMessage]) -> set[tuple[str, str]]:
    """Ids and what they are about."""
    return {(str(message.id), str(message.obj)) for message in messages}


def run() -> set[str]:
    return {str(message.id) for message in checks.check()}


def deployed() -> set[str]:
    return {str(message.id) for message in checks.check_deployment()}


def manage(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "manage.py", "check", *words]
    environ = {**os.environ, "DJANGO_SETTINGS_MODULE": "project.settings", **variables}
    return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60, check=False)


# --- A sound project ------------------------------------------------------------------------------


def test_the_project_is_sound() -> None:
    ended = manage("--fail-level", "WARNING", DEBUG="1")
    assert (ended.returncode, ended.stdout) == (0, "System check identified no issues (0 silenced).\n")


def test_the_project_can_be_deployed() -> None:
    ended = manage("--deploy", "--fail-level", "INFO", SECRET_KEY=secrets.token_urlsafe(60), HTTPS="1",
                   DATABASE_URL="postgres://127.0.0.1:9/nobody_asks_it")  # fmt: skip
    assert (ended.returncode, ended.stderr) == (0, "")


def test_an_app_with_mainstay_and_nothing_else_raises_nothing(project: Project) -> None:
    project()
    assert checks.check() == []


def test_django_runs_the_checks(settings: Any) -> None:
    settings.JOBS = {"LEASSE": 3}
    assert "jobs.E001" in {message.id for message in django_checks.run_checks(tags=["jobs"])}


def test_django_keeps_checks_of_deployment_for_deployment(settings: Any) -> None:
    settings.DEBUG = True
    assert "jobs.W006" not in {message.id for message in django_checks.run_checks(tags=["jobs"])}
    both = django_checks.run_checks(tags=["jobs"], include_deployment_checks=True)
    assert "jobs.W006" in {message.id for message in both}


def test_checks_ask_neither_the_database_nor_the_broker(project: Project) -> None:
    # No django_db mark: pytest-django refuses any query; and nobody listens on this port.
    project(broker_url="redis://127.0.0.1:9/0")
    assert checks.check() == []
    checks.check_deployment()


def test_importing_the_tasks_for_a_check_does_not_check_again(project: Project) -> None:
    app = project()
    app.autodiscover_tasks()
    assert declared.tasks(app)


# --- Settings, apps, databases --------------------------------------------------------------------


@pytest.mark.parametrize("given", [{"LEASSE": 30}, {"LEASE": "long"}, {"LEASE": -1}, [], {"QUEUES": "mail"}])
def test_a_misspelt_or_impossible_setting_is_an_error(given: Any) -> None:
    with override_settings(JOBS=given):
        assert found(checks.surroundings.of_settings()) == {("jobs.E001", "JOBS")}


def test_a_misspelt_setting_is_named_with_the_nearest() -> None:
    with override_settings(JOBS={"LEASSE": 30}):
        assert "Did you mean 'LEASE'?" in next(checks.surroundings.of_settings()).msg


@pytest.mark.parametrize(("heartbeat", "ids"), [(10, {"jobs.E003"}), (9, set())])
def test_a_lease_must_be_longer_than_two_heartbeats(heartbeat: float, ids: set[str]) -> None:
    with override_settings(JOBS={"LEASE": 20, "HEARTBEAT": heartbeat}):
        assert {message.id for message in checks.surroundings.of_settings()} == ids


def test_jobs_without_dead_letters_are_warned_of(settings: Any) -> None:
    settings.INSTALLED_APPS = [app for app in settings.INSTALLED_APPS if app != "dlq"]
    assert found(checks.surroundings.of_apps()) == {("jobs.W004", "INSTALLED_APPS")}


class JobsElsewhere:
    """Sends jobs, and with ``both`` dead letters too, to another database."""

    both = False

    def db_for_write(self, model: Any, **_: Any) -> str | None:
        return "elsewhere" if model._meta.app_label in ("jobs", "dlq" if self.both else "") else None


class BothElsewhere(JobsElsewhere):
    both = True


def test_jobs_and_letters_in_two_databases_are_an_error(settings: Any) -> None:
    settings.DATABASE_ROUTERS = [JobsElsewhere()]
    assert ("jobs.E012", "DATABASE_ROUTERS") in found(checks.surroundings.of_databases())


def test_jobs_beside_the_default_database_are_warned_of(settings: Any) -> None:
    settings.DATABASE_ROUTERS = [BothElsewhere()]
    assert found(checks.surroundings.of_databases()) == {("jobs.W008", "DATABASE_ROUTERS")}


def test_a_celery_app_without_mainstay_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "_in_use", None)
    assert run() == {"jobs.E002"}


# --- Deployment -----------------------------------------------------------------------------------


def test_debug_is_warned_of_in_deployment(settings: Any) -> None:
    settings.DEBUG = True
    assert "jobs.W006" in deployed()


def test_eager_tasks_are_an_error_in_deployment(project: Project) -> None:
    project(task_always_eager=True)
    assert "jobs.E013" in deployed()


@pytest.mark.parametrize(("engine", "said"), [("sqlite3", True), ("postgresql", False)])
def test_sqlite_is_mentioned_in_deployment(engine: str, said: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(checks.surroundings.connections.databases["default"], "ENGINE", f"django.db.backends.{engine}")
    assert ("jobs.I001" in deployed()) is said


# --- Celery's settings ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("configured", "id_"),
    [
        ({"task_acks_late": False}, "jobs.E008"),
        ({"task_reject_on_worker_lost": True}, "jobs.W001"),
        ({"task_acks_on_failure_or_timeout": False}, "jobs.W007"),
        ({"task_acks_on_timeout": False}, "jobs.W007"),
        ({"accept_content": ["json", "pickle"]}, "jobs.E011"),
        ({"task_serializer": "pickle"}, "jobs.E011"),
        ({"result_backend": "redis://127.0.0.1:6379/1"}, "jobs.W002"),
        ({"task_routes": {"shop.*": {"queue": "nowhere"}}}, "jobs.E006"),
        ({"task_routes": {"shop.*": "nowhere"}}, "jobs.E006"),
        ({"task_routes": [("shop.*", {"queue": "nowhere"})]}, "jobs.E006"),
        ({"task_routes": [{"shop.*": {"queue": "nowhere"}}, lambda *_, **__: None]}, "jobs.E006"),
        ({"task_default_priority": 5}, "jobs.E007"),
    ],
)
def test_a_setting_of_celery_that_undoes_a_promise_is_found(configured: dict, id_: str, project: Project) -> None:
    assert {message.id for message in checks.celery.of_celery(project(**configured))} == {id_}


@pytest.mark.parametrize(
    "configured",
    [
        {"result_backend": "django-db"},
        {"accept_content": ["application/json"]},
        {"task_routes": {"shop.*": {"queue": "mail"}, "other.*": {"exchange": "x"}}},
        {"task_routes": lambda *_, **__: {"queue": "nowhere"}},
        {"task_default_priority": 30},
        {"task_queues": None, "task_routes": {"shop.*": "any_name_will_do"}},
    ],
)
def test_a_setting_of_celery_that_is_sound_is_not(configured: dict, project: Project) -> None:
    assert list(checks.celery.of_celery(project(**configured))) == []


# --- Tasks ----------------------------------------------------------------------------------------


def of_task(app: Celery, **options: Any) -> set[str]:
    """What the checks say of a task with these options."""

    def body() -> None:
        return

    app.task(name="checked", shared=False, **options)(body)
    return {str(message.id) for message in checks.tasks.of_tasks(app) if message.obj == "checked"}


@pytest.mark.parametrize(
    ("options", "id_"),
    [
        ({"queue": "nowhere"}, "jobs.E005"),
        ({"priority": 5}, "jobs.E007"),
        ({"priority": "urgent"}, "jobs.E007"),
        ({"acks_late": False}, "jobs.E008"),
        ({"reject_on_worker_lost": True}, "jobs.W001"),
        ({"time_limit": 3600}, "jobs.E009"),
        ({"time_limit": 60, "soft_time_limit": 90}, "jobs.W009"),
        ({"max_retries": None}, "jobs.W005"),
    ],
)
def test_a_task_that_is_declared_wrongly_is_found(options: dict, id_: str, project: Project) -> None:
    assert of_task(project(), **options) == {id_}


@pytest.mark.parametrize(
    "options",
    [
        {"queue": "mail", "priority": "high"},
        {"priority": 30},
        {"time_limit": 60},
        {"time_limit": 3599},
        {"max_retries": None, "retry_policy": RetryPolicy(max_attempts=3)},
        {"tracked": False, "acks_late": False, "queue": "nowhere"},
    ],
)
def test_a_task_that_is_declared_well_is_not(options: dict, project: Project) -> None:
    assert of_task(project(), **options) == set()


def test_a_task_with_a_base_of_its_own_is_judged_too(project: Project) -> None:
    class Base(CeleryTask):
        abstract = True
        queue = "nowhere"

    assert of_task(project(), base=Base) == {"jobs.E005"}


def test_a_longer_visibility_timeout_allows_a_longer_limit(project: Project) -> None:
    app = project(broker_transport_options={"visibility_timeout": 7200})
    assert of_task(app, time_limit=3600) == set()


def test_a_broker_that_does_not_hand_out_again_allows_any_limit(project: Project) -> None:
    assert of_task(project(broker_url="amqp://127.0.0.1//"), time_limit=90_000) == set()


@pytest.mark.parametrize(
    ("queue", "expected"),
    [
        ({}, set()),
        ({"queue_arguments": {"x-queue-type": "quorum"}}, set()),
        ({"queue_arguments": {"x-message-ttl": 1000}}, {("jobs.W010", "CELERY_TASK_QUEUES")}),
        ({"auto_delete": True}, {("jobs.W010", "CELERY_TASK_QUEUES")}),
        ({"durable": False}, {("jobs.W010", "CELERY_TASK_QUEUES")}),
    ],
)
def test_queues_that_rabbitmq_may_forget_are_warned_of(
    project: Project, queue: dict[str, Any], expected: set[tuple[str, str]]
) -> None:
    app = project(broker_url="amqp://127.0.0.1//", task_queues=[Queue("default", **queue)])
    assert found(checks.celery.of_celery(app)) == expected


def test_confirmations_for_all_that_is_sent_to_rabbitmq_are_warned_of(project: Project) -> None:
    app = project(broker_url="amqp://127.0.0.1//", broker_transport_options={"confirm_publish": True})
    assert found(checks.celery.of_celery(app)) == {("jobs.W011", "CELERY_BROKER_TRANSPORT_OPTIONS")}


def test_an_untracked_task_without_a_time_limit_is_warned_of(project: Project) -> None:
    app = project(task_time_limit=None, task_soft_time_limit=None)
    assert of_task(app, tracked=False) == {"jobs.W003"}


def test_queues_of_jobs_decide_where_they_are_named(project: Project) -> None:
    with override_settings(JOBS={"QUEUES": ["mail", "nowhere"]}):
        assert of_task(project(), queue="nowhere") == set()


def test_two_classes_of_one_name_are_an_error(project: Project) -> None:
    class First(Task):
        name = "checked.twice"

        def run(self) -> None: ...

    class Second(Task):
        name = "checked.twice"

        def run(self) -> None: ...

    app = project()
    assert ("jobs.E010", "checked.twice") in found(checks.tasks.of_tasks(app))
    for cls in (First, Second):
        cls.name = f"{cls.__module__}.{cls.__qualname__}"


def test_tasks_that_cannot_be_imported_are_an_error(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise DeclarationError("ChargeOrder has no key.")

    app = project()
    monkeypatch.setattr(app.loader, "import_default_modules", broken)
    (message,) = checks.tasks.of_tasks(app)
    assert (message.id, "ChargeOrder has no key." in message.msg) == ("jobs.E004", True)


def test_each_id_has_one_meaning_and_each_message_a_remedy(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    app = project(task_acks_late=False, accept_content=["pickle"], result_backend="redis://", task_default_priority=5)
    messages = list(checks.celery.of_celery(app))
    assert len({message.id for message in messages}) == len(messages) == 4
    assert all(message.hint for message in messages)
