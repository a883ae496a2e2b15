"""A process dies at every moment around a checkpoint, and its job goes on behind it."""

import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from django.contrib.auth.models import Group

from jobs.models import Checkpoint, Job
from jobs.states import State
from tests.acceptance.conftest import Settled
from tests.children import Child, alive
from tests.platform import QUICK, Platform, fresh
from tests.sample.tasks import checkpointed, note, two_at_once

WaitUntil = Callable[..., Any]

MOMENTS = 40  # more than a body passes, so that the last jobs do not die


def test_a_process_that_dies_at_any_moment_leaves_no_row_out_and_writes_none_twice(
    platform: Platform, settled: Settled
) -> None:
    results = {moment: checkpointed.delay(f"job {moment}", moment) for moment in range(MOMENTS)}
    assert settled(timeout=110) == Counter({State.COMPLETED: MOMENTS * 4})

    jobs = {moment: fresh(result) for moment, result in results.items()}
    deaths = [moment for moment, job in jobs.items() if job.losses]
    assert deaths == list(range(len(deaths)))
    assert 15 < len(deaths) < MOMENTS
    assert {job.result for job in jobs.values()} == {"[3]"}
    assert {job.attempt for job in jobs.values()} == {1, 2}

    rows = [f"job {moment}{row}" for moment in jobs for row in ("", ", row 0", ", row 1", ", row 2")]
    assert sorted(Group.objects.values_list("name", flat=True)) == sorted(rows)
    enqueued = Counter(Job.objects.filter(task=note.name).values_list("payload", flat=True))
    assert (len(enqueued), set(enqueued.values())) == (MOMENTS * 3, {1})
    told = Counter(line for line in platform.witness.lines if line.startswith("tell:"))
    assert set(told) == {f"tell:job {moment}" for moment in jobs}
    assert set(told.values()) <= {1, 2}
    assert Checkpoint.objects.count() == MOMENTS * 3


def test_a_frozen_body_that_was_overtaken_cannot_move_the_cursor_nor_write(
    platform: Platform, worker: Callable[..., Child], wait_until: WaitUntil, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    job = two_at_once.delay(str(gate))
    wait_until(lambda: "start:1" in platform.witness.lines)
    assert platform.worker is not None
    frozen = [fresh(job).pid, platform.worker.pid]
    for pid in frozen:
        os.kill(pid, signal.SIGSTOP)
    try:
        worker(name="other", env=platform.environ)
        wait_until(lambda: "start:2" in platform.witness.lines, timeout=QUICK["LEASE"] + 10)
        Path(f"{gate}-2").touch()
        wait_until(lambda: fresh(job).state == State.COMPLETED)
        Path(f"{gate}-1").touch()
    finally:
        for pid in frozen:
            os.kill(pid, signal.SIGCONT)
    # Its process is ended with its lease, or it gets as far as the fence.
    wait_until(lambda: "1:LeaseLost" in platform.witness.lines or not alive([frozen[0]]))
    assert list(Group.objects.values_list("name", flat=True)) == ["of attempt 2"]
    assert [(c.value, c.attempt) for c in Checkpoint.objects.all()] == [("2", 2)]
