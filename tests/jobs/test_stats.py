"""Reading jobs: one, a list by filters, and numbers."""

from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest

from jobs import control, horizon, lifecycle, stats
from jobs.errors import JobNotFound, OptionError
from jobs.models import Job
from tests.jobs.admin import rows
from tests.platform import attempt, running
from tests.sample.tasks import Charge, add, boom, note

pytestmark = pytest.mark.django_db


def test_one_job_is_found_by_its_id() -> None:
    job = add.delay(1, 2)
    assert str(stats.get(job.id).pk) == job.id


@pytest.mark.parametrize("unknown", [uuid4(), "not an id"])
def test_a_job_that_is_not_there_is_an_error(unknown: Any) -> None:
    with pytest.raises(JobNotFound, match="There is no job"):
        stats.get(unknown)


@pytest.fixture
def some() -> dict[str, str]:
    """Jobs of several kinds, by a name."""
    completed, failed = add.delay(1, 2), boom.delay()
    for job in (completed, failed):
        attempt(job.id)
    return {
        "completed": completed.id,
        "failed": failed.id,
        "charge": Charge.apply_async((7,), priority="high").id,
        "tagged": note.apply_async(("x",), tags=["nightly", "eu"], tenant="acme", key="mine").id,
        "mail": note.apply_async(("y",), queue="mail", priority="low").id,
    }


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ({"state": "completed"}, ["completed"]),
        ({"state": "failed"}, ["failed"]),
        ({"queue": "mail"}, ["mail"]),
        ({"priority": "high"}, ["charge"]),
        ({"priority": 30}, ["mail"]),
        ({"tag": "eu"}, ["tagged"]),
        ({"tag": "e"}, []),
        ({"task": "note"}, ["mail", "tagged"]),
        ({"task": note.name}, ["mail", "tagged"]),
        ({"tenant": "acme"}, ["tagged"]),
        ({"key": "mine"}, ["tagged"]),
        ({"task": "note", "queue": "mail"}, ["mail"]),
        ({"limit": 2}, ["mail", "tagged"]),
        ({"limit": 1, "offset": 1}, ["tagged"]),
    ],
)
def test_a_list_is_filtered_and_newest_first(some: dict[str, str], filters: dict[str, Any], found: list[str]) -> None:
    names = {job_id: name for name, job_id in some.items()}
    assert [names[str(job.pk)] for job in stats.find(**filters)] == found


def test_a_list_says_how_far_back_it_looked(some: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(horizon, "HORIZON", 2)
    back = stats.horizon(priority="normal")
    assert back == Job.objects.order_by("-created_at")[2].created_at
    assert {job.created_at >= back for job in stats.find(priority="normal")} == {True}
    assert len(stats.find(priority="normal", until=back)) == 2


@pytest.mark.parametrize("filters", [{}, {"state": "completed"}, {"queue": "mail"}, {"task": "note"}, {"key": "mine"}])
def test_a_list_that_an_index_leads_looks_at_all(
    some: dict[str, str], filters: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(horizon, "HORIZON", 0)
    assert stats.horizon(**filters) is None


def test_a_list_is_bounded_by_time(some: dict[str, str]) -> None:
    now = lifecycle.database_now()
    assert len(stats.find(since=now - timedelta(hours=1))) == 5
    assert stats.find(until=now - timedelta(hours=1)) == []


def test_a_list_does_not_fetch_payloads(some: dict[str, str]) -> None:
    assert "payload" in stats.find(limit=1)[0].get_deferred_fields()


@pytest.mark.parametrize(
    ("filters", "sentence"),
    [
        ({"state": "complete"}, "Unknown state 'complete'. There are: pending"),
        ({"priority": "urgent"}, "Unknown priority 'urgent'"),
        ({"limit": 0}, "limit must be between 1 and 1000"),
        ({"limit": 5000}, "limit must be between 1 and 1000"),
        ({"offset": -1}, "offset 0 or more"),
    ],
)
def test_a_filter_that_cannot_be_is_refused(filters: dict[str, Any], sentence: str) -> None:
    with pytest.raises(OptionError, match=sentence):
        stats.find(**filters)


def test_the_numbers_add_up(some: dict[str, str]) -> None:
    numbers = stats.statistics()
    assert (numbers["total"], numbers["unfinished"]) == (5, 3)
    assert (numbers["per_state"]["reserved"], numbers["per_state"]["pending"]) == (0, 3)
    assert numbers["per_state"]["running"] == 0
    assert numbers["per_queue"] == {"default": 1, "mail": 1, "payments": 1}
    assert numbers["per_priority"] == {"high": 1, "normal": 1, "low": 1}


def test_the_numbers_of_nothing_are_zero() -> None:
    numbers = stats.statistics()
    assert (numbers["total"], numbers["oldest_due"]) == (0, None)


def test_the_numbers_tell_what_is_paused_and_what_waits_longest(some: dict[str, str]) -> None:
    control.pause(queue="mail", reason="x", by="ann")
    Job.objects.filter(pk=some["charge"]).update(due_at=lifecycle.database_now() - timedelta(hours=1))
    numbers = stats.statistics()
    assert numbers["paused"] == ["queue mail"]
    assert numbers["oldest_due"] < lifecycle.database_now() - timedelta(minutes=59)


def test_a_running_job_counts_as_unfinished() -> None:
    running(add.delay(1, 2).id)
    assert stats.statistics()["per_state"]["running"] == 1


def test_a_task_is_found_among_a_thousand_others() -> None:
    job = stats.get(add.delay(1, 2).id)
    copies = [(n, lifecycle.database_now()) for n in range(600)]
    Job.objects.bulk_create(
        Job(id=uuid4(), task=f"a.b{n}", payload="{}", queue="default", created_at=now, max_attempts=1)
        for n, now in copies
    )
    assert [found.pk for found in stats.find(task=add.name)] == [job.pk]
    assert [found.pk for found in stats.find(task="add")] == [job.pk]


def test_a_task_whose_name_has_no_dot_is_found() -> None:
    job = stats.get(add.delay(1, 2).id)
    Job.objects.update(task="add")
    assert [found.pk for found in stats.find(task="add")] == [job.pk]


def test_jobs_are_broken_down_by_what_is_asked_for() -> None:
    rows.job("completed", tenant="acme", priority=10)
    rows.job("pending", tenant="acme", priority=20)
    rows.job("failed", tenant="bolt", priority=20)
    per_tenant = stats.breakdown("tenant")
    assert per_tenant["back_to"] is None
    assert {name: (c["total"], c["completed"], c["failed"]) for name, c in per_tenant["counts"].items()} == {
        "acme": (2, 1, 0), "bolt": (1, 0, 1),
    }  # fmt: skip
    assert {name: c["total"] for name, c in stats.breakdown("priority")["counts"].items()} == {"high": 1, "normal": 2}
    with pytest.raises(OptionError, match="not by 'payload'"):
        stats.breakdown("payload")


def test_a_breakdown_counts_the_newest_and_says_how_far_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "NEWEST", 2)
    now = lifecycle.database_now()
    for days in (3, 2, 1):
        rows.job("pending", tenant=f"{days}", created_at=now - timedelta(days=days))
    told = stats.breakdown("tenant")
    assert (set(told["counts"]), told["back_to"]) == ({"1", "2"}, now - timedelta(days=2))
    assert set(stats.breakdown("tenant", since=now - timedelta(days=1, hours=1))["counts"]) == {"1"}
