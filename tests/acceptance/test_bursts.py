"""Bursts with real workers, conductors and callers in many processes: no call without a run, no run too many."""

import re
from collections import defaultdict
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from jobs.models import Burst, Call, Job
from jobs.states import State
from tests.children import Child, python
from tests.platform import Platform
from tests.sample.tasks import sleepy, soon_calm, soon_sparing

WaitUntil = Callable[..., Any]
Spawn = Callable[..., Child]

SLACK = 0.05  # seconds by which the clocks of processes may be read apart


class Called(NamedTuple):
    """One call as its caller saw it."""

    before: float
    after: float
    key: str
    what: str
    job: str


def burst_of_calls(
    spawn: Spawn, wait_until: WaitUntil, platform: Platform, place: Path, task: str, between: Callable[[], Any]
) -> list[Called]:
    """Four processes call a task of three keys, a hundred times each; ``between`` is done in the middle."""
    start = place / "start"
    script = "tests.acceptance.calling"
    callers = [
        spawn("calling", python("-m", script, str(start), task, f"c{n}", "100", "3"), platform.environ).expect("ready")
        for n in range(4)
    ]
    start.touch()
    callers[0].expect("c0.30 ")
    between()
    for caller in callers:
        caller.expect("done", timeout=100)
    wait_until(lambda: not Job.objects.filter(finished_at=None).exists(), timeout=60)
    found = [line for caller in callers for line in re.findall(r"^called (.+)$", caller.log, re.MULTILINE)]
    return [Called(float(a), float(b), key, what, job) for a, b, key, what, job in (line.split() for line in found)]


def check_each_call_has_a_run_after_it(calls: list[Called]) -> None:
    """With its payload, or with one that came no earlier; nothing of what was rolled back."""
    assert len(calls) == 400
    jobs = {str(job.pk): job for job in Job.objects.all()}
    of_job: defaultdict[str, list[Called]] = defaultdict(list)
    for call in calls:
        of_job[call.job].append(call)
        job = jobs[call.job]
        assert job.state == State.COMPLETED
        assert job.started_at is not None
        assert job.started_at.timestamp() > call.before - SLACK
    assert set(of_job) == set(jobs)
    by_what = {call.what: call for call in calls}
    for job_id, together in of_job.items():
        words = re.findall(r"c\d\.\d+(?:-undone)?", str(jobs[job_id].result))
        ran_with = by_what[words[0]]
        assert all(ran_with.after >= call.before for call in together)
        assert {call.key for call in together} == {ran_with.key}
    assert not Call.objects.exists()


@pytest.fixture
def other_conductor(platform: Platform, spawn: Spawn) -> Callable[[], Any]:
    """Let another conductor take over."""

    def take_over() -> None:
        spawn("conductor", python("manage.py", "conductor"), platform.environ)
        assert platform.conductor is not None
        platform.conductor.kill()

    return take_over


def test_a_debounced_burst_of_many_processes_is_few_runs_and_no_call_is_lost(
    platform: Platform, spawn: Spawn, wait_until: WaitUntil, tmp_path: Path, other_conductor: Callable[[], Any]
) -> None:
    calls = burst_of_calls(spawn, wait_until, platform, tmp_path, "soon_calm", other_conductor)
    check_each_call_has_a_run_after_it(calls)
    for key in "012":
        own = [call for call in calls if call.key == key]
        lasted = max(call.after for call in own) - min(call.before for call in own)
        # Windows of two seconds at the longest, each begun by a call; or of half a second without one.
        assert Job.objects.filter(task=soon_calm.name, result__contains=f'"{key} ').count() <= lasted / 0.5 + 1
        by_job: defaultdict[str, list[Called]] = defaultdict(list)
        for call in own:
            by_job[call.job].append(call)
        for together in by_job.values():
            assert max(call.before for call in together) - min(call.after for call in together) < 2 + SLACK
    assert not Burst.objects.exists()


def test_throttled_runs_of_many_processes_are_a_span_apart_and_no_call_is_lost(
    platform: Platform, spawn: Spawn, wait_until: WaitUntil, tmp_path: Path, other_conductor: Callable[[], Any]
) -> None:
    calls = burst_of_calls(spawn, wait_until, platform, tmp_path, "soon_sparing", other_conductor)
    check_each_call_has_a_run_after_it(calls)
    for key in "012":
        runs = Job.objects.filter(task=soon_sparing.name, result__contains=f'"{key} ').order_by("started_at")
        starts = [job.started_at.timestamp() for job in runs if job.started_at]
        assert len(starts) >= 2
        assert all(later - earlier >= 1 - 0.001 for earlier, later in pairwise(starts))


def test_what_sleeps_leaves_its_worker_and_its_slot_to_others(platform: Platform, wait_until: WaitUntil) -> None:
    sleeping = sleepy.delay("long", 1, 3)
    wait_until(lambda: Job.objects.filter(pk=sleeping.id, snoozes=1).exists())
    others = [sleepy.delay(f"other{n}", 0) for n in range(4)]
    assert [other.get(timeout=20).split()[0] for other in others] == [f"other{n}" for n in range(4)]
    assert not sleeping.ready()
    assert sleeping.get(timeout=20) == "long after 1"
    job = Job.objects.get(pk=sleeping.id)
    assert (job.attempt, job.snoozes, job.error_type) == (2, 1, "")
    assert [attempt.outcome for attempt in job.attempts.all()] == ["snoozed"]
