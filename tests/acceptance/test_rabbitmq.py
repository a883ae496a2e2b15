"""RabbitMQ as the broker: whatever becomes of the node, its queues and its connections, every job completes."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from amqp.exceptions import NotFound
from celery import chain, chord
from django.db import connections, transaction

from jobs import control, epoch, lifecycle, marker, publisher, release
from jobs.models import Epoch, Job, Worker
from jobs.publisher import Publisher
from jobs.states import State
from project.celery import app
from project.queues import NAMES, Kind, queues
from project.servers import RabbitmqServer
from project.servers.rabbitmq import connected
from tests.children import outlived
from tests.platform import Platform, fresh
from tests.sample.tasks import add, collect, misbehave, note, patient, total

WaitUntil = Callable[..., Any]
MARKER = "mainstay.epoch"

pytestmark = pytest.mark.one_database


def took(act: Callable[[], Any]) -> float:
    """How many seconds an act takes."""
    began = time.monotonic()
    act()
    return time.monotonic() - began


def forget_queues(url: str) -> None:
    """Delete the project's queues, with what is in them."""
    with connected(url) as connection:
        for name in (*NAMES, MARKER):
            connection.channel().queue_delete(name)


def empty_queues(url: str) -> None:
    """Remove the messages of the project's queues, as far as they are there."""
    with connected(url) as connection:
        for name in (*NAMES, MARKER):
            with contextlib.suppress(NotFound):
                connection.channel().queue_purge(name)


def depth(url: str, queue: str = "default") -> int:
    """How many messages wait in a queue."""
    with connected(url) as connection:
        return int(connection.channel().queue_declare(queue, passive=True).message_count)


# --- A platform on RabbitMQ ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kind() -> Kind:
    """The kind of the queues."""
    return "classic"


@contextlib.contextmanager
def sending_to(url: str, kind: Kind) -> Iterator[None]:
    """Let this process send to a RabbitMQ, through a publisher that has seen no failure yet."""
    before, declared, written = publisher.in_use(), app.amqp.queues, app.conf.broker_write_url
    publisher.use(Publisher(before.app, before._send_task))
    app.conf.broker_write_url = url
    app.amqp.__dict__["queues"] = app.amqp.Queues(queues(url, kind))
    try:
        yield
    finally:
        publisher.in_use().forget()
        publisher.use(before)
        app.conf.broker_write_url = written
        app.amqp.__dict__["queues"] = declared


@pytest.fixture(scope="module")
def platform_on(
    django_db_setup: None, django_db_blocker: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str, Kind, str], Platform]]:
    """The worker and the conductor on a RabbitMQ: one pair for each address, kind of queue and pool."""
    made: dict[tuple[str, Kind, str], Platform] = {}

    def on(url: str, kind: Kind, pool: str = "prefork") -> Platform:
        for other in [key for key in made if key != (url, kind, pool)]:
            made.pop(other).stop()
        if (url, kind, pool) not in made:
            with django_db_blocker.unblock():
                platform = made[url, kind, pool] = Platform(tmp_path_factory.mktemp("platform"), pool)
            platform.environ |= {"BROKER_URL": url, "RABBITMQ_QUEUES": kind}
        return made[url, kind, pool]

    yield on
    for platform in made.values():
        platform.stop()


@pytest.fixture
def node(rabbitmq_node: RabbitmqServer) -> Iterator[RabbitmqServer]:
    """A node of ours, running."""
    rabbitmq_node.thaw()
    yield rabbitmq_node.start()
    rabbitmq_node.thaw()
    rabbitmq_node.start()


@pytest.fixture
def url(node: RabbitmqServer, kind: Kind) -> str:
    """The address of the virtual host for queues of this kind, empty."""
    url = node.virtual_host(kind)
    empty_queues(url)
    return url


@pytest.fixture
def sending(url: str, node: RabbitmqServer, kind: Kind, committed: None) -> Iterator[RabbitmqServer]:
    """The node; this process sends to it."""
    with sending_to(url, kind):
        yield node


@pytest.fixture
def platform(
    request: pytest.FixtureRequest, sending: RabbitmqServer, url: str, kind: Kind, platform_on: Any
) -> Platform:
    """A worker and a conductor on the node."""
    return begun(request, platform_on(url, kind))


def begun(request: pytest.FixtureRequest, platform: Platform) -> Platform:
    """The platform, running, with nothing witnessed."""
    from tests.conftest import CHILDREN

    platform.witness.forget()
    platform.start()
    request.node.stash[CHILDREN] = platform.started
    return platform


@pytest.fixture
def completed(wait_until: WaitUntil) -> Callable[..., None]:
    """Wait until jobs are completed."""

    def wait(*jobs: Any, timeout: float = 40) -> None:
        ids = {str(job.id) for job in jobs}  # of a chain's end, which has no row before its turn
        wait_until(lambda: Job.objects.filter(pk__in=ids, state=State.COMPLETED).count() == len(ids), timeout)

    return wait


Completed = Callable[..., None]

# --- The whole life of a job ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "pool"),
    [*product(("classic", "quorum"), ("prefork", "threads")), ("quorum", "gevent")],
)
def test_a_job_lives_its_whole_life_on_rabbitmq(
    request: pytest.FixtureRequest, rabbitmq: Any, kind: Kind, pool: str, platform_on: Any, committed: None,
    completed: Completed,
) -> None:  # fmt: skip
    ours = isinstance(rabbitmq, RabbitmqServer)
    url = rabbitmq.virtual_host(kind) if ours else rabbitmq.url
    platform = platform_on(url, kind, pool)
    empty_queues(url) if ours else forget_queues(url)
    with sending_to(url, kind):
        begun(request, platform)
        plain, retried = add.delay(1, 2), misbehave.delay("transient", until=2)
        delayed, late = add.apply_async((1, 2), countdown=1), note.apply_async(("never",), countdown=60)
        chained = chain(collect.s([1, 2]), total.s()).apply_async()
        joined = chord([add.s(1, 1), add.s(2, 2)], total.s()).apply_async()
        control.cancel(fresh(late).pk, reason="not wanted", by="test")
        completed(plain, retried, delayed, chained, joined)
        assert fresh(retried).attempt == 2
        assert (fresh(chained).result, fresh(joined).result) == ("3", "6")
        assert fresh(late).state == State.CANCELLED
        assert "never" not in platform.witness.lines
        assert not Job.objects.filter(reason__contains="lost").exists()


def test_what_a_transaction_enqueues_goes_out_with_its_commit_or_never(
    sending: RabbitmqServer, url: str, platform_on: Any, kind: Kind
) -> None:
    platform_on(url, kind).stop()
    with transaction.atomic():
        note.delay("committed")
        with contextlib.suppress(RuntimeError), transaction.atomic():
            note.delay("rolled back")
            raise RuntimeError
    assert depth(url) == 1


# --- The node dies, stops, hangs --------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_waiting_jobs_complete_once_although_the_node_is_killed(
    platform: Platform, sending: RabbitmqServer, completed: Completed, wait_until: WaitUntil, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    running = [patient.delay(str(gate)) for _ in range(2)]
    waiting = [note.delay(f"waiting {n}") for n in range(10)]
    wait_until(lambda: Job.objects.filter(state=State.RUNNING).count() == 2)
    pid = platform.worker and platform.worker.pid
    sending.kill()
    assert took(lambda: waiting.append(note.delay("waiting 10"))) < 2
    sending.start()
    gate.touch()
    completed(*running, *waiting, timeout=60)
    assert sorted(line for line in platform.witness.lines if line.startswith("waiting")) == sorted(
        f"waiting {n}" for n in range(11)
    )
    assert {fresh(job).attempt for job in running} == {1}
    assert platform.worker
    assert platform.worker.running
    assert platform.worker.pid == pid


@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_a_worker_survives_the_loss_of_the_node_in_the_middle_of_a_job(
    platform: Platform, sending: RabbitmqServer, completed: Completed, wait_until: WaitUntil, tmp_path: Path
) -> None:
    assert platform.worker
    pid = platform.worker.pid
    for round_ in range(2):
        gate = tmp_path / f"gate{round_}"
        running = patient.delay(str(gate))
        wait_until(lambda job=running: fresh(job).state == State.RUNNING, timeout=30)
        sending.stop()
        gate.touch()
        completed(running)
        sending.start()
        completed(note.delay(f"after {round_}"), timeout=60)
    assert platform.worker.running
    assert platform.worker.pid == pid


def test_enqueue_is_bounded_when_the_node_is_down_or_frozen(sending: RabbitmqServer) -> None:
    add.delay(1, 1)
    sending.freeze()
    frozen: list[Any] = []
    assert took(lambda: frozen.append(add.delay(1, 2))) < 2.5
    assert took(lambda: frozen.append(add.delay(1, 3))) < 0.2
    sending.thaw()
    sending.stop()
    publisher.use(Publisher(app, publisher.in_use()._send_task))
    assert took(lambda: frozen.append(add.delay(1, 4))) < 2
    assert {fresh(job).state for job in frozen} == {State.PENDING}
    assert "could not be reached" in fresh(frozen[0]).reason


def test_jobs_complete_after_the_node_was_frozen(
    platform: Platform, sending: RabbitmqServer, completed: Completed, wait_until: WaitUntil, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    running = patient.delay(str(gate))
    wait_until(lambda: fresh(running).state == State.RUNNING)
    sending.freeze()
    gate.touch()
    completed(running)
    meanwhile = note.delay("meanwhile")
    sending.thaw()
    completed(meanwhile, note.delay("afterwards"), timeout=60)
    assert platform.worker
    assert platform.worker.running


# --- Alarms: the node takes no messages ---------------------------------------------------------------


ALARMS = {
    "memory": (("set_vm_memory_high_watermark", "absolute", "1"), ("set_vm_memory_high_watermark", "0.4")),
    "disk": (("set_disk_free_limit", "mem_relative", "1000.0"), ("set_disk_free_limit", "50MB")),
}


@pytest.mark.parametrize("resource", ALARMS)
def test_enqueue_stays_bounded_during_an_alarm_and_the_jobs_run_afterwards(
    platform: Platform, sending: RabbitmqServer, completed: Completed, wait_until: WaitUntil, resource: str
) -> None:
    before = note.delay("before")
    completed(before)
    provoke, relieve = ALARMS[resource]
    sending.control(*provoke)
    try:
        wait_until(lambda: resource in sending.control("eval", "rabbit_alarm:get_alarms()."))
        during: list[Any] = []
        assert took(lambda: during.append(note.delay("during"))) < 2.5
        assert took(lambda: during.append(note.delay("during too"))) < 0.2
        assert {fresh(job).state for job in during} <= {State.PENDING, State.RESERVED}
    finally:
        sending.control(*relieve)
    completed(*during, timeout=60)
    assert sorted(line for line in platform.witness.lines if line.startswith("during")) == ["during", "during too"]
    assert platform.worker
    assert platform.worker.running


# --- Queues and connections go under us ---------------------------------------------------------------


@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_jobs_complete_although_their_queue_was_purged(
    sending: RabbitmqServer, url: str, kind: Kind, request: pytest.FixtureRequest, platform_on: Any,
    completed: Completed,
) -> None:  # fmt: skip
    platform = platform_on(url, kind)
    platform.stop()
    waiting = [note.delay(f"waiting {n}") for n in range(10)]
    with connected(url) as connection:
        assert connection.channel().queue_purge("default") == 10
    begun(request, platform)
    completed(*waiting)
    assert len(platform.witness.lines) == 10


def test_jobs_complete_although_their_queue_was_deleted(
    sending: RabbitmqServer, url: str, request: pytest.FixtureRequest, platform_on: Any, kind: Kind,
    completed: Completed,
) -> None:  # fmt: skip
    platform = platform_on(url, kind)
    platform.stop()
    lost = note.delay("lost")
    forget_queues(url)
    found = note.delay("found")
    assert depth(url) == 1
    begun(request, platform)
    completed(lost, found)
    assert sorted(platform.witness.lines) == ["found", "lost"]


def test_a_marker_in_the_hands_of_a_conductor_that_stands_still_is_not_lost(
    sending: RabbitmqServer, url: str, platform_on: Any, kind: Kind
) -> None:
    platform_on(url, kind).stop()
    forget_queues(url)
    Epoch.objects.all().delete()
    epoch.tick()
    serial = kept().serial
    with marker.place("a conductor that stands still"):
        in_another_thread(epoch.tick)
    assert (kept().serial, kept().lost_until) == (serial, None)
    epoch.tick()
    assert (kept().serial, kept().lost_until) == (serial + 1, None)
    forget_queues(url)
    epoch.tick()
    assert kept().lost_until is not None


def kept() -> Epoch:
    """What the database knows of the broker's marker."""
    found: Epoch = Epoch.objects.get(broker=epoch.BROKER)
    return found


def in_another_thread(act: Callable[[], Any]) -> None:
    """Do it with connections of its own to the broker and the database."""

    def run() -> None:
        act()
        publisher.in_use().forget()
        connections.close_all()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()


def test_a_worker_survives_that_its_queue_is_deleted(
    platform: Platform, url: str, completed: Completed, wait_until: WaitUntil, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    running = patient.delay(str(gate))
    wait_until(lambda: fresh(running).state == State.RUNNING)
    forget_queues(url)
    gate.touch()
    completed(running, note.delay("after"), timeout=60)
    assert platform.worker
    assert platform.worker.running


def test_a_worker_survives_that_all_connections_are_closed(
    platform: Platform, sending: RabbitmqServer, completed: Completed, wait_until: WaitUntil, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    running = patient.delay(str(gate))
    wait_until(lambda: fresh(running).state == State.RUNNING)
    sending.control("close_all_connections", "test")
    again = note.delay("again")
    gate.touch()
    completed(running, again, timeout=60)
    assert fresh(running).attempt == 1
    assert platform.worker
    assert platform.worker.running


# --- The node ends what takes long --------------------------------------------------------------------


@pytest.fixture
def impatient(node: RabbitmqServer) -> Iterator[None]:
    """The node closes the channel of whoever does not acknowledge a message within a second."""
    set_env = "application:set_env(rabbit, {}, {})".format
    node.control("eval", f"{set_env('consumer_timeout', 1000)}, {set_env('channel_tick_interval', 500)}.")
    yield
    node.control("eval", f"{set_env('consumer_timeout', 1800000)}, {set_env('channel_tick_interval', 60000)}.")


@pytest.mark.parametrize("pool", ["prefork", "threads"])
@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_a_worker_survives_that_a_long_job_outlasts_the_consumer_timeout(
    impatient: None, sending: RabbitmqServer, url: str, kind: Kind, pool: str, platform_on: Any,
    request: pytest.FixtureRequest, completed: Completed, wait_until: WaitUntil, tmp_path: Path,
) -> None:  # fmt: skip
    platform = platform_on(url, kind, pool)
    platform.stop()
    begun(request, platform)
    gate = tmp_path / "gate"
    running = patient.delay(str(gate))
    wait_until(lambda: platform.worker and platform.worker.log.count("PRECONDITION_FAILED") >= 1, timeout=30)
    other = note.delay("meanwhile")
    completed(other)
    gate.touch()
    completed(running, note.delay("afterwards"))
    assert fresh(running).attempt == 1
    assert [line for line in platform.witness.lines if line.startswith("start:")] == [f"start:{gate}"]
    assert platform.worker
    assert platform.worker.running
    platform.stop()


@pytest.mark.parametrize("kind", ["quorum"])
def test_a_job_completes_although_its_message_reached_the_delivery_limit(
    sending: RabbitmqServer, url: str, kind: Kind, platform_on: Any, request: pytest.FixtureRequest,
    completed: Completed,
) -> None:  # fmt: skip
    sending.control("set_policy", "-p", kind, "--apply-to", "queues", "limit", "default", '{"delivery-limit": 1}')
    try:
        platform = begun(request, platform_on(url, kind))
        completed(note.delay("the queue is there"))
        platform.stop()
        job = note.delay("given up by the broker")
        with connected(url) as connection:
            channel = connection.channel()
            for _ in range(2):
                message = channel.basic_get("default")
                channel.basic_reject(message.delivery_tag, requeue=True)
        assert depth(url) == 0
        begun(request, platform)
        completed(job)
    finally:
        sending.control("clear_policy", "-p", kind, "limit")


def test_a_killed_workers_prefetch_is_handed_out_again_at_once(
    sending: RabbitmqServer, url: str, kind: Kind, platform_on: Any, request: pytest.FixtureRequest,
    completed: Completed, wait_until: WaitUntil, tmp_path: Path,
) -> None:  # fmt: skip
    platform = begun(request, platform_on(url, kind))
    gate = tmp_path / "gate"
    running = [patient.delay(str(gate)) for _ in range(2)]
    wait_until(lambda: Job.objects.filter(state=State.RUNNING).count() == 2)
    waiting = note.delay("prefetched or waiting")
    assert platform.worker
    children = platform.worker.children()
    platform.worker.kill()
    assert not outlived(children)
    began = time.monotonic()
    begun(request, platform)
    completed(waiting, timeout=10)
    assert time.monotonic() - began < 10
    gate.touch()
    completed(*running)
    assert {fresh(job).attempt for job in running} == {2}


# --- Order, permissions, declarations -------------------------------------------------------------------


def test_more_urgent_jobs_leave_the_queue_first(
    sending: RabbitmqServer, url: str, kind: Kind, platform_on: Any, request: pytest.FixtureRequest,
    completed: Completed,
) -> None:  # fmt: skip
    platform = platform_on(url, kind, "solo")
    platform.stop()
    now = lifecycle.database_now()
    Worker.objects.create(name="another", pid=1, started_at=now, seen_at=now, queues=["default"], concurrency=4)
    jobs = [note.apply_async((name,), priority=name) for name in ("low", "normal", "high", "critical")]
    release.release()  # all of them, while that worker seems to live: the queue itself has them in order
    begun(request, platform)
    completed(*jobs)
    # A job that is more urgent than one in the queue may have come when its message did not yet lie there.
    assert platform.witness.lines == ["critical", "high", "normal", "low"]
    platform.stop()


def test_jobs_wait_while_the_broker_refuses_our_user(
    platform: Platform, sending: RabbitmqServer, kind: Kind, completed: Completed
) -> None:
    sending.control("set_permissions", "-p", kind, "guest", "nothing", "nothing", "nothing")
    try:
        sending.control("close_all_connections", "test")
        refused: list[Any] = []
        assert took(lambda: refused.append(note.delay("refused"))) < 2.5
        assert fresh(refused[0]).state == State.PENDING
        assert "ACCESS_REFUSED" in fresh(refused[0]).reason
    finally:
        sending.control("set_permissions", "-p", kind, "guest", ".*", ".*", ".*")
    completed(*refused, timeout=60)
    assert platform.worker
    assert platform.worker.running


def test_enqueue_works_where_the_queue_was_declared_otherwise(
    sending: RabbitmqServer, url: str, platform_on: Any
) -> None:
    platform_on(url, "classic").stop()
    add.delay(1, 1)
    with sending_to(url, "quorum"):
        assert fresh(add.delay(1, 2)).state == State.RESERVED
    assert depth(url) == 2
    forget_queues(url)
