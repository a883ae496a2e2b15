"""Buttons: asked first, allowed by permission, done by the verb, refused in a sentence."""

from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from jobs.admin import buttons
from jobs.models import Act, Job, Pause
from tests.jobs.admin import rows
from tests.jobs.admin.conftest import Visitor, said

LIST = reverse("admin:jobs_job_changelist")
ACT = reverse("admin:jobs_job_act")


def act(client: Client, verb: str, *jobs: Job, **fields: Any) -> Any:
    ids = " ".join(str(job.pk) for job in jobs)
    return client.post(ACT, {"verb": verb, "ids": ids, "confirmed": "yes", **fields}, follow=True)


def choose(client: Client, verb: str, *jobs: Job, **fields: Any) -> Any:
    return client.post(LIST, {"action": verb, "_selected_action": [str(job.pk) for job in jobs], **fields})


def test_a_cancelled_job_is_cancelled_with_name_and_reason(chief: Client) -> None:
    job = rows.job()
    answer = act(chief, "cancel", job, reason="wrong file")
    job.refresh_from_db()
    assert (job.state, job.reason) == ("cancelled", "wrong file")
    assert [(a.verb, a.by, a.reason) for a in Act.objects.all()] == [("cancel", "admin", "wrong file")]
    assert said(answer) == ["1 job cancelled or asked to stop."]


def test_a_cancel_without_a_reason_is_asked_again(chief: Client) -> None:
    job = rows.job()
    assert "Say why" in act(chief, "cancel", job, reason="  ").content.decode()
    job.refresh_from_db()
    assert job.state == "pending"


def test_a_waiting_job_is_made_due(chief: Client) -> None:
    job = rows.job("retrying")
    act(chief, "retry", job)
    job.refresh_from_db()
    assert job.due_at is not None
    assert job.due_at <= timezone.now()


def test_a_refusal_is_a_message(chief: Client) -> None:
    job = rows.job("completed")
    assert "there is nothing to cancel" in said(act(chief, "cancel", job, reason="x"))[0]


def test_a_job_that_is_gone_is_a_message(chief: Client) -> None:
    answer = chief.post(ACT, {"verb": "retry", "ids": str(uuid4()), "confirmed": "yes"}, follow=True)
    assert "There is no job" in said(answer)[0]


@pytest.mark.parametrize("ids", ["nonsense", ""])
def test_an_id_that_is_none_changes_nothing(chief: Client, ids: str) -> None:
    answer = chief.post(ACT, {"verb": "retry", "ids": ids, "confirmed": "yes"}, follow=True)
    assert answer.status_code in (200, 403)


@pytest.mark.parametrize(("verb", "permission"), [("cancel", "jobs.retry_job"), ("retry", "jobs.cancel_job")])
def test_a_verb_needs_its_own_permission(visitor: Visitor, verb: str, permission: str) -> None:
    client, job = visitor("jobs.view_job", permission), rows.job()
    assert act(client, verb, job, reason="x").status_code == 403
    job.refresh_from_db()
    assert job.state == "pending"


def test_who_may_only_view_sees_no_button_and_no_action(visitor: Visitor) -> None:
    client, job = visitor("jobs.view_job"), rows.job()
    html = client.get(reverse("admin:jobs_job_change", args=[job.pk])).content.decode()
    assert 'name="verb"' not in html
    assert client.get(LIST).context["action_form"] is None


def test_a_page_offers_only_what_the_state_allows(chief: Client) -> None:
    offered = {}
    for state in ("pending", "running", "completed"):
        html = chief.get(reverse("admin:jobs_job_change", args=[rows.job(state).pk])).content.decode()
        offered[state] = [verb for verb in ("retry", "cancel") if f'value="{verb}"' in html]
    assert offered == {"pending": ["retry", "cancel"], "running": ["cancel"], "completed": []}


def test_a_get_changes_nothing(chief: Client) -> None:
    assert chief.get(ACT, {"verb": "cancel", "ids": str(rows.job().pk), "confirmed": "yes"}).status_code == 403


def test_a_form_without_its_token_is_refused(db: None, admin_user: Any) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(admin_user)
    assert act(client, "cancel", rows.job(), reason="x").status_code == 403


def test_a_selection_is_asked_about_first(chief: Client) -> None:
    jobs = [rows.job(), rows.job()]
    html = choose(chief, "cancel", *jobs).content.decode()
    assert "Cancel 2 jobs?" in html
    assert Job.objects.filter(state="pending").count() == 2


def test_a_selection_is_acted_on_one_by_one_and_refusals_are_counted(chief: Client) -> None:
    jobs = [rows.job(), rows.job("retrying"), rows.job("running")]
    answer = act(chief, "retry", *jobs)
    assert said(answer)[0] == "2 jobs will run now."
    assert "only a job that waits can be made due" in said(answer)[1]


def test_a_selection_across_pages_is_bounded_and_says_so(chief: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buttons, "MOST_AT_ONCE", 3)
    jobs = [rows.job() for _ in range(5)]
    answer = choose(chief, "retry", jobs[0], select_across="1")
    assert answer.context["number"] == 3
    assert "More than 3 are selected" in said(answer)[0]


def test_a_queue_is_paused_and_resumed_with_a_reason(chief: Client) -> None:
    rows.job()
    answer = chief.post(
        reverse("admin:jobs_pause_pause"), {"what": "queue:payments", "reason": "maintenance"}, follow=True
    )
    pause = Pause.objects.get()
    assert (pause.kind, pause.name, pause.reason, pause.by) == ("queue", "payments", "maintenance", "admin")
    assert "The queue payments is paused." in said(answer)[0]
    listed = chief.get(reverse("admin:jobs_pause_changelist")).content.decode()
    assert f'value="resume {pause.pk}"' in listed
    asked = chief.post(reverse("admin:jobs_pause_act"), {"press": f"resume {pause.pk}", "action": ""})
    assert "Resume 1 pause?" in asked.content.decode()
    chief.post(reverse("admin:jobs_pause_act"), {"verb": "resume", "ids": str(pause.pk), "confirmed": "yes"})
    assert not Pause.objects.exists()


def test_a_task_can_be_paused(chief: Client) -> None:
    rows.job(task="shop.tasks.Greet")
    chief.post(reverse("admin:jobs_pause_pause"), {"what": "task:shop.tasks.Greet", "reason": "broken"})
    assert Pause.objects.get().kind == "task"


def test_a_pause_of_an_unknown_queue_is_refused_beside_the_field(chief: Client) -> None:
    html = chief.post(reverse("admin:jobs_pause_pause"), {"what": "queue:nowhere", "reason": "x"}).content.decode()
    assert "errorlist" in html
    assert not Pause.objects.exists()


def test_pausing_needs_its_permission(visitor: Visitor) -> None:
    client = visitor("jobs.view_pause")
    assert client.post(reverse("admin:jobs_pause_pause"), {"what": "queue:mail", "reason": "x"}).status_code == 403
    assert "Pause a queue or a task" not in client.get(reverse("admin:jobs_pause_changelist")).content.decode()


# --- Snooze -----------------------------------------------------------------------------------------


def test_a_waiting_job_is_put_off_for_as_long_as_was_said(chief: Client) -> None:
    job = rows.job("retrying")
    answer = act(chief, "snooze", job, answer="2h", reason="the bank is closed")
    job.refresh_from_db()
    assert job.due_at is not None
    assert timedelta(minutes=110) < job.due_at - timezone.now() < timedelta(minutes=121)
    assert job.reason == "snoozed by admin: the bank is closed"
    assert said(answer) == ["1 job put off."]


@pytest.mark.parametrize("answer", ["", "soon"])
def test_a_length_that_is_not_understood_is_asked_for_again(chief: Client, answer: str) -> None:
    job = rows.job("retrying")
    before = job.due_at
    page = act(chief, "snooze", job, answer=answer, reason="kept reason").content.decode()
    assert "is not an age. Write 90s, 30m" in page
    assert "kept reason" in page
    job.refresh_from_db()
    assert job.due_at == before


def test_the_length_is_asked_for_before(chief: Client) -> None:
    assert "For how long" in choose(chief, "snooze", rows.job("retrying")).content.decode()
