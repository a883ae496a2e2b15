"""What a row has for itself: a broker, a database and a folder. Nothing here is shared with another row."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

from project import processes
from project.servers import PostgresServer, RedisServer, Server, ServerUnavailable
from project.servers.rabbitmq import RabbitmqServer
from tests.chaos import audit, checker, ledger
from tests.chaos.children import ROOT, descendants
from tests.chaos.matrix import Row

SETTINGS = {"mainstay": "tests.chaos.settings", "celery": "tests.chaos.plain_settings"}
# What QUICK=1 shortens. The rules stay the same; so do the proportions of lease and heartbeat.
QUICK = {"LEASE": 6, "HEARTBEAT": 1, "TICK": 0.05, "LOST_AFTER": 1, "CANCEL_GRACE": 4, "LEADER_LEASE": 2}
LEASE, QUICK_LEASE = 20.0, 6.0
# For plain Celery: well above the longest body of a row, far below its default of an hour.
VISIBILITY, QUICK_VISIBILITY = 30.0, 10.0


class Skipped(Exception):
    """The row cannot be done here; the message says why."""


@dataclass(frozen=True, slots=True)
class Options:
    """How the matrix is run."""

    seed: int
    quick: bool = False
    database: str = "postgres"
    broker: str = "redis"
    against: str = "mainstay"

    @property
    def visibility(self) -> float:
        """The visibility timeout of plain Celery."""
        return QUICK_VISIBILITY if self.quick else VISIBILITY


class Database:
    """The database of a row; ``server`` is its own PostgreSQL, if the row asked for one."""

    def __init__(self, url: str, server: PostgresServer | None = None) -> None:
        self.url = url
        self.own = server
        self.vendor = "sqlite" if url.startswith("sqlite:") else "postgres"
        self._frozen: list[int] = []

    @property
    def server(self) -> PostgresServer:
        """The server, which the row may stop and restart."""
        assert self.own is not None, "the row needs own_database=True"
        return self.own

    def rows(self, sql: str, *parameters: Any) -> list[Any]:
        """What a query finds, on a connection of our own."""
        with closing(checker.connect(self.url)) as connection:
            return list(connection.execute(sql, parameters).fetchall())

    def execute(self, sql: str, *parameters: Any) -> None:
        """Run a statement on a connection of our own."""
        with closing(checker.connect(self.url)) as connection:
            connection.execute(sql, parameters)

    def freeze(self) -> None:
        """Stop the server and all its backends where they are."""
        self._frozen = [self.server.pid, *descendants(self.server.pid)]
        for pid in self._frozen:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen server go on."""
        for pid in self._frozen:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self._frozen = []


class World:
    """The servers and files of one row; ``with`` starts and ends them."""

    def __init__(self, row: Row, options: Options, directory: Path, template: str) -> None:
        self.row = row
        self.options = options
        self.directory = directory
        self.template = template
        self.ledger = directory / "ledger"
        self.intake = directory / "intake"
        self.armed = directory / "armed"
        self.clock = ledger.clock_offset()
        self.jobs = {**(QUICK if options.quick else {}), **row.jobs}
        self.broker: Server
        self.results: RedisServer | None = None
        self.database: Database
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Self:
        try:
            with self._open:
                self.broker = self._open.enter_context(make_broker(self.row, self.options, self.directory))
                if self.options.broker != "redis" and self.options.against == "celery":
                    self.results = self._open.enter_context(RedisServer(self.directory / "results"))
                self.database = self._open.enter_context(self._database())
                self._open.callback(lambda: self.database.thaw())
                self._open = self._open.pop_all()
        except ServerUnavailable as error:
            raise Skipped(str(error)) from error
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def environ(self) -> dict[str, str]:
        """What every process of the row reads."""
        results = self.results or self.broker
        found = {
            **base_environ(),
            "DJANGO_SETTINGS_MODULE": SETTINGS[self.options.against],
            "DATABASE_URL": self.database.url,
            "BROKER_URL": self.broker.url,
            "TEST_JOBS": json.dumps(self.jobs),
            "CHAOS_LEDGER": str(self.ledger),
            "CHAOS_INTAKE": str(self.intake),
            "CHAOS_CLOCK": str(self.clock),
            "CHAOS_ARMED": str(self.armed),
            "CHAOS_AGAINST": self.options.against,
        }
        if self.options.against == "celery":
            found["CHAOS_RESULTS"] = f"{results.url.rpartition('/')[0]}/1"
            found["CHAOS_VISIBILITY"] = str(self.options.visibility)
        return found

    @contextlib.contextmanager
    def _database(self) -> Iterator[Database]:
        if self.options.database == "sqlite":
            file = self.directory / "jobs.sqlite3"
            shutil.copyfile(self.template.removeprefix("sqlite:///"), file)
            yield Database(f"sqlite:///{file}")
        elif self.row.own_database:
            with PostgresServer(self.directory / "postgres", fsync=False) as server:
                prepare(server.url, self.directory / "migrate.log")
                yield Database(server.url, server)
        else:
            with copied(self.template, f"row_{self.row.number}") as url:
                yield Database(url)


def make_broker(row: Row, options: Options, directory: Path) -> Server:
    """The broker of a row, not yet started. Raises ``Skipped`` where there is none to be had."""
    if options.broker == "redis":
        return RedisServer(directory / "redis", appendonly=row.persistent)
    # Not that of TEST_AMQP_URL: a row must be able to stop it, and shares it with no other row.
    return RabbitmqServer(directory / "rabbitmq", options=row.rabbitmq)


# --- The database that rows are copied from ------------------------------------------------------------------


def base_environ() -> dict[str, str]:
    """The environment of every process that is started here, without what would point it elsewhere."""
    mine = {k: v for k, v in os.environ.items() if not k.startswith(("CHAOS_", "CELERY_", "DJANGO_", "TEST_"))}
    return {
        **mine,
        "SECRET_KEY": "only-for-chaos-" + "x" * 50,
        "DEBUG": "0",
        "HTTPS": "0",
        "LOG_LEVEL": "INFO",
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
    }


def prepare(url: str, log: Path) -> None:
    """Make the tables of the platform and those of the harness."""
    environ = {**base_environ(), "DJANGO_SETTINGS_MODULE": SETTINGS["mainstay"], "DATABASE_URL": url}
    command = [sys.executable, "manage.py", "migrate", "--verbosity=0"]
    with log.open("ab") as output:
        code = subprocess.run(command, env=environ, cwd=ROOT, stdout=output, stderr=output, check=False).returncode
    if code:
        raise ServerUnavailable(f"the database cannot be made ready: {processes.tail(log)}")
    with closing(checker.connect(url)) as connection:
        if url.startswith("sqlite:"):
            connection.executescript(audit.SQLITE)
        else:
            connection.execute(audit.POSTGRES)


@contextlib.contextmanager
def copied(template: str, name: str) -> Iterator[str]:
    """A copy of the PostgreSQL database ``template`` on the same server, dropped in the end."""
    server, _, source = template.rpartition("/")
    admin = f"{server}/postgres"
    with closing(checker.connect(admin)) as connection:
        connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{source}"')
    try:
        yield f"{server}/{quote(name, safe='')}"
    finally:
        with contextlib.suppress(Exception), closing(checker.connect(admin)) as connection:
            connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


def order(row: Row, options: Options, template: str) -> str:
    """What the process of a row is told, as JSON."""
    found = {"row": row.number, "module": row.script.__module__, "options": asdict(options), "template": template}
    return json.dumps(found)
