"""Runners: who claimed a job and has not come back yet. Some never do, some come back too late."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from celery.exceptions import Ignore, Retry, WorkerShutdown
from django.db import connection

from jobs import attempt, drafts, lifecycle
from jobs.attempt import JobFailed
from jobs.drafts import Declaration
from jobs.models import Job
from jobs.states import State
from project.celery import app
from tests.machine import bodies
from tests.machine.broker import Died

_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Runner:
    """One claim of one job, by a worker of its own."""

    job: Job
    leased: float

    @property
    def task(self) -> Any:
        return app.tasks[self.job.task]

    @property
    def holds(self) -> bool:
        """Whether its claim is still the one that counts."""
        now = lifecycle.seen(self.job.pk)
        return now is not None and now.state == State.RUNNING and now.token == self.job.token

    def __repr__(self) -> str:
        return f"<the runner of attempt {self.job.attempt} of {self.job}>"


def claim(job_id: UUID, worker: str = "", *, breakers: bool = False) -> Runner | None:
    """A message arrives at a worker: claim the job, or be refused."""
    try:
        job, leased = attempt.claim(job_id, worker or f"worker-{next(_numbers)}@here", breakers=breakers)
    except Ignore:
        return None
    return Runner(job, leased)


def finish(runner: Runner, end: str) -> BaseException | None:
    """Run the body to this end and record what became of it; return what Celery is told, None for a success."""
    bodies.told(end)
    says: Declaration = drafts.declaration(runner.task.name, runner.task)
    runner.task.push_request(
        id=str(runner.job.pk), mainstay_job=runner.job.pk, called_directly=False, is_eager=False, args=(), kwargs={}
    )
    try:
        attempt.record(runner.job, attempt.run(runner.task, runner.job, says, runner.leased), says)
    except (Ignore, Retry, WorkerShutdown, JobFailed) as told:
        return told
    except Died:
        raise
    except Exception as told:
        return told
    finally:
        runner.task.pop_request()
        bodies.told("return")
    return None


@contextmanager
def dying(statement: int) -> Iterator[None]:
    """The process dies before its nth statement; what it had not committed is rolled back, nothing follows."""
    left = itertools.count(statement - 1, -1)

    def execute(run: Any, sql: str, parameters: Any, many: bool, context: Any) -> Any:
        if sql.startswith(("SELECT", "INSERT", "UPDATE", "DELETE")) and next(left) <= 0:
            raise Died
        return run(sql, parameters, many, context)

    try:
        with connection.execute_wrapper(execute):
            yield
    except Died:
        connection.run_on_commit = []
