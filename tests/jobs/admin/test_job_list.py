"""The list of jobs: bounded, searchable, without a way to change a row by hand."""

from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from jobs import horizon
from jobs.admin.paginator import CappedPaginator
from jobs.models import Job, Leader
from tests.jobs.admin import rows
from tests.jobs.admin.conftest import Visitor

LIST = reverse("admin:jobs_job_changelist")


def listed(client: Client, **query: Any) -> list[Job]:
    return list(client.get(LIST, query).context["cl"].result_list)


def test_the_list_needs_the_permission_to_view(visitor: Visitor) -> None:
    assert visitor("jobs.view_worker").get(LIST).status_code == 403


def test_newest_first(chief: Client) -> None:
    old = rows.job(created_at=timezone.now() - timedelta(days=1))
    new = rows.job()
    assert listed(chief) == [new, old]


def test_a_list_does_not_read_payloads_results_or_tracebacks(chief: Client) -> None:
    rows.job()
    with CaptureQueriesContext(
        connection,
    ) as queries:
        chief.get(LIST)
    assert not [q for q in queries if '"payload"' in q["sql"] or '"traceback"' in q["sql"]]


def test_the_number_of_queries_does_not_grow_with_the_rows(chief: Client) -> None:
    counts = []
    for _ in range(2):
        for _ in range(5):
            rows.job("running", progress={"done": 1, "total": 2}, tenant="acme")
        chief.get(LIST)
        with CaptureQueriesContext(connection) as queries:
            chief.get(LIST)
        counts.append(len(queries))
    assert counts[0] == counts[1]


def test_counting_stops_at_the_cap(chief: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CappedPaginator, "CAP", 3)
    for _ in range(5):
        rows.job()
    page = chief.get(LIST)
    assert page.context["cl"].result_count == 3
    assert "3+ jobs" in page.content.decode()


@pytest.mark.parametrize("size", [0, 4, 5, 6])
def test_a_count_below_the_cap_is_exact(db: None, size: int) -> None:
    paginator = CappedPaginator(Job.objects.order_by("id"), 2)
    paginator.CAP = 5  # type: ignore[misc]
    for _ in range(size):
        rows.job()
    assert paginator.shown == (str(size) if size <= 5 else "5+")


@pytest.mark.parametrize(
    "query", ["state=failed", "queue=mail", "priority=10", "task=shop.tasks.greet", "within=1h", "tenant=acme"]
)
def test_each_filter_narrows_the_list(chief: Client, query: str) -> None:
    wanted = rows.job("failed", queue="mail", priority=10, task="shop.tasks.greet", tenant="acme")
    rows.job(created_at=timezone.now() - timedelta(days=9))
    name, value = query.split("=")
    assert listed(chief, **{name: value}) == [wanted]


def test_all_unfinished_can_be_listed(chief: Client) -> None:
    wanted = {rows.job(state) for state in ("pending", "running", "retrying", "reserved")}
    rows.job("completed")
    assert set(listed(chief, state="unfinished")) == wanted


def test_only_tasks_that_occur_are_offered(chief: Client) -> None:
    for task in ("shop.b", "shop.a", "shop.b"):
        rows.job(task=task)
    spec = next(s for s in chief.get(LIST).context["cl"].filter_specs if s.title == "task")
    assert spec.lookup_choices == [("shop.a", "a"), ("shop.b", "b")]


@pytest.mark.parametrize("name", ["parent", "group", "root", "original"])
def test_a_filter_that_is_not_an_id_leads_back_to_the_list(chief: Client, name: str) -> None:
    assert chief.get(LIST, {name: "nonsense"}).status_code == 302


def test_a_filter_set_by_a_link_shows_itself(chief: Client) -> None:
    parent = rows.job()
    child = rows.job(parent_id=parent.pk)
    page = chief.get(LIST, {"parent": str(parent.pk)})
    assert list(page.context["cl"].result_list) == [child]
    assert "By parent" in page.content.decode()


def test_a_job_is_found_by_id_end_of_id_key_correlation_id_and_beginning_of_task(chief: Client) -> None:
    wanted = rows.job(key="charge:7", correlation_id="req-1", task="shop.tasks.Greet")
    rows.job(key="charge:8", correlation_id="req-2")
    terms = [str(wanted.pk), str(wanted.pk)[-12:], "charge:7", "req-1", "gre", "shop.tasks.g", "SHOP.tasks.Greet"]
    assert [listed(chief, q=term) for term in terms] == [[wanted]] * len(terms)


def test_a_search_without_a_match_says_so_and_offers_a_way_out(chief: Client) -> None:
    rows.job()
    page = chief.get(LIST, {"q": "nobody"}).content.decode()
    assert "Nothing matches" in page
    assert "Clear search and filters" in page


def test_an_empty_table_shows_how_to_enqueue(chief: Client) -> None:
    assert "No jobs yet" in chief.get(LIST).content.decode()


def test_without_a_worker_the_list_says_how_to_start_one(chief: Client) -> None:
    rows.job()
    assert "celery -A &lt;project&gt; worker" in chief.get(LIST).content.decode()


def test_a_conductor_that_ticks_is_not_complained_about(chief: Client) -> None:
    rows.job()
    assert "No conductor is ticking" in chief.get(LIST).content.decode()
    now = timezone.now()
    Leader.objects.create(office="conductor", holder="x", until=now, ticked_at=now)
    assert "No conductor is ticking" not in chief.get(LIST).content.decode()


@pytest.fixture
def short_sighted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists that look no further than three jobs where no index leads."""
    monkeypatch.setattr(horizon, "HORIZON", 2)


def aged(state: str = "completed", **columns: Any) -> list[Job]:
    """Five jobs, the newest first."""
    at = timezone.now()
    return [
        rows.job(state, created_at=at - timedelta(hours=n), finished_at=at - timedelta(hours=n), **columns)
        for n in range(5)
    ]


def test_what_no_index_serves_is_only_looked_for_among_the_newest(chief: Client, short_sighted: None) -> None:
    aged(priority=10)
    page = chief.get(LIST, {"priority": "10"})
    assert page.context["cl"].result_count == 3
    assert "only the newest 10,000 jobs" in page.content.decode()


@pytest.mark.parametrize(
    ("query", "columns"),
    [
        ({"queue": "mail", "priority": "10"}, {"queue": "mail", "priority": 10}),
        ({"tenant": "acme", "state": "completed"}, {"tenant": "acme"}),
        ({"task": "shop.a", "queue": "mail"}, {"task": "shop.a", "queue": "mail"}),
        ({"state": "failed", "task": "shop.a"}, {"state": "failed", "task": "shop.a"}),
    ],
)
def test_what_an_index_leads_to_is_looked_for_among_the_newest_that_it_leaves(
    chief: Client, short_sighted: None, query: dict[str, str], columns: dict[str, Any]
) -> None:
    wanted = aged(**columns)
    for _ in range(5):
        rows.job("completed", task="shop.b", queue="other", tenant="other")
    assert listed(chief, **query) == wanted[:3]


def test_jobs_of_the_last_moment_that_is_looked_at_are_all_found(chief: Client, short_sighted: None) -> None:
    at = timezone.now()
    for _ in range(5):
        rows.job("completed", queue="mail", priority=10, created_at=at, finished_at=at)
    assert len(listed(chief, queue="mail", priority="10")) == 5


@pytest.mark.parametrize("query", [{"queue": "mail"}, {"task": "shop.a"}, {"tenant": "acme"}, {"state": "completed"}])
def test_a_filter_with_an_index_is_looked_through_completely(
    chief: Client, short_sighted: None, query: dict[str, str]
) -> None:
    wanted = aged(queue="mail", task="shop.a", tenant="acme")
    rows.job("running")
    assert listed(chief, **query) == wanted


def test_unfinished_jobs_are_looked_through_completely(chief: Client, short_sighted: None) -> None:
    for _ in range(5):
        rows.job("pending", priority=10)
    aged(priority=10)
    assert len(listed(chief, priority="10", state="pending")) == 5


def test_two_filters_look_at_the_newest_that_the_rarer_one_leaves(chief: Client, short_sighted: None) -> None:
    failed = aged("failed", queue="mail")
    aged(queue="mail")
    assert listed(chief, state="failed", queue="mail") == failed[:3]


def test_jobs_in_a_final_state_are_listed_as_they_ended(chief: Client) -> None:
    now = timezone.now()
    late = rows.job("failed", created_at=now - timedelta(days=2), finished_at=now)
    early = rows.job("failed", created_at=now - timedelta(days=1), finished_at=now - timedelta(hours=1))
    assert listed(chief, state="failed") == [late, early]


def test_the_jobs_of_one_flow_are_found_finished_or_not(chief: Client, short_sighted: None) -> None:
    flow = {job.pk for job in aged(correlation_id="req-1")} | {rows.job("running", correlation_id="req-1").pk}
    rows.job(correlation_id="req-2")
    assert {job.pk for job in listed(chief, correlation="req-1")} == flow
    assert {job.pk for job in listed(chief, q="req-1")} == flow


def test_nothing_is_added_or_deleted_by_hand(chief: Client) -> None:
    job = rows.job()
    assert chief.get(f"{LIST}add/").status_code == 403
    assert chief.post(f"{LIST}{job.pk}/delete/", {"post": "yes"}).status_code == 403
    assert Job.objects.filter(pk=job.pk).exists()


def test_the_pages_carry_no_inline_script_and_no_inline_style(chief: Client) -> None:
    job = rows.job("running", progress={"done": 1, "total": 2})
    for address in (LIST, reverse("admin:jobs_job_change", args=[job.pk])):
        html = chief.get(address).content.decode()
        assert "<script>" not in html
        assert " style=" not in html
        assert "onclick=" not in html
