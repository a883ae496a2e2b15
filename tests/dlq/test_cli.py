"""``manage.py dlq``: letters to find, to read, to replay, to resolve and to discard."""

import sys
from datetime import timedelta
from io import StringIO
from uuid import uuid4

import pytest
from django.utils import timezone

from dlq.models import DeadLetter, Replay
from jobs.models import Act, Job
from tests.jobs.admin.rows import job, letter
from tests.jobs.cli import Answer, run

pytestmark = pytest.mark.django_db

CHARGE = "tests.sample.tasks.Charge"


@pytest.fixture(autouse=True)
def nobody_types(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", StringIO())


def charge(order: int = 7, **given: object) -> DeadLetter:
    """The letter of a charge that failed."""
    payload = f'{{"args":[],"kwargs":{{"order":{order}}}}}'
    return letter(of=job("failed", task=CHARGE, payload=payload), **given)


def listed(*words: object) -> list[int]:
    return [found["id"] for found in run("dlq", "list", *words, "--json").json["letters"]]


def replay(*words: object) -> Answer:
    return run("dlq", "replay", *words)


# --- Looking --------------------------------------------------------------------------------------


def test_open_letters_are_listed_newest_first() -> None:
    old = letter(created_at=timezone.now() - timedelta(hours=1))
    new = letter()
    letter("resolved")
    assert listed() == [new.pk, old.pk]


@pytest.mark.parametrize(
    ("filter_", "fields"),
    [
        (["--task", "SendReceipt"], {"task": "shop.tasks.SendReceipt"}),
        (["--task", "shop.tasks"], {"task": "shop.tasks.SendReceipt"}),
        (["--error", "Busy"], {"error_type": "shop.Busy"}),
        (["--error", "ValueError"], {"error_type": "ValueError"}),
        (["--fingerprint", "3fa4"], {"fingerprint": "3fa4c1"}),
        (["--queue", "mail"], {"queue": "mail"}),
        (["--tenant", "acme"], {"tenant": "acme"}),
        (["--until", "1h"], {"created_at": timezone.now() - timedelta(hours=2)}),
        (["--status", "discarded"], {"status": "discarded"}),
    ],
)
def test_each_filter_finds_the_letter_that_fits_and_no_other(filter_: list[str], fields: dict) -> None:
    meant = letter(**fields)
    letter()
    assert listed(*filter_) == [meant.pk]


def test_all_statuses_can_be_listed() -> None:
    letter("resolved")
    letter()
    assert len(listed("--status", "all")) == 2


def test_letters_of_the_same_trouble_are_one_group() -> None:
    for _ in range(2):
        letter(fingerprint="a" * 32)
    letter(fingerprint="b" * 32)
    groups = run("dlq", "list", "--group", "--json").json["groups"]
    assert [(group["fingerprint"][0], group["count"]) for group in groups] == [("a", 2), ("b", 1)]


def test_the_keys_of_a_list_are_among_those_of_a_whole_letter() -> None:
    kept = letter()
    short = run("dlq", "list", "--json").json["letters"][0]
    assert set(short) <= set(run("dlq", "show", kept.pk, "--json").json)


def test_a_letter_is_shown_with_its_payload_attempts_and_traceback() -> None:
    out = run("dlq", "show", letter().pk).out
    assert '"order_id": 7' in out
    assert "payments@web-1" in out
    assert "gateway.charge(" in out


def test_a_letter_is_found_by_the_id_of_its_job() -> None:
    kept = letter()
    assert run("dlq", "show", kept.job_id, "--json").json["id"] == kept.pk


@pytest.mark.parametrize("words", [[], ["--json"]])
def test_secrets_in_a_payload_are_hidden(words: list[str]) -> None:
    kept = letter(payload='{"args":[],"kwargs":{"password":"hunter2"}}')
    assert "hunter2" not in run("dlq", "show", kept.pk, *words).out


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("99", "There is no dead letter 99."),
        ("x", "'x' is neither the number of a dead letter nor the id of its job."),
        (str(uuid4()), "There is no dead letter of job "),
    ],
)
def test_an_unknown_letter_is_a_sentence(name: str, sentence: str) -> None:
    answer = run("dlq", "show", name)
    assert answer.err.startswith(sentence)
    assert answer.code == 1


def test_stats_count_per_status_and_open_ones_per_task() -> None:
    charge()
    letter("resolved")
    numbers = run("dlq", "stats", "--json").json
    assert (numbers["total"], numbers["open"], numbers["per_task"]) == (2, 1, {CHARGE: 1})


# --- Replay ---------------------------------------------------------------------------------------


def test_a_replay_is_a_new_job_and_closes_the_letter() -> None:
    kept = charge()
    told = replay(kept.pk, "--json").json["replayed"][0]
    kept.refresh_from_db()
    assert Job.objects.get(pk=told["job"]).replay_of_id == kept.job_id
    assert kept.status == "replayed"


def test_a_replay_keeps_who_and_why() -> None:
    replay(charge().pk, "--by", "ann", "--reason", "gateway is back")
    kept = Replay.objects.get()
    assert (kept.by, kept.reason) == ("ann", "gateway is back")


def test_a_letter_is_not_replayed_twice() -> None:
    kept = charge()
    replay(kept.pk, "--by", "ann")
    answer = replay(kept.pk)
    assert (answer.code, Replay.objects.count()) == (1, 1)
    assert "is replayed already, by ann" in answer.err


@pytest.mark.parametrize("words", [["--kwargs", '{"order": 5}'], ["--payload", '{"args": [5]}']])
def test_the_payload_can_be_changed(words: list[str]) -> None:
    told = replay(charge().pk, *words, "--json").json["replayed"][0]
    assert "5" in Job.objects.get(pk=told["job"]).payload
    assert Replay.objects.get().edited


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--kwargs", '{"bogus": 1}'], "cannot be called like this"),
        (["--kwargs", '{"order": "seven"}'], "The payload does not fit"),
        (["--kwargs", "[1]"], "Write a payload as"),
        (["--payload", '{"order": 5}'], "Write a payload as"),
        (["--payload", '{"args": 5}'], "Write a payload as"),
        (["--payload", "{"], "This is not JSON"),
        (["--kwargs", '{"order": 7, "amount": "••••••"}'], "Type it in full"),
    ],
)
@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_a_payload_that_does_not_fit_is_refused_and_leaves_nothing(
    words: list[str], sentence: str, dry: list[str]
) -> None:
    kept = charge()
    answer = replay(kept.pk, *words, *dry)
    kept.refresh_from_db()
    assert sentence in answer.err
    assert (answer.code, kept.status, Job.objects.count()) == (1, "open", 1)


def test_a_hidden_value_keeps_what_the_letter_has() -> None:
    kept = letter(of=job("failed", task="shop.Gone", payload='{"args":[],"kwargs":{"password":"hunter2","n":1}}'))
    told = replay(kept.pk, "--kwargs", '{"password": "••••••", "n": 2}', "--json").json["replayed"][0]
    assert '"password":"hunter2","n":2' in Job.objects.get(pk=told["job"]).payload


def test_a_payload_is_changed_for_one_letter_only() -> None:
    letters = [charge(), charge()]
    answer = replay(*(each.pk for each in letters), "--kwargs", '{"order": 5}', "--yes")
    assert (answer.code, Replay.objects.count()) == (2, 0)


def test_letters_of_a_task_are_replayed_and_others_are_not() -> None:
    meant = charge()
    other = letter()
    replay("--task", "Charge", "--yes")
    meant.refresh_from_db()
    other.refresh_from_db()
    assert (meant.status, other.status) == ("replayed", "open")


def test_the_limit_takes_the_oldest_first() -> None:
    new = charge()
    old = charge(created_at=timezone.now() - timedelta(hours=1))
    told = replay("--all", "--limit", 1, "--yes", "--json").json["replayed"]
    assert [each["letter"] for each in told] == [old.pk]
    assert DeadLetter.objects.get(pk=new.pk).is_open


def test_a_dry_run_names_the_letters_and_changes_nothing() -> None:
    kept = charge()
    told = replay("--all", "--dry-run", "--json").json
    assert (told["dry_run"], [each["letter"] for each in told["replayed"]]) == (True, [kept.pk])
    assert DeadLetter.objects.get().is_open


def test_filters_do_not_replay_without_consent_where_nobody_can_be_asked() -> None:
    charge()
    answer = replay("--all")
    assert (answer.code, answer.err) == (
        2,
        "This would replay 1 dead letter. Add --yes to do it without being asked.\n",
    )
    assert DeadLetter.objects.get().is_open


@pytest.mark.parametrize("words", [[], ["1", "--all"], ["--all", "--task", "Charge"]])
def test_letters_are_named_in_one_way(words: list[str]) -> None:
    charge()
    assert replay(*words, "--yes").code == 2


def test_what_is_refused_does_not_stop_the_others() -> None:
    closed, kept = letter("resolved"), charge()
    answer = replay(closed.pk, kept.pk, "--yes", "--json")
    assert (answer.code, len(answer.json["replayed"])) == (1, 1)
    assert "by ann" in answer.json["refused"][str(closed.pk)]


# --- Closing --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("verb", "status"), [("resolve", "resolved"), ("discard", "discarded")])
def test_a_letter_is_closed_with_a_name_and_a_reason(verb: str, status: str) -> None:
    kept = letter()
    run("dlq", verb, kept.pk, "--reason", "by hand", "--by", "ann")
    kept.refresh_from_db()
    assert (kept.status, kept.closed_by, kept.closing_reason) == (status, "ann", "by hand")
    assert Act.objects.get().by == "ann"


@pytest.mark.parametrize("verb", ["resolve", "discard"])
def test_a_letter_is_not_closed_without_a_reason(verb: str) -> None:
    kept = letter()
    answer = run("dlq", verb, kept.pk, "--yes")
    kept.refresh_from_db()
    assert (answer.code, kept.status) == (2, "open")


def test_a_group_is_resolved_at_once() -> None:
    letters = [letter(fingerprint="a" * 32), letter(fingerprint="a" * 32)]
    run("dlq", "resolve", "--fingerprint", "aaaa", "--reason", "fixed", "--yes")
    assert {DeadLetter.objects.get(pk=each.pk).status for each in letters} == {"resolved"}
