"""Fixtures: real servers and real processes, each private to the test run and ended by pid."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest
from django.db import connections

from project import processes
from project.servers import GivenRabbitmq, PostgresServer, RabbitmqServer, RedisServer, Server, ServerUnavailable
from tests import environment
from tests.children import Child, python

Value = TypeVar("Value")
Spawn = Callable[..., Child]
WaitUntil = Callable[..., Any]

QUEUES = ("default", "payments", "mail", "media", "reports")
USES_DATABASE = {"db", "transactional_db", "django_db_setup", "live_server"}
CHILDREN = pytest.StashKey[list[Child]]()


# --- Which tests run on which database ------------------------------------------------------------


def pytest_report_header() -> str:
    """Say on which database this run is."""
    return f"database: {environment.DATABASE}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A run on PostgreSQL is for the claims that a database can break; SQLite's run has had the others."""
    if environment.DATABASE == "sqlite":
        return
    kept = [item for item in items if depends_on_database(item)]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


def depends_on_database(item: pytest.Item) -> bool:
    """Whether the outcome of a test can depend on which database it runs."""
    if item.get_closest_marker("one_database"):
        return False
    fixtures = getattr(item, "fixturenames", ())
    return bool(item.get_closest_marker("django_db") or USES_DATABASE.intersection(fixtures))


@pytest.fixture(scope="session")
def django_db_modify_db_settings(request: pytest.FixtureRequest) -> None:
    """Let other processes reach the test database: a file for SQLite, a started server for PostgreSQL."""
    if environment.DATABASE == "postgres":
        if "TEST_DATABASE_URL" not in os.environ:
            request.getfixturevalue("postgres")
        request.getfixturevalue("django_db_modify_db_settings_parallel_suffix")
    else:
        connections["default"].settings_dict["TEST"]["NAME"] = str(environment.DIRECTORY / "test.sqlite3")


# --- Sending ---------------------------------------------------------------------------------------


@pytest.fixture(scope="session", autouse=True)
def sent_by_the_caller() -> None:
    """What a test enqueues is sent when the call returns; what the processes send that it starts, their thread sends.

    The thread's own tests are in ``tests/jobs/test_sender.py`` and ``tests/acceptance/test_sender.py``.
    """
    from jobs import sender

    sender.in_caller()


@pytest.fixture(autouse=True)
def unpaused() -> Iterator[None]:
    """No test inherits the pause that another one's broken broker made the publisher take."""
    yield
    from jobs import publisher

    if publisher._in_use is not None:
        publisher._in_use._paused_until = 0.0


@pytest.fixture(autouse=True)
def nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test looks whether jobs wait that another one left; those of the lanes look by themselves."""
    from jobs import outbox

    monkeypatch.setattr(outbox, "LOOK_EVERY", float("inf"))
    outbox._looks.clear()


# --- Servers ----------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def redis() -> RedisServer:
    """The Redis-compatible server behind BROKER_URL, running."""
    return started(environment.redis)


@pytest.fixture(scope="session")
def postgres() -> PostgresServer:
    """A private PostgreSQL server, running."""
    return started(environment.postgres)


@pytest.fixture(scope="session")
def rabbitmq() -> RabbitmqServer | GivenRabbitmq:
    """The RabbitMQ that TEST_AMQP_URL names, or a private one, running."""
    return started(environment.any_rabbitmq)


@pytest.fixture(scope="session")
def rabbitmq_node() -> RabbitmqServer:
    """A private RabbitMQ, running: a test may stop, kill, freeze or restart it."""
    return started(environment.rabbitmq)


AnyServer = TypeVar("AnyServer", bound=Server)


def started(server: Callable[[], AnyServer]) -> AnyServer:
    """The server, running; where it cannot run, the test is skipped, and in CI it fails."""
    try:
        return server().start()
    except ServerUnavailable as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(str(error))


@pytest.fixture
def broker(redis: RedisServer) -> Iterator[RedisServer]:
    """The broker, running and empty. A test may stop, kill, freeze or restart it."""
    from redis import Redis

    with Redis.from_url(redis.start().url) as client:
        client.flushall()
    yield redis
    redis.thaw()
    forget_connections()
    redis.start()


def forget_connections() -> None:
    """Close this process's connections to the broker, so that no test inherits a broken one."""
    from kombu import pools

    from project.celery import app

    # A pool that was only emptied would make whoever asks next wait for ever.
    pools.reset()
    app._after_fork()


# --- Processes --------------------------------------------------------------------------------------


@pytest.fixture
def spawn(request: pytest.FixtureRequest, tmp_path: Path, transactional_db: None) -> Iterator[Spawn]:
    """Start a command on the test's database and broker: ``spawn(name, command, env={})``."""
    started: list[Child] = []
    request.node.stash[CHILDREN] = started

    def start(name: str, command: Sequence[str], env: dict[str, str] | None = None) -> Child:
        log = tmp_path / f"{len(started)}-{name}.log"
        started.append(Child(name, list(command), log, env or {}))
        return started[-1]

    yield start
    for child in reversed(started):
        child.stop()


@pytest.fixture
def worker(spawn: Spawn, broker: RedisServer) -> Spawn:
    """Start ``celery -A project worker`` and wait until it is ready."""

    def start(
        *,
        pool: str = "prefork",
        concurrency: int = 2,
        queues: Sequence[str] = QUEUES,
        include: Sequence[str] = (),
        name: str = "worker",
        args: Sequence[str] = (),
        env: dict[str, str] | None = None,
        ready: bool = True,
    ) -> Child:
        command = python("-m", "celery", "-A", "project", "worker", "-P", pool, "-c", str(concurrency))
        command += ["-Q", ",".join(queues), "-n", f"{name}@%h", *args]
        command += [word for module in include for word in ("-I", module)]
        child = spawn(name, command, env)
        return child.expect(" ready.") if ready else child

    return start


@pytest.fixture
def conductor(spawn: Spawn, broker: RedisServer) -> Spawn:
    """Start ``manage.py conductor``."""

    def start(*args: str, env: dict[str, str] | None = None) -> Child:
        return spawn("conductor", python("manage.py", "conductor", *args), env)

    return start


@pytest.fixture
def beat(spawn: Spawn, broker: RedisServer) -> Spawn:
    """Start ``celery -A project beat``, which holds a conductor too."""

    def start(*args: str, env: dict[str, str] | None = None) -> Child:
        return spawn("beat", python("-m", "celery", "-A", "project", "beat", *args), env)

    return start


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    """Show what the processes of a failed test printed."""
    report = yield
    if report.failed:
        for child in item.stash.get(CHILDREN, []):
            report.sections.append((f"log of {child.name}, pid {child.pid}", child.log))
    return report


# --- Waiting ----------------------------------------------------------------------------------------


@pytest.fixture
def wait_until() -> WaitUntil:
    """Wait for a condition, never for a time: ``wait_until(predicate, timeout=10)`` returns its answer."""

    def wait(predicate: Callable[[], Value], timeout: float = 10, every: float = 0.05) -> Value:
        answers: list[Value] = []

        def asked() -> Value:
            answers[:] = [predicate()]
            return answers[0]

        assert processes.wait_until(asked, timeout, every), f"still {answers[0]!r} after {timeout} s"
        return answers[0]

    return wait
