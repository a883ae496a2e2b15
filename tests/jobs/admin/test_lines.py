"""What waits, in the admin: queues, lines by priority and tenant, and why; at a bounded cost."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from jobs import bulk, control, lanes, lifecycle
from jobs.models import Act, Job, Leader, Share, Worker
from jobs.states import State
from tests.jobs.admin.conftest import Visitor
from tests.sample.tasks import alone, for_user, note, through_gateway

LIST = reverse("admin:jobs_share_changelist")


@pytest.fixture(autouse=True)
def around(db: None, sent: list[str]) -> Iterator[None]:
    """A worker with many hands, and a conductor."""
    lanes._flows.clear()
    now = lifecycle.database_now()
    Worker.objects.create(name="w", pid=1, started_at=now, seen_at=now, queues=["default"], concurrency=20)
    Leader.objects.create(office="conductor", holder="x", until=now + timedelta(hours=1), ticked_at=now)
    yield
    lanes._flows.clear()


def text(response: Any) -> str:
    return str(response.content.decode())


def cells(client: Client, **query: Any) -> list[tuple[str, ...]]:
    """The lines as the list shows them, without markup."""
    admin = client.get(LIST, query).context["cl"].model_admin
    rows = client.get(LIST, query).context["cl"].result_list
    return [(admin.whose(row), admin.priority_name(row), admin.many(row), str(admin.why(row))) for row in rows]


def test_each_line_says_whose_how_many_and_for_what(chief: Client) -> None:
    for letter in "abc":
        alone.apply_async((letter,), tenant="acme")
    for number in range(2):  # of which one goes ahead
        note.apply_async((str(number),), priority="low", tenant="bolt", queue="mail")
    lanes.release(10)
    found = cells(chief)
    assert [row[:3] for row in found] == [("acme", "normal", "2"), ("bolt", "low", "1")]
    assert f">{alone.name}</a>" in found[0][3]
    assert "a slot of" in found[0][3]
    assert "its turn" in found[1][3]


def test_a_line_of_a_paused_queue_waits_for_the_pause(chief: Client) -> None:
    note.apply_async(("a",), tenant="acme", queue="mail")
    control.pause(queue="mail", reason="", by="ann")
    lanes.release(10)
    assert "the pause of <a href" in cells(chief)[0][3]


def test_a_line_with_several_reasons_tells_how_many_wait_for_each(chief: Client) -> None:
    control.allot("gateway", rate="1/h", burst=1, by="ann")
    for number in range(3):
        through_gateway.apply_async((str(number),), tenant="acme")
        alone.apply_async((str(number),), tenant="acme")
    lanes.release(10)
    ((_, _, many, why),) = cells(chief)
    assert many == "4"
    assert why.count("jobs-quiet") == 2
    assert "a token of" in why
    assert "a slot of" in why


def test_the_page_of_a_queue_explains_it_with_links(chief: Client) -> None:
    first, _ = alone.delay("a"), alone.delay("b")
    lanes.release(10)
    html = text(chief.get(LIST, {"queue": "default"}))
    assert "1 job waits in default" in html
    assert f'<a href="{reverse("admin:jobs_job_change", args=[first.id])}">' in html
    assert f"{reverse('admin:jobs_allotment_limit')}?kind=slots&amp;name={alone.name}" in html


def test_the_list_of_queues_tells_which_is_paused_and_how_many_wait(chief: Client) -> None:
    note.apply_async(("x",), tenant="t", queue="reports")
    control.pause(queue="reports", reason="a move", by="ann")
    queues = {row.name: row for row in chief.get(LIST).context["queues"]}
    assert str(queues["reports"].waiting) == "1"
    assert queues["reports"].paused.by == "ann"
    assert queues["default"].paused is None


def test_an_unknown_queue_is_told_in_a_sentence(chief: Client) -> None:
    assert "no queue &#x27;nowhere&#x27;" in text(chief.get(LIST, {"queue": "nowhere"}))


def test_a_line_has_a_page_with_its_lanes(chief: Client) -> None:
    alone.apply_async(("a",), tenant="acme")
    alone.apply_async(("b",), tenant="acme")
    note.apply_async(("x",), tenant="acme", countdown=60)
    lanes.release(10)
    html = text(chief.get(reverse("admin:jobs_share_change", args=[Share.objects.get().pk])))
    assert alone.name in html
    assert "its time" in html


def test_lines_are_found_by_tenant_priority_and_queue(chief: Client) -> None:
    Worker.objects.all().delete()
    for tenant in ("acme", "bolt"):
        for priority in ("high", "low"):
            note.apply_async(("x",), tenant=tenant, priority=priority)
    lanes.release(10)
    assert [row[0] for row in cells(chief, q="bo")] == ["bolt"] * 2
    assert {row[1] for row in cells(chief, priority="10")} == {"high"}
    assert cells(chief, queue="mail") == []


def test_who_may_see_jobs_may_see_lines_and_nobody_else(visitor: Visitor) -> None:
    client = visitor("jobs.view_worker", "jobs.view_allotment")
    assert client.get(LIST).status_code == 403
    note.apply_async(("x",), tenant="t")
    lanes.release(0)
    share = Share.objects.first()
    page = reverse("admin:jobs_share_change", args=[share.pk if share else 1])
    assert client.get(page).status_code == 403


def test_who_may_not_pause_is_offered_no_pause(visitor: Visitor) -> None:
    client = visitor("jobs.view_job")
    assert client.get(LIST).status_code == 200
    assert "Pause it…" not in text(client.get(LIST, {"queue": "default"}))


def test_a_queue_is_paused_from_its_page(chief: Client) -> None:
    asked = chief.get(reverse("admin:jobs_pause_pause"), {"what": "queue:default"})
    assert '<option value="queue:default" selected>' in text(asked)


def test_a_task_that_nobody_has_enqueued_can_be_paused(chief: Client) -> None:
    answer = chief.post(reverse("admin:jobs_pause_pause"), {"what": f"task:{note.name}", "reason": "x"})
    assert answer.status_code == 302


def test_the_reason_of_a_resume_is_kept_and_leads_back_to_the_list(chief: Client) -> None:
    control.pause(queue="mail", reason="a move", by="ann")
    from jobs.models import Pause

    pk = Pause.objects.get().pk
    answer = chief.post(
        reverse("admin:jobs_pause_act"), {"verb": "resume", "ids": str(pk), "confirmed": "yes", "reason": "moved"},
        follow=True,
    )  # fmt: skip
    assert [str(message) for message in answer.context["messages"]] == ["1 pause ended."]
    act = Act.objects.get(verb="resume")
    assert (act.by, act.reason) == ("admin", "moved")


def test_a_page_of_a_job_says_why_it_waits_with_links(chief: Client) -> None:
    first, second = alone.delay("a"), alone.delay("b")
    lanes.release(10)
    html = text(chief.get(reverse("admin:jobs_job_change", args=[second.id])))
    assert "which is full" not in html
    assert f'The limit <a href="{reverse("admin:jobs_allotment_limit")}?kind=slots&amp;name={alone.name}">' in html
    assert reverse("admin:jobs_job_change", args=[first.id]) in html


@pytest.mark.parametrize("state", list(State))
def test_a_page_of_a_job_in_any_state_can_be_read(chief: Client, state: State) -> None:
    from tests.jobs.admin import rows

    job = rows.job(state.value)
    assert chief.get(reverse("admin:jobs_job_change", args=[job.pk])).status_code == 200


def test_a_list_asks_as_often_for_many_lines_as_for_few(chief: Client) -> None:
    def asked(**query: Any) -> int:
        with CaptureQueriesContext(connection) as queries:
            chief.get(LIST, query)
        return len(queries)

    Worker.objects.all().delete()
    note.apply_async(("x",), tenant="t")
    lanes.release(10)
    asked()
    few, of_queue = asked(), asked(queue="default")
    for number in range(80):
        for_user.apply_async((str(number), str(number)), tenant=f"t{number}")
    bulk.bulk(note, [str(n) for n in range(100)], tenant="flood")
    lanes.release(10)
    assert Share.objects.count() > 80
    assert asked() <= few + 2  # some lanes have many jobs, which are counted further
    assert asked(queue="default") <= of_queue + 5
    assert Job.objects.count() > 180
