"""Two live workers of one name are two rows: each one's jobs are known to be held, and both say what is wrong."""

import logging
import os
import socket
import subprocess
import sys
from datetime import timedelta

import pytest

from jobs import evidence, lifecycle, roll
from jobs.admin import health
from jobs.checks import check_sharing
from jobs.models import Worker
from jobs.roll import Entry
from tests.platform import fresh
from tests.sample.tasks import add

pytestmark = pytest.mark.django_db

NAME = "mail@" + socket.gethostname()


def report(entry: Entry, *holds: str, pid: int | None = None) -> None:
    """One report; of another process, when its pid is given."""
    seen = {"pid": pid or os.getpid(), "seen_at": lifecycle.database_now(), "holds": list(holds)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jobs.roll.os.getpid", lambda: seen["pid"])
        entry.write(seen)


@pytest.fixture
def alive() -> int:
    """The pid of a process that lives."""
    return os.getppid()


@pytest.fixture
def dead() -> int:
    """The pid of a process that has ended."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_a_worker_alone_has_the_row_of_its_name() -> None:
    entry = Entry(NAME)
    report(entry, "a")
    report(entry, "b")
    assert list(Worker.objects.values_list("name", "holds")) == [(NAME, ["b"])]


def test_what_two_workers_of_a_name_hold_is_known_of_both(alive: int) -> None:
    first, second = Entry(NAME), Entry(NAME)
    for _ in range(3):
        report(first, "a", pid=alive)
        report(second, "b")
    assert evidence.reports().held == {"a", "b"}
    assert Worker.objects.count() == 2


def test_two_that_begin_together_find_each_other(alive: int) -> None:
    first, second = Entry(NAME), Entry(NAME)
    report(first, "a", pid=alive)
    Worker.objects.update(pid=os.getpid())  # the second has overwritten it, having seen no row
    second.started_at, second.row = Worker.objects.get().started_at + timedelta(seconds=1), NAME
    Worker.objects.update(started_at=second.started_at)
    report(first, "a", pid=alive)
    report(second, "b")
    assert evidence.reports().held == {"a", "b"}


def test_both_say_it_once(alive: int, caplog: pytest.LogCaptureFixture) -> None:
    first, second = Entry(NAME), Entry(NAME)
    with caplog.at_level(logging.WARNING, "jobs.worker"):
        for _ in range(4):
            report(first, pid=alive)
            report(second)
    sentences = [record.getMessage() for record in caplog.records]
    assert len(sentences) == 2
    assert all(f"2 live workers are called {NAME} (pid " in sentence for sentence in sentences)
    assert "Give each worker a name of its own" in sentences[0]


def test_a_start_after_a_kill_is_no_second_worker(
    alive: int, caplog: pytest.LogCaptureFixture, sent: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Elsewhere, it cannot be told whether the other one lives, until it does not report again."""
    killed, next_one = Entry("mail@elsewhere"), Entry("mail@elsewhere")
    job = add.delay(1, 2)
    report(killed, str(job.id), pid=alive)
    report(next_one)
    assert fresh(job).state == "reserved"
    monkeypatch.setattr(roll, "SILENT", timedelta(0))
    report(next_one)
    assert fresh(job).state == "pending"
    assert Worker.objects.get().name == "mail@elsewhere"
    assert caplog.records == []


def test_a_process_of_this_host_that_is_gone_is_replaced_at_once(dead: int, sent: list[str]) -> None:
    job = add.delay(1, 2)
    report(Entry(NAME), str(job.id), pid=dead)
    report(Entry(NAME))
    assert fresh(job).state == "pending"
    assert Worker.objects.get().pid == os.getpid()


def test_a_worker_that_stops_strikes_its_own_row_alone(alive: int) -> None:
    first, second = Entry(NAME), Entry(NAME)
    report(first, "a", pid=alive)
    report(second, "b")
    second.strike()
    assert Worker.objects.get().holds == ["a"]


def test_the_admin_and_the_checks_say_so(alive: int) -> None:
    report(Entry(NAME), pid=alive)
    assert (health.warnings(), check_sharing(databases=["default"])) == ([], [])
    report(Entry(NAME))
    assert "2 live workers are called" in health.warnings()[0]
    assert check_sharing(databases=["default"])[0].id == "jobs.W014"
    assert check_sharing() == []
