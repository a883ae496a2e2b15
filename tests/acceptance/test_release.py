"""Releasing in several processes at once, and one that dies in the middle: each job runs once."""

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from jobs import lifecycle
from jobs.models import Job
from jobs.states import State
from project.servers import RedisServer
from tests.children import Child, python
from tests.platform import Platform
from tests.sample.tasks import note

WaitUntil = Callable[..., Any]
Spawn = Callable[..., Child]

pytestmark = pytest.mark.django_db(transaction=True)


def due(count: int) -> None:
    """So many jobs that are due."""
    first = Job.objects.get(pk=note.apply_async(("0",), countdown=60).id)
    fields = {f.attname: getattr(first, f.attname) for f in Job._meta.concrete_fields if f.attname != "id"}
    Job.objects.bulk_create(Job(**(fields | {"payload": f'{{"args":["{n}"],"kwargs":{{}}}}'})) for n in range(1, count))
    lifecycle.move_all([State.PENDING], State.PENDING, "due_at IS NOT NULL", [], "", due_at=lifecycle.NOW)


def releasing(spawn: Spawn, start: Path, where: str = "nowhere") -> Child:
    """A process that is ready to release."""
    return spawn("release", python("-m", "tests.acceptance.releasing", str(start), where)).expect("ready")


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_that_release_one_backlog_at_once_send_each_job_once(
    spawn: Spawn, platform: Platform, broker: RedisServer, wait_until: WaitUntil, tmp_path: Path, processes: int
) -> None:
    platform.stop()  # its conductor would release, too
    due(3000)
    start = tmp_path / "start"
    children = [releasing(spawn, start) for _ in range(processes)]
    start.touch()
    wait_until(lambda: all(not child.running for child in children), timeout=60)
    released = [int(re.findall(r"released (\d+)", child.log)[0]) for child in children]
    assert sum(released) == 3000
    assert Job.objects.filter(state=State.RESERVED, sends=1).count() == 3000
    with Redis.from_url(broker.url) as client:
        messages = Counter(re.findall(rb'"id": "([^"]+)"', b"".join(client.lrange("default\x06\x166", 0, -1))))
    assert (len(messages), set(messages.values())) == (3000, {1})


@pytest.mark.parametrize("where", ["reserved", "half", "sent"])
def test_what_a_process_held_that_died_in_the_middle_runs_once(
    spawn: Spawn, platform: Platform, wait_until: WaitUntil, tmp_path: Path, where: str
) -> None:
    platform.stop()
    due(100)
    start = tmp_path / "start"
    doomed = releasing(spawn, start, where)
    start.touch()
    wait_until(lambda: not doomed.running)
    assert "released" not in doomed.log
    assert Job.objects.filter(state=State.RESERVED).count() == 100
    platform.start()
    wait_until(lambda: Job.objects.filter(state=State.COMPLETED).count() == 100, timeout=40)
    assert sorted(map(int, platform.witness.lines)) == list(range(100))
