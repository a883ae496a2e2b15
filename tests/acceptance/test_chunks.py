"""Chunks with real workers and conductors, some of which are killed: no job is lost, none is taken down by another."""

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from django.db import transaction
from django.db.models import Q
from redis import Redis

from jobs import bulk, control
from jobs.models import ChunkMember, Job, Slot, Worker
from jobs.states import State
from project.servers import RedisServer
from tests.children import Child
from tests.platform import Platform, Witness, fresh, messages
from tests.sample.tasks import note, send_together

WaitUntil = Callable[..., Any]
Spawn = Callable[..., Child]


def reported(platform: Platform, wait_until: WaitUntil) -> None:
    """The worker has said how many hands it has."""
    wait_until(lambda: Worker.objects.filter(concurrency=platform.concurrency).exists())


def begun(witness: Witness) -> list[list[str]]:
    """The payloads of each call, in order."""
    return [line.removeprefix("begin:").split(",") for line in witness.lines if line.startswith("begin:")]


def at_once(*hows: str) -> list[Any]:
    """Calls that go together: of one transaction."""
    with transaction.atomic():
        return [send_together.delay(how) for how in hows]


def completed() -> int:
    """How many jobs have completed."""
    return Job.objects.filter(state=State.COMPLETED).count()


def nothing_is_left(wait_until: WaitUntil) -> None:
    """Neither members nor slots outlive their jobs."""
    wait_until(lambda: not ChunkMember.objects.exists() and not Slot.objects.exists(), timeout=30)


def test_many_jobs_need_few_calls_and_each_runs_once(platform: Platform, wait_until: WaitUntil) -> None:
    reported(platform, wait_until)
    bulk.bulk(send_together, [f"n{number}" for number in range(450)])
    wait_until(lambda: completed() == 450, timeout=30)
    calls = begun(platform.witness)
    assert sorted(one for call in calls for one in call) == sorted(f"n{number}" for number in range(450))
    assert 5 <= len(calls) <= 8
    assert max(map(len, calls)) == 100
    nothing_is_left(wait_until)


def test_a_pill_that_kills_its_worker_each_time_takes_nobody_with_it(platform: Platform, wait_until: WaitUntil) -> None:
    reported(platform, wait_until)
    jobs = at_once(*(f"n{number}" for number in range(40)))
    pill = send_together.delay("all kill")
    wait_until(lambda: not Job.objects.filter(finished_at=None).exists(), timeout=60)
    assert fresh(pill).state == State.FAILED
    assert fresh(pill).reason == "poison: lost 3 times, last: killed by signal 9 (SIGKILL)"
    assert {fresh(job).state for job in jobs} == {State.COMPLETED}
    assert max(fresh(job).losses for job in jobs) <= 2
    done = [one for line in platform.witness.lines if line.startswith("done:") for one in line[5:].split(",")]
    assert sorted(done) == sorted(f"n{number}" for number in range(40))
    nothing_is_left(wait_until)


def test_a_worker_that_is_gone_costs_each_job_one_attempt(platform: Platform, wait_until: WaitUntil) -> None:
    reported(platform, wait_until)
    jobs = at_once("a", "all hang", "b")
    wait_until(lambda: begun(platform.witness) == [["a", "all hang", "b"]])
    control.cancel(Job.objects.get(pk=jobs[1].id).pk, reason="it hangs", by="ann")
    assert platform.worker is not None
    for pid in (platform.worker.pid, *platform.worker.children()):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    platform.worker.process.wait()
    platform.start()
    wait_until(lambda: not Job.objects.filter(finished_at=None).exists(), timeout=40)
    assert [fresh(job).state for job in jobs] == [State.COMPLETED, State.CANCELLED, State.COMPLETED]
    assert [fresh(job).losses for job in (jobs[0], jobs[2])] == [1, 1]
    nothing_is_left(wait_until)


def test_the_leases_of_all_are_renewed_while_a_call_takes_long(platform: Platform, wait_until: WaitUntil) -> None:
    reported(platform, wait_until)
    jobs = at_once("a", *["all nap"] * 20, "b")  # ten seconds; a lease is six
    wait_until(lambda: {fresh(job).state for job in jobs} == {State.COMPLETED}, timeout=30)
    assert {(fresh(job).attempt, fresh(job).losses) for job in jobs} == {(1, 0)}
    assert len(begun(platform.witness)) == 1


@pytest.mark.parametrize("all_of_it", [True, False])
def test_a_message_that_the_broker_lost_is_sent_again_for_all(
    platform: Platform, broker: RedisServer, wait_until: WaitUntil, all_of_it: bool
) -> None:
    reported(platform, wait_until)
    assert platform.worker is not None
    platform.worker.stop()
    jobs = at_once(*(f"n{number}" for number in range(5)))
    wait_until(lambda: {fresh(job).state for job in jobs} == {State.RESERVED} and messages(broker.url) == 1, timeout=20)
    with Redis.from_url(broker.url) as client:
        if all_of_it:
            client.flushall()
        else:
            client.delete("default", *(f"default\x06\x16{step}" for step in (3, 6, 9)))
    platform.start()
    wait_until(lambda: {fresh(job).state for job in jobs} == {State.COMPLETED}, timeout=60)
    ran = [one for call in begun(platform.witness) for one in call]
    assert sorted(ran) == [f"n{number}" for number in range(5)]
    nothing_is_left(wait_until)


def test_a_conductor_that_is_killed_among_releases_leaves_no_job_behind(
    platform: Platform, wait_until: WaitUntil
) -> None:
    reported(platform, wait_until)
    bulk.bulk(send_together, [f"n{number}" for number in range(1500)])
    for _ in range(3):
        before = completed()
        wait_until(lambda before=before: completed() > before, timeout=30)
        assert platform.conductor is not None
        platform.conductor.kill()
        platform.start()
    wait_until(lambda: completed() == 1500, timeout=60)
    ran = [one for call in begun(platform.witness) for one in call]
    assert len(ran) == len(set(ran)) == 1500
    nothing_is_left(wait_until)


def test_what_waits_beside_a_gathering_chunk_is_not_held_up(platform: Platform, wait_until: WaitUntil) -> None:
    reported(platform, wait_until)
    began = time.monotonic()
    send_together.delay("x")
    job = note.apply_async(("beside",), priority="low")
    wait_until(lambda: fresh(job).state == State.COMPLETED)
    assert time.monotonic() - began < 5
    wait_until(lambda: not Job.objects.filter(~Q(state=State.COMPLETED)).exists())
