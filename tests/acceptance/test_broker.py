"""The broker is disposable: stopped, half-open, flushed or killed, every job still completes."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from jobs import publisher
from jobs.models import Job
from jobs.publisher import Publisher
from jobs.states import State
from project.celery import app
from project.servers import RedisServer
from tests.children import Child
from tests.platform import Platform, fresh
from tests.sample.tasks import add, note, patient

WaitUntil = Callable[..., Any]


@pytest.fixture(autouse=True)
def unpaused() -> Iterator[None]:
    """A publisher that has seen no failure yet."""
    before = publisher.in_use()
    publisher.use(Publisher(before.app, before._send_task))
    yield
    publisher.in_use().forget()
    publisher.use(before)


def took(act: Callable[[], Any]) -> float:
    """How many seconds an act takes."""
    started = time.monotonic()
    act()
    return time.monotonic() - started


def test_a_job_enqueued_while_the_broker_is_down_runs_when_it_is_back(
    platform: Platform, broker: RedisServer, wait_until: WaitUntil
) -> None:
    add.delay(1, 1)
    broker.stop()
    assert took(lambda: add.delay(1, 2)) < 2
    assert took(lambda: add.delay(3, 4)) < 0.1
    broker.start()
    wait_until(lambda: Job.objects.filter(state=State.COMPLETED).count() == 3, timeout=30)


@pytest.fixture
def mute() -> Iterator[list[socket.socket]]:
    """A broker that accepts and never answers; what it accepted."""
    accepted: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=lambda: accepted.append(server.accept()[0]), daemon=True).start()
        before = app.conf.broker_write_url
        app.conf.broker_write_url = f"redis://127.0.0.1:{server.getsockname()[1]}/0"
        yield accepted
        app.conf.broker_write_url = before
    for connection in accepted:
        connection.close()


def test_enqueue_is_bounded_when_the_broker_accepts_and_never_answers(
    committed: None, mute: list[socket.socket]
) -> None:
    jobs: list[Any] = []
    assert took(lambda: jobs.append(add.delay(1, 2))) < 2
    assert mute
    assert fresh(jobs[0]).state == State.PENDING
    assert "broker" in fresh(jobs[0]).reason


@pytest.mark.one_database
def test_enqueue_is_bounded_when_a_broker_in_use_freezes(committed: None, broker: RedisServer) -> None:
    add.delay(1, 1)
    broker.freeze()
    assert took(lambda: add.delay(1, 2)) < 2
    broker.thaw()


def test_waiting_jobs_complete_although_the_broker_is_flushed(
    platform: Platform, broker: RedisServer, wait_until: WaitUntil, tmp_path: Any
) -> None:
    from redis import Redis

    gate = tmp_path / "gate"
    for _ in range(2):
        patient.delay(str(gate))
    waiting = [note.delay(f"waiting {n}") for n in range(20)]
    wait_until(lambda: Job.objects.filter(state=State.RUNNING).count() == 2)
    with Redis.from_url(broker.url) as client:
        client.flushall()
    gate.touch()
    wait_until(lambda: all(fresh(job).state == State.COMPLETED for job in waiting), timeout=30)
    assert sorted(line for line in platform.witness.lines if line.startswith("waiting")) == sorted(
        f"waiting {n}" for n in range(20)
    )


@pytest.mark.one_database
def test_waiting_jobs_complete_although_the_broker_is_killed(
    platform: Platform, broker: RedisServer, wait_until: WaitUntil, tmp_path: Any
) -> None:
    gate = tmp_path / "gate"
    for _ in range(2):
        patient.delay(str(gate))
    waiting = [note.delay(f"waiting {n}") for n in range(5)]
    wait_until(lambda: Job.objects.filter(state=State.RUNNING).count() == 2)
    broker.kill()
    broker.start()
    gate.touch()
    wait_until(lambda: all(fresh(job).state == State.COMPLETED for job in waiting), timeout=45)


@pytest.mark.one_database
def test_a_worker_survives_the_loss_of_its_broker_in_the_middle_of_a_job(
    platform: Platform, broker: RedisServer, wait_until: WaitUntil, tmp_path: Any
) -> None:
    for round_ in range(3):
        gate = tmp_path / f"gate{round_}"
        running = patient.delay(str(gate))
        wait_until(lambda job=running: fresh(job).state == State.RUNNING, timeout=30)
        broker.stop()
        gate.touch()
        wait_until(lambda job=running: fresh(job).state == State.COMPLETED, timeout=30)
        broker.start()
        after = note.delay(f"after {round_}")
        wait_until(lambda job=after: fresh(job).state == State.COMPLETED, timeout=40)
    assert platform.worker is not None
    assert platform.worker.running


def test_a_healthy_backlog_is_not_sent_twice(
    platform: Platform, broker: RedisServer, wait_until: WaitUntil, tmp_path: Any
) -> None:
    gate = tmp_path / "gate"
    for _ in range(2):
        patient.delay(str(gate))
    waiting = [note.delay(f"waiting {n}") for n in range(10)]
    conductor = platform.conductor
    assert isinstance(conductor, Child)
    # Longer than it takes to suspect a job, with a worker that is busy and reports itself.
    report = _reported(wait_until)
    for _ in range(2):
        report = _reported(wait_until, after=report)
    assert {fresh(job).sends for job in waiting} == {1}
    assert Job.objects.filter(reason="its message was lost").count() == 0
    gate.touch()
    wait_until(lambda: Job.objects.filter(finished_at__isnull=True).count() == 0)
    assert len([line for line in platform.witness.lines if line.startswith("waiting")]) == 10


def _reported(wait_until: WaitUntil, after: Any = None) -> Any:
    """When a worker has reported itself, later than ``after``."""
    from jobs.models import Worker

    def seen() -> Any:
        worker = Worker.objects.first()
        return worker and (after is None or worker.seen_at > after) and worker.seen_at

    return wait_until(seen)
