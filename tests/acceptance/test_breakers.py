"""Circuit breakers with real workers and conductors, some of which are killed while a circuit is open."""

import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from django.db.models import Sum

from jobs import bulk, circuits, lifecycle
from jobs.breaker import Phase
from jobs.models import Circuit, Job, Worker
from jobs.states import State
from tests.children import Child, python
from tests.platform import Platform
from tests.sample.tasks import flaky

WaitUntil = Callable[..., Any]
Spawn = Callable[..., Child]

ANN = "flaky:ann"


@pytest.fixture(scope="module")
def concurrency() -> int:
    """Enough hands that some are idle when a circuit opens."""
    return 4


def started(platform: Platform, user: str = "ann") -> int:
    """How many bodies of a user have started."""
    return sum(line.startswith(f"flaky:{user}:") for line in platform.witness.lines)


def opened(times: int = 1) -> Circuit | None:
    """The circuit of ann, once it has opened so many times."""
    row = Circuit.objects.filter(key=ANN, openings__gte=times).first()
    return row if row is not None and circuits.phase(row) is Phase.OPEN else None


def completed(user: str) -> int:
    return Job.objects.filter(state=State.COMPLETED, payload__contains=f'"{user}"').count()


def mend(platform: Platform) -> None:
    """From now on nothing fails."""
    Path(f"{platform.witness.path}.mended").touch()


@pytest.fixture(autouse=True)
def broken_at_first(platform: Platform) -> None:
    Path(f"{platform.witness.path}.mended").unlink(missing_ok=True)


def enqueued(platform: Platform, wait_until: WaitUntil, many: int = 40) -> None:
    """Jobs of ann, which fail, and of bob, which do not."""
    wait_until(lambda: Worker.objects.filter(concurrency=platform.concurrency).exists())
    bulk.bulk(flaky, [(f"{n}", "ann" if n % 2 else "bob") for n in range(2 * many)])


def nothing_starts_before(platform: Platform, until: Any, wait_until: WaitUntil) -> int:
    """Hold that no body of ann starts until a moment; return how many have by then."""
    time.sleep(0.3)  # what ran when it opened
    before = started(platform)
    while lifecycle.database_now() < until:
        assert started(platform) == before
        time.sleep(0.05)
    return before


def test_who_keeps_failing_is_parked_while_others_run(platform: Platform, wait_until: WaitUntil) -> None:
    enqueued(platform, wait_until)
    circuit = wait_until(opened, timeout=20)
    count = nothing_starts_before(platform, circuit.open_until, wait_until)
    assert 5 <= count <= 5 + 3  # the others ran in the other hands when the fifth failed
    wait_until(lambda: completed("bob") == 40, timeout=30)
    again = wait_until(lambda: opened(2), timeout=20)
    assert nothing_starts_before(platform, again.open_until, wait_until) == count + 1
    mend(platform)
    wait_until(lambda: completed("ann") == 40, timeout=40)
    assert Job.objects.aggregate(sum=Sum("attempt"))["sum"] == started(platform) + started(platform, "bob")
    assert not Circuit.objects.exclude(open_until=None).exists()


def test_it_stays_open_when_the_conductor_and_the_worker_are_killed(
    platform: Platform, spawn: Spawn, wait_until: WaitUntil
) -> None:
    enqueued(platform, wait_until, 15)
    circuit = wait_until(opened, timeout=20)
    other = spawn("conductor", python("manage.py", "conductor"), platform.environ)
    assert platform.conductor is not None
    assert platform.worker is not None
    platform.conductor.kill()
    platform.worker.kill()
    platform.start()
    if lifecycle.database_now() < circuit.open_until:
        nothing_starts_before(platform, circuit.open_until, wait_until)
    second = wait_until(lambda: opened(2), timeout=40)
    nothing_starts_before(platform, second.open_until, wait_until)
    mend(platform)
    wait_until(lambda: completed("ann") == 15, timeout=60)
    assert other.running


def test_while_a_probe_runs_no_other_job_starts(platform: Platform, wait_until: WaitUntil) -> None:
    enqueued(platform, wait_until, 20)
    counts = []
    for times in (1, 2, 3):
        row = wait_until(lambda times=times: opened(times), timeout=20)
        counts.append(nothing_starts_before(platform, row.open_until, wait_until))
    assert [later - sooner for sooner, later in pairwise(counts)] == [1, 1]
    mend(platform)
    wait_until(lambda: completed("ann") == 20, timeout=40)
