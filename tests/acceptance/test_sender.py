"""What a process enqueued is on its way when it has ended, whichever way it ended."""

import signal
import urllib.request
from collections.abc import Callable

import pytest

from jobs.models import Job
from jobs.states import State
from project import processes
from project.servers import RedisServer, free_port
from tests.acceptance.conftest import Settled
from tests.children import Child, python
from tests.conftest import Spawn, WaitUntil
from tests.platform import fresh, messages
from tests.sample.tasks import is_sender

pytestmark = pytest.mark.usefixtures("committed")

Enqueue = Callable[[str], Child]


@pytest.fixture
def enqueue(spawn: Spawn, broker: RedisServer) -> Enqueue:
    """Start a process that enqueues and ends."""
    return lambda how: spawn("enqueuing", python("-W", "ignore", "-m", "tests.acceptance.enqueuing", how))


def ended(child: Child) -> list[str]:
    """What it has printed, once it has ended by itself."""
    assert processes.wait_until(lambda: not child.running, 30)
    assert child.process.returncode == 0, child.log
    return child.log.split()


@pytest.mark.parametrize(
    ("how", "jobs"),
    [("end", 10), ("exit_by_signal", 10), ("at_exit", 30), ("fork", 30), ("fork_at_work", 10), ("child", 10)],
)
def test_a_process_that_ends_has_sent_each_of_its_jobs_once(
    how: str, jobs: int, enqueue: Enqueue, broker: RedisServer
) -> None:
    ids = ended(enqueue(how))
    assert (len(ids), len(set(ids)), Job.objects.count()) == (jobs, jobs, jobs)
    assert messages(broker.url) == jobs
    assert set(Job.objects.values_list("state", "sends")) == {(State.RESERVED, 1)}


def test_a_process_of_greenlets_has_sent_its_jobs(enqueue: Enqueue, broker: RedisServer) -> None:
    pytest.importorskip("gevent")
    assert len(ended(enqueue("greenlets"))) == messages(broker.url) == 30


def test_a_web_server_that_is_told_to_stop_has_sent_its_jobs(
    spawn: Spawn, broker: RedisServer, wait_until: WaitUntil
) -> None:
    pytest.importorskip("gunicorn")
    port = free_port(8000)
    command = python("-m", "gunicorn", "--preload", "--workers", "2", "--bind", f"127.0.0.1:{port}")
    server = spawn("gunicorn", [*command, "tests.acceptance.enqueuing"])
    wait_until(lambda: server.log.count("Booting worker") == 2, 30)
    for _ in range(3):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10).read()
    server.signal(signal.SIGTERM)
    wait_until(lambda: not server.running, 30)
    assert messages(broker.url) == Job.objects.count() == 30


def test_a_process_ends_soon_though_its_broker_is_frozen_and_its_jobs_wait(
    enqueue: Enqueue, broker: RedisServer
) -> None:
    broker.freeze()
    assert len(ended(enqueue("end"))) == 10
    assert set(Job.objects.values_list("state", flat=True)) == {State.PENDING}


def test_jobs_whose_process_died_before_it_sent_them_run(
    enqueue: Enqueue, broker: RedisServer, worker: Spawn, conductor: Spawn, wait_until: WaitUntil, settled: Settled
) -> None:
    process = enqueue("die")
    wait_until(lambda: not process.running, 30)
    assert process.process.returncode == -signal.SIGKILL
    assert (messages(broker.url), set(Job.objects.values_list("state", flat=True))) == (0, {State.RESERVED})
    quick = {"TEST_JOBS": '{"LOST_AFTER": 1, "TICK": 0.05}'}
    worker(env=quick)
    conductor(env=quick)
    assert settled(60) == {State.COMPLETED: Job.objects.count()}


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_bodies_send_what_they_enqueue_themselves(pool: str, worker: Spawn, settled: Settled) -> None:
    job = is_sender.delay()
    worker(pool=pool, concurrency=1)
    settled()
    assert fresh(job).result == "true"
