"""A database or a broker that cannot be used is one line that says which and why."""

import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from celery import Celery
from django.core.management.base import CommandError
from django.db import ProgrammingError
from django.utils import timezone

from jobs import publisher
from jobs.management.refusals import as_sentences
from jobs.models import Act, Job, Worker
from jobs.publisher import Publisher
from tests.children import ROOT
from tests.jobs.admin.rows import job
from tests.jobs.apps import only_for_now
from tests.jobs.cli import run

NOWHERE = "sqlite:////nowhere/jobs.sqlite3"


def manage(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own."""
    command = [sys.executable, "manage.py", *words]
    environ = {**os.environ, "LOG_LEVEL": "CRITICAL", **variables}
    return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def broker_nowhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Send to a port where nobody listens."""
    app = Celery("nowhere", broker="redis://:secret@127.0.0.1:9/0", set_as_current=False)
    with only_for_now(monkeypatch):
        publisher.use(Publisher(app, app.send_task))
        yield


@pytest.mark.one_database
@pytest.mark.parametrize("words", [["jobs", "list"], ["dlq", "stats"], ["conductor"], ["conductor", "--once"]])
def test_an_unreachable_database_is_one_line(words: list[str]) -> None:
    ended = manage(*words, DATABASE_URL=NOWHERE)
    sentence = "The database sqlite /nowhere/jobs.sqlite3 cannot be used: unable to open database file"
    assert (ended.returncode, ended.stderr) == (1, f"CommandError: {sentence}\n")


@pytest.mark.one_database
@pytest.mark.parametrize("words", [["jobs", "list"], ["conductor"]])
def test_a_database_without_tables_is_one_line_with_the_remedy(words: list[str], tmp_path: Path) -> None:
    ended = manage(*words, DATABASE_URL=f"sqlite:///{tmp_path}/empty.sqlite3")
    assert ended.stderr.count("\n") == 1
    assert "Run: manage.py migrate" in ended.stderr


@pytest.mark.one_database
def test_an_unreachable_postgres_is_named_without_its_password() -> None:
    ended = manage("jobs", "stats", DATABASE_URL="postgres://ann:secret@127.0.0.1:9/shop")
    assert ended.stderr.startswith("CommandError: The database postgresql shop at 127.0.0.1:9 cannot be used: ")
    assert "secret" not in ended.stderr


@pytest.mark.one_database
def test_a_mistake_of_ours_keeps_its_traceback() -> None:
    with pytest.raises(ProgrammingError), as_sentences():
        raise ProgrammingError("syntax error")


@pytest.mark.one_database
def test_an_interrupted_command_says_so() -> None:
    with pytest.raises(CommandError, match="Stopped"), as_sentences():
        raise KeyboardInterrupt


@pytest.mark.django_db
def test_an_unreachable_broker_is_one_line_without_its_password(broker_nowhere: None) -> None:
    answer = run("jobs", "requeue-stuck")
    assert answer.err.startswith("The broker redis://:••••••@127.0.0.1:9/0 cannot be reached: ")
    assert (answer.err.count("\n"), answer.code) == (1, 1)


@pytest.mark.django_db
def test_what_was_rescued_stays_so_when_the_broker_cannot_be_reached(broker_nowhere: None) -> None:
    dead = job("running", lease_until=timezone.now() - timedelta(seconds=30))
    run("jobs", "requeue-stuck")
    dead.refresh_from_db()
    assert dead.state == "retrying"


# --- Requeue stuck --------------------------------------------------------------------------------


@pytest.mark.django_db
def test_a_job_whose_lease_has_ended_is_sent_again(broker: object) -> None:
    dead = job("running", lease_until=timezone.now() - timedelta(seconds=30))
    answer = run("jobs", "requeue-stuck", "--json")
    dead.refresh_from_db()
    assert (answer.json["rescued"], answer.json["released"], dead.state) == (1, 1, "reserved")


@pytest.mark.django_db
def test_a_job_whose_message_is_lost_is_sent_again(broker: object) -> None:
    lost = job("reserved", sent_at=timezone.now() - timedelta(minutes=1), sends=1)
    answer = run("jobs", "requeue-stuck", "--json")
    lost.refresh_from_db()
    assert (answer.json["lost"], lost.sends) == (1, 2)


@pytest.mark.django_db
def test_a_job_that_a_live_worker_holds_is_left_alone(broker: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.rescue.PATIENCE", 2.0)
    held = job("reserved", sent_at=timezone.now() - timedelta(minutes=1), sends=1)
    soon = timezone.now() + timedelta(seconds=10)
    Worker.objects.create(name="w", pid=1, started_at=soon, seen_at=soon, holds=[str(held.pk)])
    assert run("jobs", "requeue-stuck", "--json").json["lost"] == 0


@pytest.mark.django_db
def test_requeue_stuck_is_on_record(broker: object) -> None:
    run("jobs", "requeue-stuck", "--by", "ann", "--reason", "after the outage")
    assert Act.objects.filter(verb="requeue stuck", by="ann", reason="after the outage").exists()


# --- Conductor ------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_a_conductor_that_runs_once_sends_what_is_due_and_ends(broker: object) -> None:
    due = job(due_at=timezone.now() - timedelta(seconds=1))
    run("conductor", "--once")
    assert Job.objects.get(pk=due.pk).state == "reserved"
