"""What calls have in common is kept between them; nothing else is, and no longer than it is true."""

from typing import Any

import pytest
from celery.app.routes import MapRoute, Router
from django.test import TestCase

from jobs import drafts, outbox, publisher
from jobs.context import correlated
from jobs.models import Job
from jobs.signals import lifecycle
from jobs.states import Priority
from project.celery import app
from tests.platform import fresh
from tests.sample.tasks import Charge, add

pytestmark = pytest.mark.django_db


def fields(job: Job) -> dict[str, Any]:
    """A draft, but for what is made of its id."""
    ours = {"_state", "id", "root_id", "correlation_id"}
    return {name: value for name, value in job.__dict__.items() if name not in ours}


@pytest.mark.parametrize("task", [add, Charge], ids=["function", "class"])
def test_a_usual_call_has_the_row_that_its_options_say(task: Any) -> None:
    says = drafts.declaration(task.name, task)
    given = {"task_type": task, "serializer": "json", "time_limit": says.time_limit}
    for _ in range(2):
        usual = drafts._usual(says, task, given)
        assert usual is not None
        assert fields(usual) == fields(drafts.outline(says, given, app.timezone))
        assert (usual.root_id, usual.correlation_id) == (usual.id, str(usual.id))


@pytest.mark.parametrize(
    "given", [{"queue": "mail"}, {"countdown": 5}, {"time_limit": 7}, {"serializer": "yaml"}, {"parent_id": "x"},
              {"nonsense": 1}],
)  # fmt: skip
def test_a_call_that_says_something_of_its_own_is_no_usual_one(given: dict[str, Any]) -> None:
    assert drafts._usual(drafts.declaration(add.name, add), add, given) is None


def test_two_usual_calls_have_ids_of_their_own() -> None:
    first, second = fresh(add.delay(1, 2)), fresh(add.delay(1, 2))
    assert len({first.id, first.root_id, second.id, second.root_id}) == 2
    assert (first.correlation_id, second.correlation_id) == (str(first.id), str(second.id))


def test_a_correlation_is_that_of_the_call() -> None:
    with correlated("request 7"):
        assert fresh(add.delay(1, 2)).correlation_id == "request 7"
    assert fresh(add.delay(1, 2)).correlation_id != "request 7"


def test_what_a_listener_does_to_one_job_is_not_done_to_the_next() -> None:
    seen: list[tuple[dict[str, Any], list[str]]] = []

    def scribble(job: Job, **_: Any) -> None:
        seen.append((dict(job.metadata), list(job.tags)))
        job.metadata["seen"] = True
        job.tags.append("seen")

    lifecycle.connect(scribble, sender=Job)
    try:
        with TestCase.captureOnCommitCallbacks(execute=True):
            add.delay(1, 2)
        with TestCase.captureOnCommitCallbacks(execute=True):
            add.delay(1, 2)
    finally:
        lifecycle.disconnect(scribble, sender=Job)
    assert seen == [({}, []), ({}, [])]


def test_a_task_that_changed_its_mind_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fresh(add.delay(1, 2)).priority == Priority.NORMAL
    monkeypatch.setattr(add, "job_priority", "high", raising=False)
    assert fresh(add.delay(1, 2)).priority == Priority.HIGH


def test_settings_that_changed_are_heeded(settings: Any) -> None:
    add.delay(1, 2)
    settings.JOBS = {"MAX_ATTEMPTS": 3}
    assert fresh(add.delay(1, 2)).max_attempts == 3


# --- What Celery's configuration says -------------------------------------------------------------------


def test_routes_that_changed_are_heeded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert outbox.queue_of("", add.name, add, {}) == "default"
    monkeypatch.setattr(app.amqp, "router", Router([MapRoute({add.name: {"queue": "mail"}})], app.amqp.queues, app=app))
    assert outbox.queue_of("", add.name, add, {}) == "mail"
    monkeypatch.undo()
    assert outbox.queue_of("", add.name, add, {}) == "default"


def test_a_router_of_the_projects_own_is_asked_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    queues = iter(["mail", "media"])

    def route(*_: Any, **__: Any) -> dict[str, str]:
        return {"queue": next(queues)}

    monkeypatch.setattr(app.amqp, "router", Router([route], app.amqp.queues, app=app))
    assert [outbox.queue_of("", add.name, add, {}) for _ in range(2)] == ["mail", "media"]


def test_the_configuration_is_asked_again_when_it_changed(settings: Any) -> None:
    assert not publisher.in_use().watched
    app.conf.task_send_sent_event = True
    try:
        assert publisher.in_use().watched
    finally:
        del app.conf.changes["task_send_sent_event"]
    assert not publisher.in_use().watched
    settings.CELERY_TASK_SEND_SENT_EVENT = True
    assert publisher.in_use().watched
