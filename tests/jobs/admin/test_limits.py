"""Limits and weights in the admin: what is declared beside what holds; set and withdrawn by those who may."""

from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from jobs import control, gauges, lanes, lifecycle
from jobs.models import Act, Allotment, Job, Worker
from jobs.states import State
from tests.jobs.admin.conftest import Visitor, said
from tests.platform import running
from tests.sample.tasks import alone, for_user, three_at_a_time, through_gateway

LIST = reverse("admin:jobs_allotment_changelist")
ACT = reverse("admin:jobs_allotment_act")
PAGE = reverse("admin:jobs_allotment_limit")
SLOTS, TOKENS, WEIGHT = (reverse(f"admin:jobs_allotment_set_{kind}") for kind in ("slots", "tokens", "weight"))


@pytest.fixture(autouse=True)
def around(db: None, sent: list[str]) -> Iterator[None]:
    """A worker with many hands."""
    lanes._flows.clear()
    now = lifecycle.database_now()
    Worker.objects.create(name="w", pid=1, started_at=now, seen_at=now, queues=["default"], concurrency=20)
    yield
    lanes._flows.clear()


def text(response: Any) -> str:
    return str(response.content.decode())


def declared(client: Client, name: str) -> Any:
    return next(row for row in client.get(LIST).context["declared"] if row.rule.name == name)


def test_the_list_shows_each_declared_limit_with_its_tasks(chief: Client) -> None:
    row = declared(chief, "user:{user}")
    assert (row.in_code, row.now, row.fullest) == ("2 at a time", "", None)
    assert row.rule.tasks == (for_user.name,)
    assert declared(chief, "gateway").in_code == "10/s, burst 3"


def test_what_holds_stands_beside_what_is_declared_with_who_said_it_and_why(chief: Client) -> None:
    control.allot("user:{user}", slots=5, by="ann", reason="month's end")
    row = declared(chief, "user:{user}")
    assert (row.in_code, row.now, row.said.by) == ("2 at a time", "5 at a time", "ann")
    html = text(chief.get(LIST))
    assert "month&#x27;s end" in html


def test_the_fullest_key_is_shown_with_what_is_used_of_it(chief: Client) -> None:
    for user in ("ada", "bob"):
        for_user.apply_async((user, user))
    for_user.apply_async(("again", "bob"))
    lanes.release(10)
    row = declared(chief, "user:{user}")
    assert (row.fullest.key, row.fullest.said, row.keys) == ("user:bob", "2 of 2", 2)
    through_gateway.apply_async(("x",), tenant="t")
    lanes.release(10)
    assert declared(chief, "gateway").fullest.said == "2 of 3 left"


def test_tasks_that_limit_themselves_by_one_template_are_listed_each_with_its_own(chief: Client) -> None:
    assert declared(chief, alone.name).in_code == "1 at a time"
    assert declared(chief, three_at_a_time.name).in_code == "3 at a time"
    control.allot("{task}", slots=7, by="ann", reason="x")
    assert declared(chief, three_at_a_time.name).now == "7 at a time"


def test_the_page_of_a_key_names_the_jobs_that_have_its_slots(chief: Client) -> None:
    first = alone.delay("a")
    alone.delay("b")
    lanes.release(10)
    html = text(chief.get(PAGE, {"kind": "slots", "name": alone.name}))
    assert reverse("admin:jobs_job_change", args=[first.id]) in html
    assert "1 of 1" in html
    assert "1 line" in html


def test_the_page_of_a_template_lists_its_keys_the_fullest_first(chief: Client) -> None:
    for_user.apply_async(("x", "ada"))
    for number in range(3):
        for_user.apply_async((str(number), "bob"))
    lanes.release(10)
    keys = chief.get(PAGE, {"kind": "slots", "name": "user:{user}"}).context["keys"]
    assert [(gauge.key, gauge.said, gauge.lanes) for gauge in keys] == [
        ("user:bob", "2 of 2", 1),
        ("user:ada", "1 of 2", 0),
    ]


@pytest.mark.parametrize("query", [{}, {"kind": "weight", "name": "x"}, {"kind": "slots"}])
def test_a_page_of_nothing_is_not_found(chief: Client, query: dict[str, str]) -> None:
    assert chief.get(PAGE, query).status_code == 404


# --- Setting ----------------------------------------------------------------------------------------


def test_a_limit_is_set_with_name_and_reason_and_holds_with_the_next_release(chief: Client) -> None:
    for letter in "abc":
        alone.delay(letter)
    assert len(lanes.release(10)) == 1
    answer = chief.post(SLOTS, {"name": alone.name, "slots": "3", "reason": "it is night"}, follow=True)
    assert said(answer) == [f"From the next release on, {alone.name} has 3 at a time."]
    lanes.release(10)
    assert Job.objects.filter(state=State.RESERVED).count() == 3
    act = Act.objects.get(verb="allot")
    assert (act.by, act.reason, act.target, act.details) == (
        "admin",
        "it is night",
        f"slots {alone.name}",
        {"said": "3"},
    )


def test_it_holds_at_once_also_while_all_that_went_by_it_run(chief: Client) -> None:
    for letter in "abc":
        alone.delay(letter)
    (first,) = lanes.release(10)
    running(first.pk)
    chief.post(SLOTS, {"name": "{task}", "slots": "3", "reason": "it is night"})
    assert len(lanes.release(10)) == 2


def test_a_rate_and_a_weight_are_set(chief: Client) -> None:
    chief.post(TOKENS, {"name": "gateway", "rate": "5/m", "burst": "2", "reason": "trouble"})
    chief.post(WEIGHT, {"name": "acme", "weight": "2.5", "reason": "pays"})
    assert [(row.kind, row.name, row.said) for row in Allotment.objects.order_by("kind")] == [
        ("tokens", "gateway", "5/m, burst 2"),
        ("weight", "acme", "2.5"),
    ]


def test_the_form_begins_with_what_holds(chief: Client) -> None:
    assert chief.get(TOKENS, {"name": "gateway"}).context["form"].initial["rate"] == "10/s"
    control.allot("gateway", rate="6/m", burst=2, by="ann", reason="x")
    form = chief.get(TOKENS, {"name": "gateway"}).context["form"]
    assert (form.initial["rate"], form.initial["burst"]) == ("6/m", "2")


@pytest.mark.parametrize(
    ("address", "fields", "taught"),
    [
        (SLOTS, {"name": "user:{user}", "slots": "0"}, "To let none run, pause the queue or the task."),
        (SLOTS, {"name": "user:{user}", "slots": "many"}, "Enter a whole number."),
        (SLOTS, {"name": "user:{usr}", "slots": "1"}, "Did you mean user:{user}?"),
        (SLOTS, {"name": "gateway", "slots": "1"}, "Tasks declare gateway as a limit of starts in a span of time"),
        (TOKENS, {"name": "gateway", "rate": "fast"}, "&quot;20/s&quot;, &quot;100/m&quot;"),
        (TOKENS, {"name": "gateway", "rate": "0/s"}, "say how many in which span"),
        (WEIGHT, {"name": "acme", "weight": "0"}, "A weight is a number from 0.001 to 1000"),
        (WEIGHT, {"name": "acme", "weight": "nan"}, "Enter a number."),
        (SLOTS, {"name": "user:{user}", "slots": "3", "reason": " "}, "This field is required."),
    ],
)
def test_what_makes_no_sense_is_refused_with_what_would(
    chief: Client, address: str, fields: Any, taught: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Another test may have declared a task whose key can be any text.
    monkeypatch.setattr(gauges, "rules_of", lambda kind, name: [])
    html = text(chief.post(address, {"reason": "x", **fields}))
    assert taught in html
    assert not Allotment.objects.exists()
    assert not Act.objects.exists()


def test_what_was_set_is_withdrawn_with_a_record(chief: Client) -> None:
    row = control.allot("user:{user}", slots=5, by="ann", reason="x")
    pk = Allotment.objects.get(name=row.name).pk
    assert f'value="withdraw {pk}"' in text(chief.get(LIST))
    asked = chief.post(ACT, {"press": f"withdraw {pk}", "action": ""})
    assert "Withdraw 1 limit or weight?" in text(asked)
    answer = chief.post(
        ACT, {"verb": "withdraw", "ids": str(pk), "confirmed": "yes", "reason": "it is over"}, follow=True
    )
    assert said(answer) == ["1 limit or weight withdrawn."]
    assert not Allotment.objects.exists()
    act = Act.objects.get(verb="withdraw")
    assert (act.by, act.target, act.reason) == ("admin", "slots user:{user}", "it is over")


def test_what_nothing_declares_any_more_is_marked(chief: Client) -> None:
    control.allot("gone", rate="1/s", by="ann", reason="x")
    assert "nothing declares it" in text(chief.get(LIST))


# --- Who may --------------------------------------------------------------------------------------------


def test_who_may_only_view_sees_and_cannot_set(visitor: Visitor) -> None:
    control.allot("user:{user}", slots=5, by="ann", reason="x")
    client, pk = visitor("jobs.view_allotment"), Allotment.objects.get().pk
    for html in (text(client.get(LIST)), text(client.get(PAGE, {"kind": "slots", "name": "user:{user}"}))):
        assert "5" in html
        assert "Change…" not in html
        assert "Withdraw…" not in html
    assert "Limit a rate" not in text(client.get(LIST))
    for address, fields in ((SLOTS, {"slots": "9"}), (TOKENS, {"rate": "9/s"}), (WEIGHT, {"weight": "9"})):
        assert client.get(address).status_code == 403
        assert client.post(address, {"name": "user:{user}", "reason": "x", **fields}).status_code == 403
    gone = {"verb": "withdraw", "ids": str(pk), "confirmed": "yes"}
    assert client.post(ACT, gone).status_code == 403
    assert Allotment.objects.get().said == "5"


def test_who_may_set_but_not_view_sees_no_list(visitor: Visitor) -> None:
    client = visitor("jobs.set_limit")
    assert client.get(LIST).status_code == 403
    assert client.get(PAGE, {"kind": "slots", "name": "x"}).status_code == 403


def test_setting_needs_no_other_permission(visitor: Visitor) -> None:
    client = visitor("jobs.view_allotment", "jobs.set_limit")
    client.post(WEIGHT, {"name": "acme", "weight": "2", "reason": "x"})
    assert Act.objects.get().by == "ann"
    assert "Change…" in text(client.get(LIST))


def test_somebody_who_is_not_logged_in_is_asked_to(client: Client) -> None:
    for address in (LIST, PAGE, SLOTS):
        assert client.get(address).status_code == 302


def test_a_form_without_its_token_is_refused(admin_user: Any) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(admin_user)
    assert client.post(WEIGHT, {"name": "acme", "weight": "2", "reason": "x"}).status_code == 403
    assert not Allotment.objects.exists()


def test_markup_in_a_key_or_a_reason_is_text(chief: Client) -> None:
    control.allot("<b>x</b>", slots=1, by="<i>y</i>", reason="<u>z</u>")
    html = text(chief.get(LIST)) + text(chief.get(PAGE, {"kind": "slots", "name": "<b>x</b>"}))
    assert not [tag for tag in ("<b>x", "<i>y", "<u>z") if tag in html]


# --- Size -------------------------------------------------------------------------------------------


def test_a_page_asks_as_often_for_many_as_for_few(chief: Client) -> None:
    def asked() -> int:
        with CaptureQueriesContext(connection) as queries:
            chief.get(LIST)
        return len(queries)

    control.allot("user:0", slots=1, by="ann")
    asked()
    few = asked()
    for number in range(60):
        control.allot(f"user:{number}", slots=1, by="ann")
        for_user.apply_async((str(number), str(number)))
    lanes.release(100)
    assert asked() <= few + 2


def test_a_long_list_is_paged_and_found_by_the_beginning_of_a_name(chief: Client) -> None:
    for number in range(60):
        control.allot(f"user:{number}", slots=1, by="ann")
    control.allot("acme", weight=2, by="ann")
    assert len(chief.get(LIST).context["cl"].result_list) == 50
    assert [row.name for row in chief.get(LIST, {"q": "acm"}).context["cl"].result_list] == ["acme"]
