"""Dead letters in the admin: found, read, resolved, discarded, replayed; by permission, with a reason."""

import json
from datetime import timedelta
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from dlq.admin import letters
from dlq.models import DeadLetter, Replay
from jobs.models import Act, Job
from tests.jobs.admin import rows
from tests.jobs.admin.conftest import Visitor, said

LIST = reverse("admin:dlq_deadletter_changelist")
ACT = reverse("admin:dlq_deadletter_act")
REPLAYER = ("dlq.view_deadletter", "dlq.replay_deadletter", "jobs.view_job")


def listed(client: Client, **query: Any) -> list[DeadLetter]:
    return list(client.get(LIST, query).context["cl"].result_list)


def page(client: Client, letter: DeadLetter) -> str:
    return client.get(reverse("admin:dlq_deadletter_change", args=[letter.pk])).content.decode()


def act(client: Client, verb: str, *chosen: DeadLetter, **fields: Any) -> Any:
    ids = " ".join(str(letter.pk) for letter in chosen)
    return client.post(ACT, {"verb": verb, "ids": ids, "confirmed": "yes", **fields}, follow=True)


def replay(client: Client, letter: DeadLetter, step: str = "send", **fields: Any) -> Any:
    address = reverse("admin:dlq_deadletter_replay", args=[letter.pk])
    return client.post(address, {"payload": letter.payload, "why": "", "step": step, **fields}, follow=True)


@pytest.fixture
def letter(db: None) -> DeadLetter:
    """An open letter of the sample shop."""
    failed = rows.job("failed", payload='{"args":[7],"kwargs":{}}', reason="4 attempts used up", error_type="a.Busy")
    return rows.letter(of=failed)


def test_open_letters_are_listed_unless_asked_otherwise(chief: Client) -> None:
    opened, resolved = rows.letter(), rows.letter("resolved")
    assert listed(chief) == [opened]
    assert listed(chief, status="resolved") == [resolved]
    assert set(listed(chief, status="all")) == {opened, resolved}


def test_letters_are_filtered_by_task_age_and_fingerprint(chief: Client) -> None:
    old = timezone.now() - timedelta(days=2)
    wanted = rows.letter(fingerprint="a" * 64, of=rows.job("failed", task="shop.Greet"))
    rows.letter(created_at=old)
    for query in ({"task": "shop.Greet"}, {"within": "24h"}, {"fingerprint": "a" * 64}):
        assert listed(chief, **query) == [wanted]


def test_letters_are_found_by_number_job_and_task(chief: Client) -> None:
    wanted = rows.letter(of=rows.job("failed", task="shop.tasks.Greet"))
    rows.letter()
    for term in (str(wanted.pk), str(wanted.job_id), "gre", "shop.t"):
        assert listed(chief, q=term) == [wanted]


def test_the_alike_are_counted_up_to_a_bound(chief: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(letters, "MOST_ALIKE", 2)
    for _ in range(4):
        rows.letter(fingerprint="a" * 64)
    rows.letter(fingerprint="b" * 64)
    html = chief.get(LIST).content.decode()
    assert html.count(">2+</a>") == 4
    assert html.count(">1</a>") == 1


def test_without_letters_the_list_says_that_all_is_well(chief: Client) -> None:
    rows.letter("resolved")
    assert "No open dead letters" in chief.get(LIST).content.decode()


def test_the_list_needs_the_permission_to_view(visitor: Visitor) -> None:
    assert visitor("jobs.view_job").get(LIST).status_code == 403


def test_a_letter_shows_error_attempts_payload_and_job(chief: Client, letter: DeadLetter) -> None:
    html = page(chief, letter)
    wanted = ["a.Busy", "Attempt 1", "ChargeOrder.delay(7)", str(letter.job_id), "gateway.py"]
    assert [text for text in wanted if text not in html] == []


def test_secrets_in_a_letter_are_hidden(chief: Client) -> None:
    letter = rows.letter(
        payload='{"args":[],"kwargs":{"token":"swordfish"}}', headers={"metadata": {"secret": "swordfish"}}
    )
    for address in ("admin:dlq_deadletter_change", "admin:dlq_deadletter_replay"):
        assert "swordfish" not in chief.get(reverse(address, args=[letter.pk])).content.decode()


@pytest.mark.parametrize(("verb", "status"), [("resolve", "resolved"), ("discard", "discarded")])
def test_a_letter_is_closed_by_a_person_with_a_reason(
    chief: Client, letter: DeadLetter, verb: str, status: str
) -> None:
    act(chief, verb, letter, reason="settled by hand")
    letter.refresh_from_db()
    assert (letter.status, letter.closed_by, letter.closing_reason) == (status, "admin", "settled by hand")


@pytest.mark.parametrize("verb", ["resolve", "discard"])
def test_a_letter_is_not_closed_without_a_reason(chief: Client, letter: DeadLetter, verb: str) -> None:
    assert "Say why" in act(chief, verb, letter).content.decode()
    letter.refresh_from_db()
    assert letter.is_open


@pytest.mark.parametrize("verb", ["resolve", "discard", "replay"])
def test_a_verb_needs_its_permission(visitor: Visitor, letter: DeadLetter, verb: str) -> None:
    assert act(visitor("dlq.view_deadletter"), verb, letter, reason="x").status_code == 403
    letter.refresh_from_db()
    assert letter.is_open


def test_a_letter_that_is_closed_already_is_refused_in_a_sentence(chief: Client, letter: DeadLetter) -> None:
    act(chief, "resolve", letter, reason="first")
    assert "already" in said(act(chief, "discard", letter, reason="second"))[0]


def test_a_selection_is_replayed_after_a_question(chief: Client) -> None:
    chosen = [rows.letter(), rows.letter()]
    asked = chief.post(LIST, {"action": "replay", "_selected_action": [letter.pk for letter in chosen]})
    assert "Replay 2 dead letters?" in asked.content.decode()
    answer = act(chief, "replay", *chosen, reason="gateway is back")
    assert said(answer) == ["2 dead letters replayed."]
    assert Job.objects.filter(replay_of_id__in=[letter.job_id for letter in chosen]).count() == 2


def test_a_replay_is_a_new_job_and_the_letter_keeps_the_record(chief: Client, letter: DeadLetter) -> None:
    answer = replay(chief, letter, why="gateway is back")
    record = Replay.objects.get(letter=letter)
    job = Job.objects.get(pk=record.job_id)
    assert answer.redirect_chain[-1][0] == reverse("admin:jobs_job_change", args=[job.pk])
    assert (job.replay_of_id, record.by, record.reason, record.edited) == (
        letter.job_id,
        "admin",
        "gateway is back",
        False,
    )
    assert Act.objects.filter(verb="replay", by="admin").exists()
    assert "gateway is back" in page(chief, letter)


def test_the_review_shows_what_was_changed_and_sends_nothing(chief: Client, letter: DeadLetter) -> None:
    html = replay(chief, letter, step="review", payload='{"args":[8],"kwargs":{}}').content.decode()
    assert "<del>-     7</del>" in html
    assert "<ins>+     8</ins>" in html
    assert not Replay.objects.exists()


def test_the_review_of_an_unchanged_payload_says_so(chief: Client, letter: DeadLetter) -> None:
    assert "The payload stays as it was" in replay(chief, letter, step="review").content.decode()


def test_an_edited_payload_is_sent_and_the_difference_kept(chief: Client, letter: DeadLetter) -> None:
    replay(chief, letter, payload='{"args":[8],"kwargs":{}}')
    job = Job.objects.get(replay_of_id=letter.job_id)
    assert json.loads(job.payload)["args"] == [8]
    assert "What was changed in the payload" in page(chief, letter)


def test_a_hidden_value_that_is_left_alone_is_sent_as_it_was(chief: Client) -> None:
    failed = rows.job("failed", task="shop.tasks.gone", payload='{"args":[],"kwargs":{"token":"swordfish","n":1}}')
    letter = rows.letter(of=failed)
    replay(chief, letter, payload='{"args":[],"kwargs":{"token":"••••••","n":2}}')
    job = Job.objects.get(replay_of_id=letter.job_id)
    assert json.loads(job.payload)["kwargs"] == {"token": "swordfish", "n": 2}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"args": 5}', '{"args":[],"kwargs":{"token":"••••••"}}'])
def test_a_payload_that_is_none_is_refused_beside_the_field(chief: Client, letter: DeadLetter, text: str) -> None:
    answer = replay(chief, letter, payload=text)
    assert answer.context["form"].errors["payload"]
    assert "errorlist" in answer.content.decode()
    assert not Replay.objects.exists()


def test_a_payload_that_does_not_fit_the_task_is_refused_beside_the_field(chief: Client, letter: DeadLetter) -> None:
    for step in ("review", "send"):
        answer = replay(chief, letter, step=step, payload='{"args":["many"],"kwargs":{}}')
        if step == "send":
            assert "order_id" in str(answer.context["form"].errors["payload"])
    letter.refresh_from_db()
    assert letter.is_open


def test_a_payload_is_edited_only_with_the_permission(visitor: Visitor, letter: DeadLetter) -> None:
    client = visitor(*REPLAYER)
    assert "disabled" in client.get(reverse("admin:dlq_deadletter_replay", args=[letter.pk])).content.decode()
    replay(client, letter, payload='{"args":[8],"kwargs":{}}')
    assert json.loads(Job.objects.get(replay_of_id=letter.job_id).payload)["args"] == [7]


def test_a_replay_has_the_priority_that_the_job_began_with_unless_another_is_chosen(
    chief: Client, letter: DeadLetter
) -> None:
    Job.objects.filter(pk=letter.job_id).update(priority=30)
    rows.attempt(letter.job, priority=10)
    address = reverse("admin:dlq_deadletter_replay", args=[letter.pk])
    assert "as the job began: high" in chief.get(address).content.decode()
    reviewed = replay(chief, letter, step="review", priority="0").content.decode()
    assert 'name="priority" value="0"' in reviewed
    assert "<p>Critical</p>" in reviewed
    replay(chief, letter, priority="0")
    assert Job.objects.get(replay_of_id=letter.job_id).priority == 0


def test_a_replay_with_no_priority_chosen_begins_as_the_job_began(chief: Client, letter: DeadLetter) -> None:
    Job.objects.filter(pk=letter.job_id).update(priority=30)
    rows.attempt(letter.job, priority=10)
    assert "As the job began: high" in replay(chief, letter, step="review", priority="").content.decode()
    replay(chief, letter, priority="")
    assert Job.objects.get(replay_of_id=letter.job_id).priority == 10


def test_a_priority_that_there_is_not_is_refused_in_the_form(chief: Client, letter: DeadLetter) -> None:
    assert "7 is not one of the available choices" in replay(chief, letter, priority="7").content.decode()
    assert not Job.objects.filter(replay_of_id=letter.job_id).exists()


def test_replaying_needs_its_permission(visitor: Visitor, letter: DeadLetter) -> None:
    client = visitor("dlq.view_deadletter", "dlq.edit_payload")
    assert replay(client, letter).status_code == 403
    assert "Replay…" not in page(client, letter)


def test_a_second_replay_is_refused_in_a_sentence(chief: Client, letter: DeadLetter) -> None:
    replay(chief, letter)
    assert said(replay(chief, letter)) == ["This letter is replayed already."]
    assert Job.objects.filter(replay_of_id=letter.job_id).count() == 1


def test_a_letter_that_is_not_there_leads_back_with_a_sentence(chief: Client) -> None:
    for name in ("admin:dlq_deadletter_change", "admin:dlq_deadletter_replay"):
        answer = chief.get(reverse(name, args=[999]), follow=True)
        assert "There is no dead letter 999." in said(answer)


def test_nothing_is_added_or_deleted_by_hand(chief: Client, letter: DeadLetter) -> None:
    assert chief.get(f"{LIST}add/").status_code == 403
    assert chief.post(reverse("admin:dlq_deadletter_delete", args=[letter.pk]), {"post": "yes"}).status_code == 403
