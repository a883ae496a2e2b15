"""Jobs over HTTP: what is answered, to whom."""

from uuid import uuid4

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from tests.jobs.admin import rows

NAMES = ["jobs:job", "jobs:progress", "admin:jobs_job_progress"]


def viewer(client: Client, *permissions: str) -> Client:
    client.force_login(rows.operator(*permissions))
    return client


def test_progress_is_told_in_the_task_s_own_units(db: None, client: Client) -> None:
    job = rows.job("running", progress={"done": 421, "total": 1000, "unit": "rows", "message": "line 422"})
    told = viewer(client, "jobs.view_job").get(reverse("jobs:progress", args=[job.pk])).json()
    told.pop("updated")
    assert told == {
        "id": str(job.pk), "state": "running", "attempt": 1, "done": 421, "total": 1000, "unit": "rows",
        "message": "line 422", "percent": 42,
    }  # fmt: skip


def test_progress_without_a_total_has_no_percent(db: None, client: Client) -> None:
    job = rows.job("running", progress={"done": 421, "total": None})
    assert viewer(client, "jobs.view_job").get(reverse("jobs:progress", args=[job.pk])).json()["percent"] is None


def test_a_custom_state_of_celery_is_told_as_progress(db: None, client: Client) -> None:
    job = rows.job("running", progress={"celery_state": "PROGRESS", "meta": {"current": 5, "total": 10}})
    told = viewer(client, "jobs.view_job").get(reverse("jobs:progress", args=[job.pk])).json()
    assert (told["percent"], told["message"]) == (50, "PROGRESS")


def test_a_job_is_told_with_its_secrets_hidden(db: None, client: Client) -> None:
    job = rows.job(payload='{"args":[],"kwargs":{"api_key":"swordfish","n":1}}', metadata={"password": "swordfish"})
    answer = viewer(client, "jobs.view_job").get(reverse("jobs:job", args=[job.pk]))
    assert b"swordfish" not in answer.content
    assert answer.json()["payload"] == {"args": [], "kwargs": {"api_key": "••••••", "n": 1}}


@pytest.mark.parametrize("name", NAMES)
def test_a_stranger_is_told_to_log_in_without_a_redirect(db: None, client: Client, name: str) -> None:
    answer = client.get(reverse(name, args=[rows.job().pk]))
    assert (answer.status_code, answer.json()) == (401, {"error": "Log in first."})


@pytest.mark.parametrize("name", NAMES)
def test_without_the_permission_it_is_refused_in_json(db: None, client: Client, name: str) -> None:
    answer = viewer(client).get(reverse(name, args=[rows.job().pk]))
    assert (answer.status_code, answer.json()) == (403, {"error": "This needs the permission jobs.view_job."})


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_job_is_not_found_in_json(db: None, client: Client, name: str) -> None:
    unknown = uuid4()
    answer = viewer(client, "jobs.view_job").get(reverse(name, args=[unknown]))
    assert (answer.status_code, answer.json()) == (404, {"error": f"There is no job {unknown}."})


def test_nothing_is_changed_over_http(db: None, client: Client) -> None:
    assert viewer(client, "jobs.view_job").post(reverse("jobs:job", args=[rows.job().pk])).status_code == 405


def test_what_has_not_changed_is_not_sent_again(db: None, client: Client) -> None:
    address = reverse("jobs:progress", args=[rows.job().pk])
    first = viewer(client, "jobs.view_job").get(address)
    assert client.get(address, headers={"if-none-match": first["ETag"]}).status_code == 304


def test_asking_for_progress_reads_no_fat_column(db: None, client: Client) -> None:
    address = reverse("jobs:progress", args=[rows.job().pk])
    viewer(client, "jobs.view_job").get(address)
    with CaptureQueriesContext(connection) as queries:
        client.get(address)
    asked = [query["sql"] for query in queries if "jobs_job" in query["sql"]]
    assert len(asked) == 1
    assert "payload" not in asked[0]
    assert "traceback" not in asked[0]
