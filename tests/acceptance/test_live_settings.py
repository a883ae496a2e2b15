"""What an operator sets in the admin takes effect within a second, on workers and a conductor that run already."""

import time
from collections.abc import Callable
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse

from jobs import control
from jobs.models import Act, Allotment, Job, Pause, Worker
from jobs.states import State
from tests.platform import Platform, fresh
from tests.sample.tasks import alone, note, through_gateway

WaitUntil = Callable[..., Any]

A_SECOND = 1.0


@pytest.fixture(scope="module")
def concurrency() -> int:
    """Enough hands for what a limit lets go."""
    return 4


@pytest.fixture
def ready(platform: Platform, wait_until: WaitUntil) -> Platform:
    """A platform whose worker has said how many hands it has."""
    wait_until(lambda: Worker.objects.filter(concurrency=platform.concurrency).exists())
    return platform


def post(client: Client, page: str, /, **fields: str) -> float:
    """Send a form of the admin; return when it was answered."""
    answer = client.post(reverse(f"admin:{page}"), fields)
    assert answer.status_code == 302
    return time.monotonic()


def test_a_limit_that_is_raised(ready: Platform, admin_client: Client, wait_until: WaitUntil) -> None:
    for name in "abc":
        alone.delay(name, 3.0)
    wait_until(lambda: "start:a" in ready.witness.lines)
    assert "start:b" not in ready.witness.lines
    set_at = post(admin_client, "jobs_allotment_set_slots", name=alone.name, slots="3", reason="night")
    wait_until(lambda: {"start:b", "start:c"} <= set(ready.witness.lines), timeout=10)
    assert time.monotonic() - set_at < A_SECOND
    assert Act.objects.get(verb="allot").by == "admin"
    wait_until(lambda: not Job.objects.filter(finished_at=None).exists(), timeout=20)


def test_a_limit_that_is_withdrawn(ready: Platform, admin_client: Client, wait_until: WaitUntil) -> None:
    control.allot("gateway", rate="1/h", burst=1, by="ann", reason="trouble")
    for number in range(3):
        through_gateway.apply_async((str(number),), tenant=str(number))
    wait_until(lambda: len(ready.witness.lines) == 1)
    pk = str(Allotment.objects.get().pk)
    gone_at = post(admin_client, "jobs_allotment_act", verb="withdraw", ids=pk, confirmed="yes", reason="it is over")
    wait_until(lambda: len(ready.witness.lines) >= 2, timeout=10)
    assert time.monotonic() - gone_at < A_SECOND
    wait_until(lambda: len(ready.witness.lines) == 3, timeout=10)


def test_a_pause_and_its_end(ready: Platform, admin_client: Client, wait_until: WaitUntil) -> None:
    post(admin_client, "jobs_pause_pause", what="queue:default", reason="a move")
    direct, in_line = note.delay("direct"), note.apply_async(("in line",), tenant="t")
    wait_until(lambda: fresh(direct).state == State.PENDING and fresh(direct).reason == "paused")
    assert fresh(in_line).state == State.PENDING
    assert ready.witness.lines == []
    pk = str(Pause.objects.get().pk)
    resumed_at = post(admin_client, "jobs_pause_act", verb="resume", ids=pk, confirmed="yes", reason="moved")
    wait_until(lambda: {"direct", "in line"} <= set(ready.witness.lines), timeout=10)
    assert time.monotonic() - resumed_at < A_SECOND


def test_a_weight(ready: Platform, admin_client: Client, wait_until: WaitUntil) -> None:
    control.allot("{task}", slots=1, by="ann")  # one at a time, so that the order is that of the releases
    control.pause(queue="default", reason="until all are there", by="ann")
    for number in range(12):
        for tenant in ("acme", "bolt"):
            alone.apply_async((f"{tenant}{number}",), tenant=tenant)
    post(admin_client, "jobs_allotment_set_weight", name="acme", weight="3", reason="pays for three")
    control.resume(queue="default", by="ann")
    wait_until(lambda: len([line for line in ready.witness.lines if line.startswith("start:")]) >= 12, timeout=30)
    first = [line for line in ready.witness.lines if line.startswith("start:")][:12]
    assert sum(line.startswith("start:acme") for line in first) in (8, 9, 10)
    wait_until(lambda: not Job.objects.filter(finished_at=None).exists(), timeout=30)
