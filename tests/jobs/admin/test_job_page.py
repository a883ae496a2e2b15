"""The page of a job: what it says in each state, and what it must not show."""

import json
from datetime import timedelta
from uuid import uuid4

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from jobs.admin import timeline
from jobs.models import Act, Checkpoint, FanIn, Job, Pause
from jobs.states import MEANING, State
from tests.jobs.admin import rows
from tests.jobs.admin.conftest import Visitor


def page(client: Client, job: Job) -> str:
    return client.get(reverse("admin:jobs_job_change", args=[job.pk])).content.decode()


@pytest.mark.parametrize("state", list(State))
def test_each_state_is_explained(chief: Client, state: State) -> None:
    assert MEANING[state].split(";")[0].capitalize() in page(chief, rows.job(state.value))


def test_an_unknown_job_leads_back_to_the_list_with_a_sentence(chief: Client) -> None:
    for unknown in (uuid4(), "nonsense"):
        answer = chief.get(reverse("admin:jobs_job_change", args=[unknown]), follow=True)
        assert f"There is no job {unknown}." in answer.content.decode()


def test_the_page_needs_the_permission_to_view(visitor: Visitor) -> None:
    address = reverse("admin:jobs_job_change", args=[rows.job().pk])
    assert visitor("jobs.view_worker").get(address).status_code == 403


def test_secrets_are_hidden_wherever_they_travel(chief: Client) -> None:
    job = rows.job(
        payload='{"args":[{"password":"swordfish"}],"kwargs":{"api_key":"swordfish","url":"redis://u:swordfish@h"}}',
        metadata={"session": {"token": "swordfish"}},
        delivery=json.dumps({"headers": {"Authorization": "swordfish"}}),
        result='{"card": "swordfish"}',
    )
    html = page(chief, job)
    assert "swordfish" not in html
    assert "••••••" in html


def test_a_positional_secret_is_hidden_by_the_name_of_its_parameter(
    chief: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jobs import shown

    monkeypatch.setattr(shown, "parameters", lambda task: ("order_id", "card_number"))
    assert "4111" not in page(chief, rows.job(payload='{"args":[7,"4111"],"kwargs":{}}'))


def test_markup_in_a_payload_is_text(chief: Client) -> None:
    job = rows.job(
        payload='{"args":["<script>alert(1)</script>"],"kwargs":{}}',
        reason="<b>x</b>",
        error_message="<i>y</i>",
        tags=["<u>"],
    )
    html = page(chief, job)
    assert not [tag for tag in ("<script>alert", "<b>x", "<i>y", "<u>") if tag in html]


def test_a_payload_that_is_not_json_is_shown_as_it_is(chief: Client) -> None:
    assert "no json at all" in page(chief, rows.job(payload="no json at all"))


def test_the_payload_is_shown_as_a_call(chief: Client) -> None:
    assert "ChargeOrder.delay(order_id=7)" in page(chief, rows.job())


def test_a_value_that_is_still_to_come_is_told_in_words(chief: Client) -> None:
    html = page(chief, rows.job(payload='{"args":[{"__mainstay_later__":true}],"kwargs":{}}'))
    assert "ChargeOrder.delay(&lt;result of the job before&gt;)" in html


def test_a_huge_result_is_cut(chief: Client) -> None:
    html = page(chief, rows.job("completed", result=json.dumps("x" * 100_000)))
    assert len(html) < 60_000


def test_the_timeline_ends_with_the_attempt_that_only_the_job_knows(db: None) -> None:
    job = rows.job("completed", attempt=3)
    rows.attempt(job, 1)
    rows.attempt(job, 2)
    assert [(e.number, e.outcome) for e in timeline.of_job(job)] == [
        (1, "transient"),
        (2, "transient"),
        (3, "completed"),
    ]


def test_a_recorded_last_attempt_is_not_shown_twice(db: None) -> None:
    job = rows.job("failed", attempt=2)
    rows.attempt(job, 1)
    rows.attempt(job, 2, decision="failed")
    assert [e.number for e in timeline.of_job(job)] == [1, 2]


def test_a_long_history_shows_its_latest_attempts(db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeline, "MOST_SHOWN", 3)
    job = rows.job("retrying", attempt=9)
    for number in range(1, 10):
        rows.attempt(job, number)
    assert [e.number for e in timeline.of_job(job)] == [7, 8, 9]


def test_an_attempt_says_what_was_decided_and_why(chief: Client) -> None:
    job = rows.job("retrying", attempt=1)
    rows.attempt(job, 1)
    html = page(chief, job)
    assert "Then retrying for 2.0 s: GatewayBusy is transient" in html


def test_the_application_s_frames_are_read_without_the_libraries(chief: Client) -> None:
    from jobs.admin.tracebacks import Traceback

    frames = Traceback(rows.TRACEBACK)
    assert "site-packages" not in frames.application
    assert 'File "/srv/shop/orders/gateway.py"' in frames.application
    assert frames.shortened


def test_a_traceback_of_libraries_only_is_shown_whole(db: None) -> None:
    from jobs.admin.tracebacks import Traceback

    text = 'Traceback (most recent call last):\n  File "/x/site-packages/a.py", line 1, in f\n    f()\nValueError: no\n'
    assert Traceback(text).application == text


def test_a_lease_that_ended_is_pointed_out(chief: Client) -> None:
    job = rows.job("running", lease_until=timezone.now() - timedelta(seconds=30))
    assert "the worker may have died" in page(chief, job)


def test_a_pause_that_holds_the_job_is_pointed_out(chief: Client) -> None:
    Pause.objects.create(kind="queue", name="payments", reason="maintenance", by="ann", created_at=timezone.now())
    html = page(chief, rows.job())
    assert f'The <a href="{reverse("admin:jobs_pause_changelist")}">queue payments</a> is paused since ' in html
    assert "by ann: maintenance." in html


def test_a_cancel_that_was_requested_is_pointed_out_and_not_offered_again(chief: Client) -> None:
    html = page(chief, rows.job("running", cancel_requested_at=timezone.now(), cancel_reason="wrong file"))
    assert "A cancel was requested" in html
    assert 'value="cancel"' not in html


def test_the_family_is_linked(chief: Client) -> None:
    parent = rows.job("completed", task="shop.Parent")
    job = rows.job(parent_id=parent.pk, root_id=parent.pk)
    child = rows.job(parent_id=job.pk, task="shop.Child")
    html = page(chief, job)
    assert [str(relative.pk) in html for relative in (parent, child)] == [True, True]


def test_many_children_are_counted_off_and_listed_elsewhere(chief: Client) -> None:
    job = rows.job()
    for _ in range(15):
        rows.job(parent_id=job.pk)
    assert f"/admin/jobs/job/?parent={job.pk}" in page(chief, job)


def test_a_chord_s_body_says_how_many_it_waits_for(chief: Client) -> None:
    fanin = FanIn.objects.create(id=uuid4(), size=3, remaining=1, created_at=timezone.now())
    member = rows.job("completed", fanin_id=fanin.pk)
    html = page(chief, rows.job(waits_for_id=fanin.pk))
    assert str(member.pk) in html
    assert "2 of 3 settled" in html


def test_a_failed_job_leads_to_the_replay_of_its_letter(chief: Client) -> None:
    letter = rows.letter()
    assert reverse("admin:dlq_deadletter_replay", args=[letter.pk]) in page(chief, letter.job)


def test_a_closed_letter_is_not_replayed_again(chief: Client) -> None:
    letter = rows.letter("resolved")
    assert "/replay/" not in page(chief, letter.job)


def test_what_operators_did_to_the_job_is_shown(chief: Client) -> None:
    job = rows.job()
    Act.objects.create(at=timezone.now(), by="ann", verb="retry", target="x", job_id=job.pk, reason="gateway is back")
    assert "gateway is back" in page(chief, job)


def test_only_an_unfinished_job_is_polled(chief: Client) -> None:
    assert "jobs/progress.js" in page(chief, rows.job("running"))
    assert "jobs/progress.js" not in page(chief, rows.job("completed"))


def keep(job: Job, name: str, value: object, kind: str = "step", attempt: int = 1) -> None:
    text = json.dumps(value)
    Checkpoint.objects.create(job=job, name=name, kind=kind, value=text, attempt=attempt, written_at=timezone.now())


def test_the_checkpoints_are_shown_with_who_kept_them(chief: Client) -> None:
    job = rows.job()
    keep(job, "charge", {"reference": "r-17"}, attempt=2)
    keep(job, "rows", 12_500, kind="cursor", attempt=0)
    html = page(chief, job)
    assert html.index("r-17") < html.index("in attempt 2") < html.index("12500")
    assert "by the job that this one repeats" in html


def test_secrets_in_checkpoints_are_hidden(chief: Client) -> None:
    job = rows.job()
    keep(job, "api_key", "swordfish")
    keep(job, "login", {"password": "swordfish"})
    html = page(chief, job)
    assert "login" in html
    assert "swordfish" not in html


def test_of_many_checkpoints_the_latest_are_shown(chief: Client) -> None:
    job = rows.job()
    for number in range(60):
        keep(job, f"step number {number}", None)
    html = page(chief, job)
    assert "step number 59" in html
    assert "step number 9 " not in html
