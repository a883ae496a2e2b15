"""One call for the jobs of a chunk: claim them all, run the body once, record what became of each.

What a chunk does when something dies stands in docs/explanation/chunks.md.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

from celery.exceptions import Ignore, WorkerShutdown, WorkerTerminate
from django.db import Error, transaction

from jobs import attempt, conclusion, drafts, heartbeat, lifecycle, outage, outcomes, payload, successors
from jobs.conclusion import Report
from jobs.conf import current as settings
from jobs.context import correlated
from jobs.drafts import Declaration
from jobs.errors import MoveRefused, OutcomesError, PayloadError, Replaced
from jobs.failures import Failure, Kind
from jobs.lifecycle import Completion
from jobs.models import Job
from jobs.outcomes import Done, Failed, Outcome
from jobs.shield import shielded, unshielded
from jobs.states import State

logger = logging.getLogger("jobs.attempt")

UNREADABLE = Failure(Kind.PERMANENT, "its outcome could not be recorded")


@dataclass(slots=True)
class Called:
    """What a call has made of a chunk: an outcome for each job, and what the body raised, if it did."""

    outcomes: dict[UUID, Outcome] = field(default_factory=dict)
    raised: BaseException | None = None


@dataclass(frozen=True, slots=True)
class _Ending:
    """How the attempt of one job ends: with a result, or with a failure."""

    job: Job
    result: str | None = None
    failure: Failure | None = None
    report: Report = field(default_factory=Report)
    changes: dict[str, Any] = field(default_factory=dict)


def perform(task: Any, leader_id: UUID, worker: str) -> Any:
    """Run one attempt of all jobs of a chunk and record what became of each; raise what Celery must know."""
    says = drafts.declaration(task.name, task)
    with shielded():
        jobs, leased = claim(leader_id, worker)
        for job in jobs:
            lifecycle.announce("started", job)
        with correlated(_correlation(jobs)):
            called = run(task, jobs, says, leased)
            return record(jobs, called, says)


def claim(leader_id: UUID, worker: str) -> tuple[list[Job], float]:
    """Start the next attempt of a chunk; return its jobs, and a moment that is not after their leases began.

    Raises ``Ignore`` where none is to be run now, or not by us.
    """
    token, lease, asked = uuid4(), timedelta(seconds=settings().LEASE), [0.0]

    def once() -> list[Job]:
        first, asked[:] = not asked[0], [heartbeat.clock()]
        found = lifecycle.claim_chunk(leader_id, token=token, worker=worker, pid=os.getpid(), lease=lease)
        if first:
            return found
        # A claim whose commit was lost on its way back is ours all the same: from now on.
        ours = lifecycle.held_together(leader_id, token)
        return ours if ours and lifecycle.renew(ours, lease) == len(ours) else []

    jobs: list[Job] = attempt.patiently(once)
    if not jobs:
        attempt.patiently(lambda: attempt.refuse(leader_id))
        raise Ignore(f"no job of the chunk of {leader_id} is to be run now")
    return jobs, asked[0]


def _correlation(jobs: Sequence[Job]) -> str:
    """What all jobs of a chunk have in common is handed on to what its body enqueues."""
    ids = {job.correlation_id for job in jobs}
    return ids.pop() if len(ids) == 1 else ""


def run(task: Any, jobs: Sequence[Job], says: Declaration, leased: float) -> Called:
    """Run the body, whatever it does; the leases began at ``leased``, by the heartbeat's clock."""
    called = Called()
    with heartbeat.watching(jobs[0], leased, jobs) as watched:
        try:
            payloads = _payloads(jobs, says, called)
            readable = [job for job in jobs if job.pk not in called.outcomes]
            task.request.retries = min(job.attempt for job in jobs) - 1
            task.request.mainstay_watched, task.request.mainstay_chunk = watched, readable
            if readable:
                with unshielded():
                    returned = task.execute(payloads)
                told = outcomes.read(returned, len(readable), says.name)
                called.outcomes |= {job.pk: one for job, one in zip(readable, told, strict=True)}
        except BaseException as error:
            if isinstance(error, WorkerShutdown | WorkerTerminate):
                for job in jobs:
                    attempt.hand_back(job)
                raise
            if attempt.by_sigterm(error):
                raise  # the worker's main process knows whether it was told to stop too, and acts
            called.raised = attempt.told(error, watched)
    return called


def _payloads(jobs: Sequence[Job], says: Declaration, called: Called) -> list[Any]:
    """The payload of each job; one that no longer fits the code fails alone."""
    found = []
    for job in jobs:
        try:
            content = payload.upgrade(
                payload.decode(job.payload), job.version, says.version, says.upcasters or {}, says.name
            )
            args, kwargs = payload.restore(says.body, content, says.name)
            found.append(args[0] if args else kwargs["payload"])
        except PayloadError as error:
            called.outcomes[job.pk] = Failed(error)
    return found


# --- What became of them ----------------------------------------------------------------------------


def record(jobs: Sequence[Job], called: Called, says: Declaration) -> Any:
    """Record all outcomes in one transaction, waiting for the database as long as it takes.

    Returns how many ended how; raises what the body raised, as Celery must know it.
    """
    endings = [_ending(job, called, says) for job in jobs]
    ended: dict[UUID, Any] = attempt.patiently(lambda: _recorded(endings))
    if called.raised is not None:
        decisions = [ended[job.pk] for job in jobs if job.pk in ended and job.pk not in called.outcomes]
        if not decisions:
            raise Ignore("late: others hold the jobs of this chunk")
        raise attempt.for_celery(called.raised, decisions[0]) from None
    if not ended:
        raise Ignore("late: others hold the jobs of this chunk")
    return dict(Counter("completed" if how is None else how.target.value for how in ended.values()))


def _ending(job: Job, called: Called, says: Declaration) -> _Ending:
    if job.pk not in called.outcomes:
        assert called.raised is not None
        return _failed(job, called.raised, says)
    outcome = called.outcomes[job.pk]
    if isinstance(outcome, Failed):
        return _failed(job, outcome.error, says)
    try:
        return _Ending(job, result=attempt.encoded_result(outcome.result, job.task))
    except PayloadError as error:
        return _failed(job, error, says)


def _failed(job: Job, error: BaseException, says: Declaration) -> _Ending:
    if isinstance(error, OutcomesError | Replaced):
        # The body has run: running it again cannot help.
        failure, changes = UNREADABLE, dict[str, Any]()
    else:
        failure, changes = attempt.failure_of(error, job, says)
    return _Ending(job, failure=failure, report=Report.of(attempt.original_of(error)), changes=changes)


def _recorded(endings: Sequence[_Ending]) -> dict[UUID, Any]:
    """Record what is still ours to record; how each ended: the decision, None where it completed."""
    endings = sorted(endings, key=lambda one: one.job.pk)
    ended: dict[UUID, Any] = {}
    with transaction.atomic(using=lifecycle.alias()):
        for job in _completed_together(endings):
            ended[job.pk] = None
            lifecycle.announce("completed", job)
        for one in endings:
            if one.job.pk not in ended:
                _record_alone(one, ended)
    return ended


def _completed_together(endings: Sequence[_Ending]) -> list[Job]:
    """Complete, in one statement, the jobs on which nothing hangs; return those that were still ours."""
    plain = [one for one in endings if one.failure is None and not successors.has_any(one.job)]
    if not plain:
        return []
    try:
        with transaction.atomic(using=lifecycle.alias()):
            done = lifecycle.complete_many([Completion.of(one.job, one.result) for one in plain])
    except Error as error:
        if outage.passing(error):
            raise
        return []  # one of them cannot be recorded: each is tried alone
    return [one.job for one in plain if one.job.pk in done]


def _record_alone(one: _Ending, ended: dict[UUID, Any]) -> None:
    """Record one outcome; that the job is no longer ours, or that it cannot be recorded, is no matter of the others."""
    try:
        ended[one.job.pk] = _concluded(one)
    except MoveRefused:
        return
    except Exception as error:
        if outage.passing(error):
            raise
        logger.exception("The outcome of job %s could not be recorded.", one.job.pk)
        try:
            ended[one.job.pk] = conclusion.conclude(one.job, UNREADABLE, Report.of(error))[1]
        except MoveRefused:
            return


def _concluded(one: _Ending) -> Any:
    if one.failure is not None:
        return conclusion.conclude(one.job, one.failure, one.report, **one.changes)[1]
    with transaction.atomic(using=lifecycle.alias()):
        successors.finish(
            one.job, State.COMPLETED, "", result=one.result, error_type="", error_message="", traceback=""
        )
    return None


def alone(task: Any, given: Any) -> Any:
    """Call the body for one payload, in eager mode: return its result, or raise what it failed with."""
    outcome = outcomes.read(task.run([given]), 1, task.name)[0]
    if isinstance(outcome, Done):
        return outcome.result
    raise outcome.error
