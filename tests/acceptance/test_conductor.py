"""Copies of the conductor as processes: one leads, and its death is noticed."""

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from dlq.models import DeadLetter
from jobs.models import Leader
from jobs.states import State
from project.celery import app
from project.servers import RedisServer
from tests.children import Child
from tests.platform import QUICK, fresh
from tests.sample.tasks import note

WaitUntil = Callable[..., Any]


@pytest.mark.django_db(transaction=True)
def test_when_the_leader_is_killed_another_copy_takes_over(
    conductor: Callable[..., Child], broker: RedisServer, wait_until: WaitUntil
) -> None:
    environ = {"TEST_JOBS": json.dumps(QUICK)}
    copies = {copy.pid: copy for copy in (conductor(env=environ), conductor(env=environ))}

    def leader() -> int | None:
        row = Leader.objects.first()
        return int(row.holder.split(":")[1]) if row else None

    first = wait_until(leader)
    copies[first].kill()
    killed = time.monotonic()
    second = wait_until(lambda: leader() if leader() != first else None)
    assert time.monotonic() - killed < QUICK["LEADER_LEASE"] + 2
    assert copies[second].running
    job = note.apply_async(("x",), countdown=0.1)
    wait_until(lambda: fresh(job).state == State.RESERVED)


@pytest.mark.django_db(transaction=True)
def test_a_conductor_that_is_stopped_gives_the_office_up(
    conductor: Callable[..., Child], wait_until: WaitUntil
) -> None:
    copy = conductor()
    wait_until(lambda: Leader.objects.exists())
    assert copy.stop() == 0
    assert not Leader.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_beat_holds_a_conductor(beat: Callable[..., Child], wait_until: WaitUntil) -> None:
    job = note.apply_async(("x",), countdown=0.1)
    beat()
    wait_until(lambda: fresh(job).state == State.RESERVED, timeout=20)


@pytest.mark.django_db(transaction=True)
def test_a_job_of_a_task_that_no_worker_knows_ends_as_a_dead_letter(
    conductor: Callable[..., Child], worker: Callable[..., Child], wait_until: WaitUntil
) -> None:
    environ = {"TEST_JOBS": json.dumps({**QUICK, "MAX_SENDS": 2})}
    conductor(env=environ)
    worker(env=environ)
    job = app.send_task("elsewhere.unknown", (1,))
    known = note.delay("x")
    wait_until(lambda: fresh(job).state == State.FAILED, timeout=30)
    assert fresh(job).reason == "sent 2 times; no worker here knows its task yet"
    assert DeadLetter.objects.get().task == "elsewhere.unknown"
    assert fresh(known).state == State.COMPLETED
