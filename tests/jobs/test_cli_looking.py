"""``manage.py jobs list``, ``show`` and ``stats``: the same for people, for pipes and for programs."""

import json
from datetime import timedelta
from uuid import uuid4

import pytest
from django.utils import timezone

from jobs import stats
from jobs.models import Checkpoint, Job, Pause
from tests.jobs.admin.rows import attempt, job, letter
from tests.jobs.cli import run

pytestmark = pytest.mark.django_db


def listed(*words: object) -> list[str]:
    return [found["id"] for found in run("jobs", "list", *words, "--json").json["jobs"]]


def test_jobs_are_listed_newest_first() -> None:
    old = job(created_at=timezone.now() - timedelta(hours=2))
    new = job()
    assert listed() == [str(new.pk), str(old.pk)]


@pytest.mark.parametrize(
    ("filter_", "fields"),
    [
        (["--state", "completed"], {"state": "completed"}),
        (["--queue", "mail"], {"queue": "mail"}),
        (["--priority", "high"], {"priority": 10}),
        (["--priority", "10"], {"priority": 10}),
        (["--tag", "import-17"], {"tags": ["a", "import-17"]}),
        (["--task", "SendReceipt"], {"task": "shop.tasks.SendReceipt"}),
        (["--task", "shop."], {"task": "shop.tasks.SendReceipt"}),
        (["--tenant", "acme"], {"tenant": "acme"}),
        (["--key", "charge:7"], {"key": "charge:7"}),
        (["--until", "1h"], {"created_at": timezone.now() - timedelta(hours=2)}),
        (["--until", "2020-01-31T12:00"], {"created_at": timezone.now() - timedelta(days=9999)}),
    ],
)
def test_each_filter_finds_the_job_that_fits_and_no_other(filter_: list[str], fields: dict) -> None:
    meant = job(**fields)
    job()
    assert listed(*filter_) == [str(meant.pk)]


def test_since_leaves_out_what_was_created_before() -> None:
    job(created_at=timezone.now() - timedelta(hours=2))
    recent = job()
    assert listed("--since", "1h") == [str(recent.pk)]


def test_filters_must_all_fit() -> None:
    job(queue="mail")
    assert listed("--queue", "mail", "--state", "failed") == []


def test_a_page_begins_after_its_offset_and_ends_at_its_limit() -> None:
    ids = [str(job(created_at=timezone.now() - timedelta(minutes=n)).pk) for n in range(4)]
    assert listed("--offset", 1, "--limit", 2) == ids[1:3]


def test_a_full_page_says_how_to_see_the_next() -> None:
    for _ in range(3):
        job()
    assert "--offset 2" in run("jobs", "list", "--limit", 2).err


def test_plain_lines_stand_in_columns() -> None:
    job(reason="scheduled")
    head, row = run("jobs", "list").lines
    assert head.index("reason") == row.index("scheduled")


def test_plain_lines_hold_no_escape_characters() -> None:
    job(reason="\x1b[31mred")
    assert "\x1b" not in run("jobs", "list").out


def test_a_terminal_gets_colours() -> None:
    job()
    assert "\x1b[" in run("jobs", "list", terminal=True).out


def test_nothing_found_is_said() -> None:
    assert run("jobs", "list").out == "No jobs fit.\n"


def test_the_keys_of_a_list_are_among_those_of_a_whole_job() -> None:
    found = job("failed")
    short = run("jobs", "list", "--json").json["jobs"][0]
    assert set(short) <= set(run("jobs", "show", found.pk, "--json").json)


def test_listing_takes_one_query_however_many_jobs(django_assert_num_queries) -> None:
    for _ in range(5):
        job()
    with django_assert_num_queries(1):
        run("jobs", "list", "--json")


def test_a_job_is_shown_with_its_attempts_and_its_error() -> None:
    failed = job("failed", attempt=2, error_type="shop.Busy", error_message="503", traceback="Traceback …")
    attempt(failed, 1)
    out = run("jobs", "show", failed.pk).out
    assert "GatewayBusy is transient" in out
    assert "shop.Busy: 503" in out
    assert "Traceback …" in out


def test_why_a_job_waits_is_told_as_sentences_and_as_json() -> None:
    waiting = job("pending", due_at=timezone.now() + timedelta(hours=1))
    assert "It is due at " in run("jobs", "explain", waiting.pk).out
    told = json.loads(run("jobs", "explain", waiting.pk, "--json").out)
    assert told["parts"][0]["word"] == "scheduled"
    assert told["until"]


def test_a_job_is_shown_with_its_checkpoints_and_their_secrets_hidden() -> None:
    running = job("running", attempt=2)
    for name, kind, value, number in (("rows", "cursor", "12500", 2), ("login", "step", '{"token":"tok_4711"}', 0)):
        kept = {"name": name, "kind": kind, "value": value, "attempt": number, "written_at": timezone.now()}
        Checkpoint.objects.create(job=running, **kept)
    out = run("jobs", "show", running.pk).out
    assert "12500" in out
    assert "another job's" in out
    assert "tok_4711" not in out
    shown = run("jobs", "show", running.pk, "--json").json["checkpoints"]
    assert [(each["name"], each["kind"], each["value"], each["attempt"]) for each in shown] == [
        ("rows", "cursor", 12500, 2), ("login", "step", {"token": "••••••"}, None),
    ]  # fmt: skip


def test_the_attempt_that_completed_is_read_off_the_job() -> None:
    done = job("completed", attempt=2)
    attempt(done, 1)
    shown = run("jobs", "show", done.pk, "--json").json["attempts"]
    assert [(each["number"], each["outcome"]) for each in shown] == [(1, "transient"), (2, "completed")]


@pytest.mark.parametrize("words", [[], ["--json"]])
def test_secrets_in_a_payload_are_hidden(words: list[str]) -> None:
    kept = job(payload='{"args":[],"kwargs":{"order_id":7,"card_token":"tok_4711"}}')
    out = run("jobs", "show", kept.pk, *words).out
    assert "order_id" in out
    assert "tok_4711" not in out


def test_a_failed_job_names_its_dead_letter() -> None:
    dead = letter()
    assert f"manage.py dlq show {dead.pk}" in run("jobs", "show", dead.job_id).out


def test_an_unknown_job_is_a_sentence() -> None:
    missing = uuid4()
    answer = run("jobs", "show", missing)
    assert (answer.err, answer.code) == (f"There is no job {missing}.\n", 1)


def test_a_bad_id_is_refused_with_an_example() -> None:
    assert "'7' is not the id of a job; one looks like" in run("jobs", "show", 7).err


def test_stats_count_per_state_priority_and_queue() -> None:
    job(queue="mail")
    job("completed")
    numbers = run("jobs", "stats", "--json").json
    assert (numbers["total"], numbers["unfinished"]) == (2, 1)
    assert numbers["per_state"]["completed"] == 1
    assert (numbers["per_queue"], numbers["per_priority"]) == ({"mail": 1}, {"normal": 1})


def test_stats_by_something_count_the_newest() -> None:
    job("completed", tenant="acme")
    job(tenant="acme")
    job()
    counts = run("jobs", "stats", "--by", "tenant", "--json").json["counts"]
    assert {name: each["total"] for name, each in counts.items()} == {"acme": 2, "": 1}
    assert run("jobs", "stats", "--by", "tenant").out.splitlines()[1].split()[:2] == ["acme", "2"]
    assert "add --by" in run("jobs", "stats", "--since", "2h").err


def test_a_breakdown_says_whether_all_jobs_are_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for tenant in ("acme", "acme", "bolt"):
        job(tenant=tenant)
    assert run("jobs", "stats", "--by", "tenant").lines[-1] == "All 3 jobs counted."
    assert run("jobs", "stats", "--by", "tenant", "--since", "1d").lines[-1] == "All 3 jobs since then counted."
    monkeypatch.setattr(stats, "NEWEST", 2)
    told = run("jobs", "stats", "--by", "tenant").lines[-1]
    assert told.startswith("Only the newest 2 jobs are counted, back to 20")
    assert told.endswith("; older ones are not.")


def test_stats_say_what_is_paused() -> None:
    Pause.objects.create(kind="queue", name="payments", created_at=timezone.now())
    assert "queue payments" in run("jobs", "stats").out


def test_stats_of_nothing_are_zeros() -> None:
    assert Job.objects.count() == 0
    assert run("jobs", "stats", "--json").json["total"] == 0


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["list", "--since", "soon"], "'soon' is neither an age (2h, 7d) nor a time"),
        (["list", "--priority", "5"], "Unknown priority 5. Use one of: critical (0)"),
        (["list", "--state", "lost"], "invalid choice: 'lost'"),
        (["list", "--limit", "0"], "'0' is not a whole number above 0"),
        (["list", "--limit", "5000"], "limit must be between 1 and 1000"),
        (["list", "--offset", "-1"], "--offset"),
        (["fly"], "invalid choice: 'fly'"),
        ([], "verb"),
    ],
)
def test_a_mistake_is_said_in_a_sentence(words: list[str], sentence: str) -> None:
    answer = run("jobs", *words)
    assert sentence in answer.err
    assert answer.code
