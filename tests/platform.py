"""The whole platform for tests of jobs: one worker and one conductor per module, a witness, and attempts run here."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.core.management import call_command
from django.db import connection

from project.servers import RedisServer
from tests.children import Child, python

QUEUES = ("default", "payments", "mail", "media", "reports")
QUICK = {"LEASE": 6, "HEARTBEAT": 1, "TICK": 0.05, "LOST_AFTER": 1, "CANCEL_GRACE": 4, "LEADER_LEASE": 2}


class Witness:
    """The file to which the bodies of the sample tasks write what they do, one line each."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.forget()

    @property
    def environ(self) -> dict[str, str]:
        """What a process needs to be watched."""
        return {"WITNESS": str(self.path)}

    @property
    def lines(self) -> list[str]:
        """What was written so far, in order."""
        return self.path.read_text().splitlines()

    def forget(self) -> None:
        """Begin anew."""
        self.path.write_text("")


class Platform:
    """A worker and a conductor on the test's database and broker."""

    def __init__(self, directory: Path, pool: str = "prefork", concurrency: int = 2) -> None:
        self.directory = directory
        self.pool = pool
        self.concurrency = concurrency
        self.witness = Witness(directory / "witness")
        self.environ = {**self.witness.environ, "TEST_JOBS": json.dumps(QUICK)}
        self.worker: Child | None = None
        self.conductor: Child | None = None
        self.started: list[Child] = []

    def start(self) -> "Platform":
        """Start what does not run."""
        if self.conductor is None or not self.conductor.running:
            self.conductor = self._spawn("conductor", "manage.py", "conductor")
        if self.worker is None or not self.worker.running:
            command = worker_command(pool=self.pool, concurrency=self.concurrency, name="platform")
            self.worker = self._spawn("worker", *command)
            self.worker.expect(" ready.")
        return self

    def stop(self) -> None:
        """End both."""
        for child in self.started:
            child.stop()

    def _spawn(self, name: str, *arguments: str) -> Child:
        log = self.directory / f"{len(self.started)}-{name}.log"
        self.started.append(Child(name, python(*arguments), log, self.environ))
        return self.started[-1]


def worker_command(*, concurrency: int = 2, name: str = "worker", pool: str = "prefork") -> list[str]:
    """The arguments of Python that make it a worker on all queues."""
    return [
        *("-m", "celery", "-A", "project", "worker", "-P", pool, "-c", str(concurrency)),
        *("-Q", ",".join(QUEUES), "-n", f"{name}@%h"),
    ]


@pytest.fixture(scope="module")
def pool() -> str:
    """Which pool the worker of a module has."""
    return "prefork"


@pytest.fixture(scope="module")
def concurrency() -> int:
    """How many bodies that worker runs at once."""
    return 2


@pytest.fixture(scope="module")
def platform_of_module(
    pool: str,
    concurrency: int,
    django_db_setup: None,
    django_db_blocker: Any,
    redis: RedisServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Platform]:
    """The processes that the tests of a module share."""
    with django_db_blocker.unblock():
        platform = Platform(tmp_path_factory.mktemp("platform"), pool, concurrency)
    yield platform
    platform.stop()
    with django_db_blocker.unblock():
        # What they wrote after the last test had emptied the tables: of a message that was left, say.
        call_command("flush", verbosity=0, interactive=False)
        connection.close()


@pytest.fixture
def platform(
    request: pytest.FixtureRequest, platform_of_module: Platform, committed: None, broker: RedisServer
) -> Iterator[Platform]:
    """A worker and a conductor that run; no jobs, no messages, nothing witnessed."""
    _let_lanes_be_released()
    platform_of_module.witness.forget()
    platform_of_module.start()
    from tests.conftest import CHILDREN

    request.node.stash[CHILDREN] = platform_of_module.started
    yield platform_of_module
    _let_no_lane_be_released()


def _let_no_lane_be_released() -> None:
    """The tables are about to be emptied: a release, which uses many of them, would be in a deadlock with that."""
    from jobs import lanes

    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_lock(%s)", [lanes.LOCK])


def _let_lanes_be_released() -> None:
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_unlock_all()")


@pytest.fixture
def committed(transactional_db: None) -> None:
    """What the test writes is committed, so that other processes see it, and is deleted afterwards."""


@pytest.fixture
def witness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Witness:
    """What the bodies do that run in this process, or in those that inherit its environment."""
    witness = Witness(tmp_path / "witness")
    monkeypatch.setenv("WITNESS", str(witness.path))
    return witness


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The jobs that were handed to the broker."""
    from jobs import publisher

    ids: list[str] = []
    monkeypatch.setattr(publisher.in_use(), "publish", lambda job: ids.append(str(job.pk)))
    monkeypatch.setattr(publisher.in_use(), "publish_many", lambda jobs: ids.extend(str(job.pk) for job in jobs) or {})
    return ids


def attempt(job_id: UUID | str, **headers: Any) -> Any:
    """Run one attempt of a job here, through Celery's own tracer, as the child of a worker does."""
    from celery.app.trace import build_tracer

    from jobs.models import Job
    from project.celery import app

    job = Job.objects.get(pk=job_id)
    request = {
        "id": str(job_id), "task": job.task, "hostname": "here", "called_directly": False, "is_eager": False,
        "delivery_info": {"routing_key": job.queue}, "mainstay": {"job": str(job_id)}, **headers,
    }  # fmt: skip
    tracer = build_tracer(job.task, app.tasks[job.task], app=app, loader=app.loader, hostname="here")
    return tracer(str(job_id), (), {}, request)


def drain(limit: int = 200) -> int:
    """Run every job that is due, here, until none is; return how many attempts that took."""
    from jobs import gathering, lanes, lifecycle
    from jobs.models import Job
    from jobs.states import State

    for ran in range(limit):
        gathering.let_go()
        lanes.release(100)
        lifecycle.reserve_due(100)
        ids = Job.objects.filter(state=State.RESERVED).order_by("created_at", "id").values_list("pk", flat=True)
        first = ids.first()
        if first is None:
            return ran
        attempt(first)
    raise AssertionError(f"{limit} attempts were not enough")


def hurry() -> None:
    """Make everything due that waits for a time."""
    from jobs import lifecycle
    from jobs.states import WAITING, State

    for state in WAITING:
        lifecycle.move_all([state], State(state), "due_at IS NOT NULL", [], "", due_at=lifecycle.NOW)


def running(job_id: UUID | str, *, lease: float = 20.0, pid: int | None = None) -> Any:
    """Claim a reserved job for a runner that does nothing, and return it."""
    from datetime import timedelta

    from jobs import lifecycle

    job = lifecycle.claim(
        UUID(str(job_id)), token=uuid4(), worker="sleepy@here", pid=pid or os.getpid(), lease=timedelta(seconds=lease)
    )
    assert job is not None
    return job


def fresh(job: Any) -> Any:
    """The job (or the job of a result) as its row says now."""
    from jobs.models import Job

    return Job.objects.get(pk=getattr(job, "pk", None) or job.id)


def messages(url: str, queue: str = "default") -> int:
    """How many messages wait in a queue of the broker, of all priorities."""
    from redis import Redis

    with Redis.from_url(url) as client:
        return sum(client.llen(queue if not step else f"{queue}\x06\x16{step}") for step in (0, 3, 6, 9))
