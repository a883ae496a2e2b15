"""Messages that the broker loses are found by evidence and sent again; those that it still has are not."""

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.db import transaction
from redis import Redis

from jobs import epoch
from jobs.models import Epoch, Job, Worker
from jobs.states import State
from project.servers import RedisServer
from tests.children import Child
from tests.platform import QUICK, Platform, fresh
from tests.sample.tasks import note, patient

WaitUntil = Callable[..., Any]

MANY = int(os.environ.get("TEST_MANY", "1500"))


@pytest.fixture
def marked(platform: Platform, wait_until: WaitUntil) -> Platform:
    """The platform, with the conductor's marker in the broker."""
    wait_until(lambda: Epoch.objects.filter(serial__gt=1, lost_until=None).exists())
    return platform


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """A file for which patient bodies wait."""
    return tmp_path / "gate"


def enqueue_many(count: int) -> list[str]:
    """Many jobs in one transaction; return what each of them writes."""
    lines = [f"job {number}" for number in range(count)]
    with transaction.atomic():
        for line in lines:
            note.delay(line)
    return lines


def occupy(platform: Platform, gate: Path, wait_until: WaitUntil) -> list[Any]:
    """Keep both slots of the worker busy."""
    jobs = [patient.delay(str(gate)) for _ in range(2)]
    wait_until(lambda: all(fresh(job).state == State.RUNNING for job in jobs), timeout=20)
    return jobs


def test_everything_that_a_flushed_broker_had_is_sent_again_and_runs_once(
    marked: Platform, broker: RedisServer, gate: Path, wait_until: WaitUntil
) -> None:
    busy = occupy(marked, gate, wait_until)
    lines = enqueue_many(MANY)
    with Redis.from_url(broker.url) as client:
        assert client.llen("default\x06\x166") > MANY - 10
        client.flushall()
        wait_until(lambda: client.llen("default\x06\x166") > MANY - 10, timeout=30)
    gate.touch()
    wait_until(lambda: not Job.objects.filter(finished_at=None).exists(), timeout=120)
    assert Counter(line for line in marked.witness.lines if line.startswith("job ")) == Counter(lines)
    assert {fresh(job).state for job in busy} == {State.COMPLETED}


def test_a_deep_backlog_in_a_healthy_broker_is_not_sent_twice(
    marked: Platform, gate: Path, wait_until: WaitUntil
) -> None:
    occupy(marked, gate, wait_until)
    enqueue_many(300)
    sent = dict(Job.objects.filter(state=State.RESERVED).values_list("pk", "sent_at"))
    serial = Epoch.objects.get(broker=epoch.BROKER).serial
    wait_until(lambda: Epoch.objects.get(broker=epoch.BROKER).serial > serial + 3 * QUICK["LOST_AFTER"] + 3, timeout=30)
    assert dict(Job.objects.filter(state=State.RESERVED).values_list("pk", "sent_at")) == sent
    gate.touch()


def test_what_a_killed_worker_had_received_runs_though_its_queue_is_deep(
    marked: Platform, worker: Callable[..., Child], gate: Path, wait_until: WaitUntil
) -> None:
    assert marked.worker is not None
    marked.worker.stop()
    greedy = worker(name="greedy", env=marked.environ, args=["--prefetch-multiplier", "4"])
    occupy(marked, gate, wait_until)
    held = note.delay("held")
    wait_until(lambda: any(str(held.id) in row.holds for row in Worker.objects.all()), timeout=10)
    greedy.kill()
    backlog = [patient.delay(str(gate)) for _ in range(20)]
    wait_until(lambda: fresh(held).state == State.PENDING or fresh(held).sends > 1, timeout=QUICK["LEASE"] + 10)
    gate.touch()
    worker(name="other", env=marked.environ)
    wait_until(lambda: all(fresh(job).state == State.COMPLETED for job in [held, *backlog]), timeout=60)
    assert marked.witness.lines.count("held") == 1
