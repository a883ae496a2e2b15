"""The environment that the settings read, made before Django reads it: an early pytest plugin.

``TEST_DB`` chooses the database: ``sqlite`` (the default) or ``postgres``. ``TEST_DATABASE_URL`` names a
PostgreSQL server to use; without it a private one is started. Nothing starts before a test asks for it.
"""

import atexit
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path

DIRECTORY = Path(tempfile.mkdtemp(prefix="mainstay-tests-"))
DATABASE = os.environ.get("TEST_DB", "sqlite")
if DATABASE not in {"sqlite", "postgres"}:
    raise SystemExit(f"TEST_DB={DATABASE!r} is not a database to test with. Set it to sqlite or postgres.")

os.environ.update(
    DJANGO_SETTINGS_MODULE="tests.settings",
    SECRET_KEY="only-for-tests-" + "x" * 50,
    DEBUG="0",
    HTTPS="0",
    ALLOWED_HOSTS="testserver,127.0.0.1,localhost",
)

from project.servers import (  # noqa: E402
    GivenRabbitmq,
    PostgresServer,
    RabbitmqServer,
    RedisServer,
    ServerUnavailable,
    given_rabbitmq,
)


@cache
def redis() -> RedisServer:
    """The Redis of this test process, not yet started."""
    return RedisServer(DIRECTORY / "redis")


@cache
def postgres() -> PostgresServer:
    """The PostgreSQL of this test process, not yet started."""
    return PostgresServer(DIRECTORY / "postgres", fsync=False)


@cache
def rabbitmq() -> RabbitmqServer:
    """The private RabbitMQ of this test process, not yet started."""
    return RabbitmqServer(DIRECTORY / "rabbitmq")


def any_rabbitmq() -> RabbitmqServer | GivenRabbitmq:
    """The RabbitMQ that TEST_AMQP_URL names, else the private one."""
    return given_rabbitmq(DIRECTORY / "given-rabbitmq") or rabbitmq()


def database_url() -> str:
    """The address of the database that Django makes its test database beside."""
    if DATABASE == "sqlite":
        return f"sqlite:///{DIRECTORY}/db.sqlite3"
    return os.environ.get("TEST_DATABASE_URL") or postgres().url


def broker_url() -> str:
    """The address of the broker; nobody answers there before the fixture ``broker`` starts it."""
    try:
        return redis().url
    except ServerUnavailable:
        return "redis://127.0.0.1:9/0"


os.environ.update(DATABASE_URL=database_url(), BROKER_URL=broker_url())


@atexit.register
def leave_nothing_behind(owner: int = os.getpid()) -> None:
    """End what was started and remove its files, unless this is a fork of the test process."""
    if os.getpid() != owner:
        return
    for server in (redis, postgres, rabbitmq):
        if server.cache_info().currsize:
            server().close()
    shutil.rmtree(DIRECTORY, ignore_errors=True)
