"""``manage.py jobs enqueue``: lines become jobs, a wrong one is named, and how to go on is said."""

import io
import sys
from pathlib import Path
from typing import Any

import pytest

from jobs import bulk
from jobs.management import enqueuing
from jobs.models import Act, Job
from tests.jobs.cli import run
from tests.sample.tasks import Charge, add, untracked

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def threes(monkeypatch: pytest.MonkeyPatch, sent: list[str]) -> None:
    """Slices of three lines."""
    monkeypatch.setattr(bulk, "SLICE", 3)


@pytest.fixture
def file(tmp_path: Path) -> Any:
    """A file with these lines."""

    def write(*lines: str) -> Path:
        path = tmp_path / "lines.jsonl"
        path.write_text("\n".join(lines) + "\n")
        return path

    return write


def payloads() -> list[str]:
    return list(Job.objects.order_by("created_at", "id").values_list("payload", flat=True))


def test_each_line_becomes_a_job(file: Any) -> None:
    answer = run(
        "jobs", "enqueue", add.name, "--from", file("[1, 2]", '{"a": 3, "b": 4}', '{"args": [5], "kwargs": {"b": 6}}')
    )
    assert answer.lines == [f"3 jobs of {add.name} enqueued."]
    assert payloads() == [
        '{"args":[1,2],"kwargs":{}}', '{"args":[],"kwargs":{"a":3,"b":4}}', '{"args":[5],"kwargs":{"b":6}}',
    ]  # fmt: skip


def test_a_task_is_named_by_its_last_part_and_options_are_those_of_all(file: Any) -> None:
    words = (
        "--queue",
        "mail",
        "--priority",
        "low",
        "--tag",
        "a",
        "--tag",
        "b",
        "--tenant",
        "acme",
        "--countdown",
        "1h",
    )
    run("jobs", "enqueue", "add", "--from", file("[1, 2]"), *words, "--correlation-id", "import-7", "--expires", "2h")
    job = Job.objects.get()
    assert (job.queue, job.priority, job.tags, job.tenant) == ("mail", 30, ["a", "b"], "acme")
    assert (job.state, job.correlation_id) == ("pending", "import-7")
    assert (job.due_at - job.created_at).total_seconds() == pytest.approx(3600, abs=1)


def test_the_standard_input_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"[1, 2]\n\n[3, 4]")))
    assert run("jobs", "enqueue", "add", "--from", "-", "--json").json["enqueued"] == 2


def test_keys_are_honoured_and_told(file: Any) -> None:
    answer = run("jobs", "enqueue", "Charge", "--from", file("7", "8", "7", '{"kwargs": {"order": 9}, "key": "x"}'))
    assert answer.out.strip() == f"3 jobs of {Charge.name} enqueued. 1 line had a key that was taken."
    assert set(Job.objects.values_list("key", flat=True)) == {"charge:7", "charge:8", "x"}


def test_what_was_done_can_be_read_by_a_machine(file: Any) -> None:
    answer = run("jobs", "enqueue", "add", "--from", file("[1, 2]", "[3, 4]"), "--key", "{a}", "--json")
    ids = [str(pk) for pk in Job.objects.order_by("created_at", "id").values_list("pk", flat=True)]
    assert {answer.json["first"], answer.json["last"]} == set(ids)
    assert {k: answer.json[k] for k in ("task", "lines", "enqueued", "duplicates")} == {
        "task": add.name, "lines": 2, "enqueued": 2, "duplicates": 0,
    }  # fmt: skip


def test_it_is_kept_in_the_audit_trail(file: Any) -> None:
    run("jobs", "enqueue", "add", "--from", file("[1, 2]"), "--by", "ann", "--reason", "import 7")
    act = Act.objects.get()
    assert (act.verb, act.by, act.target, act.reason) == ("enqueue", "ann", add.name, "import 7")
    assert act.details == {"inserted": 1, "duplicates": 0}


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("[1", "This is not JSON"),
        ("[1, 2, 3]", "cannot be called like this"),
        ('{"a": 1, "b": "x"}', "b: Input should be a valid integer"),
        ('{"args": 3}', '"args" is not a list'),
        ('{"args": [1, 2], "key": 3}', "must be a text"),
        ('{"args": [1, 2], "key": "a\\u0000"}', "a character that not every database can keep"),
        ('{"args": [1, 2], "key": "\\ud800"}', "a character that not every database can keep"),
        ('{"__type__": "decimal", "__value__": "1,5"}', "a __type__ does not fit its __value__"),
        ('{"__type__": ["x"], "__value__": 1}', "a __type__ does not fit its __value__"),
        ('[1, {"__type__": "datetime", "__value__": 5}]', "a __type__ does not fit its __value__"),
    ],
)
def test_a_wrong_line_is_named_with_what_is_enqueued_and_how_to_go_on(file: Any, wrong: str, says: str) -> None:
    path = file("[1, 2]", "", "[3, 4]", "[5, 6]", "[7, 8]", wrong, "[9, 10]")
    answer = run("jobs", "enqueue", "add", "--from", path)
    assert answer.code == 1
    assert f"{path}, line 6: " in answer.err
    assert says in answer.err
    assert "The lines before line 5 are enqueued; to go on from there: --start 5" in answer.err
    assert Job.objects.count() == 3
    path.write_text(path.read_text().replace(wrong, "[0, 0]"))
    assert run("jobs", "enqueue", "add", "--from", path, "--start", 5).out.startswith("3 jobs")
    assert Job.objects.count() == 6


def test_a_first_line_that_is_wrong_leaves_nothing(file: Any) -> None:
    answer = run("jobs", "enqueue", "add", "--from", file("nonsense"))
    assert (answer.code, Job.objects.count(), Act.objects.count()) == (1, 0, 0)
    assert "line 1: This is not JSON" in answer.err
    assert "Nothing is enqueued." in answer.err


def test_a_dry_run_checks_all_and_enqueues_nothing(file: Any) -> None:
    path = file("[1, 2]", "[3, 4]", "[5, 6]", "[7, 8]")
    assert run("jobs", "enqueue", "add", "--from", path, "--dry-run").out.startswith("4 jobs of ")
    path.write_text(path.read_text() + "[9]\n")
    answer = run("jobs", "enqueue", "add", "--from", path, "--dry-run")
    assert (answer.code, Job.objects.count()) == (1, 0)
    assert "line 5: " in answer.err


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("nothing_like_it",), 2, "The project has no task"),
        (("add", "--queue", "nowhere"), 2, "unknown queue 'nowhere'"),
        (("add", "--key", "same"), 2, "all items would be one job"),
        ((untracked.name,), 2, "is not tracked"),
    ],
)
def test_a_mistake_is_one_sentence(file: Any, words: tuple[str, ...], code: int, says: str) -> None:
    answer = run("jobs", "enqueue", *words, "--from", file("[1, 2]"))
    assert (answer.code, Job.objects.count()) == (code, 0)
    assert says in answer.err


def test_a_file_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    answer = run("jobs", "enqueue", "add", "--from", tmp_path / "none.jsonl")
    assert (answer.code, "none.jsonl cannot be read: No such file" in answer.err) == (2, True)


def test_a_standard_input_that_is_closed_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    answer = run("jobs", "enqueue", "add", "--from", "-")
    assert (answer.code, answer.err.strip()) == (2, "The standard input is closed.")


def test_a_file_of_another_system_is_read(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b"\xef\xbb\xbf[1, 2]\r\n\r\n[3, 4]\r\n")
    assert run("jobs", "enqueue", "add", "--from", path).out.startswith("2 jobs")


def test_a_line_without_an_end_does_not_fill_the_memory(file: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enqueuing, "LONGEST", 20)
    path = file("[1, 2]", "[3, " + "4" * 90 + "]", "[5, 6]")
    answer = run("jobs", "enqueue", "add", "--from", path)
    assert (answer.code, Job.objects.count()) == (1, 0)
    assert "line 2: It is longer than 20 bytes." in answer.err
    assert run("jobs", "enqueue", "add", "--from", path, "--start", 3).out.startswith("1 job ")


def test_somebody_who_stops_it_is_told_how_far_it_came(file: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = file(*["[1, 2]"] * 7)
    inserted = bulk.lifecycle.insert_many
    monkeypatch.setattr(
        bulk.lifecycle, "insert_many", lambda jobs: inserted(jobs) if not Job.objects.exists() else stop()
    )

    def stop() -> Any:
        raise KeyboardInterrupt

    answer = run("jobs", "enqueue", "add", "--from", path)
    assert answer.code == 130
    assert "The lines before line 4 are enqueued; to go on from there: --start 4" in answer.err
    assert Act.objects.get().details == {"inserted": 3, "duplicates": 0}
