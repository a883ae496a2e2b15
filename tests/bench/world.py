"""What a run has for itself: a PostgreSQL, two Redis, a database for each system. All are private and end with it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import psycopg
from redis import Redis

from project import processes
from project.servers import PostgresServer, RedisServer
from tests.bench.systems import PYTHON, System
from tests.chaos.children import ROOT

PEERS = ROOT / "tests" / "bench" / "peers"
# Who looks at the servers is told apart from those who are measured.
WATCHER = "watcher"
SERVERS = (
    "PostgreSQL on a Unix socket with its defaults, so fsync and synchronous_commit are on; statements are counted by "
    "pg_stat_statements where the server has it · Redis on loopback, without snapshots or an append-only file: one for "
    "the broker, one only for the bodies' INCR · each system has a database and a Redis number of its own"
)
PREFETCHED = b"_kombu.binding"  # what a producer declares once and not again
READY = 120.0


class Failed(Exception):
    """A system that could not do what was asked of it; the message is the reason."""


class Postgres(PostgresServer):
    """PostgreSQL as it comes, which counts its statements if it can."""

    @property
    def counts_statements(self) -> bool:
        """Whether the server has pg_stat_statements."""
        return any(self.binaries.parent.rglob("pg_stat_statements.so"))

    def command(self) -> list[str]:
        counting = ["-c", "shared_preload_libraries=pg_stat_statements"] if self.counts_statements else []
        return [*super().command(), *counting]


class World:
    """The servers of a run, and the databases of those who take part; ``with`` starts and ends them."""

    def __init__(self, directory: Path, systems: Sequence[System], ours: str, theirs: str) -> None:
        self.directory = directory
        self.systems = {system.name: system for system in systems}
        self.pythons = {True: ours, False: theirs}
        self.broken: dict[str, str] = {}
        self._numbers = {system.name: number for number, system in enumerate(systems)}
        self._kept: dict[str, list[str]] = {}
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with self._open:
            self.postgres = self._open.enter_context(Postgres(self.directory / "postgres"))
            self.redis = self._open.enter_context(RedisServer(self.directory / "redis"))
            self.counter = self._open.enter_context(RedisServer(self.directory / "witness"))
            self.witness = self._open.enter_context(Redis.from_url(self.counter.url, socket_timeout=None))
            self._prepare()
            self._open = self._open.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    # --- What a process of a system is given

    def python(self, system: System) -> str:
        """The Python of a system's environment."""
        return self.pythons[system.ours]

    def environ(self, system: System) -> dict[str, str]:
        """What its processes read; nothing of ours reaches a peer."""
        strange = ("DJANGO_", "CELERY_", "TEST_", "BENCH_", "PYTHON", "Q_", "RQ_", "PROCRASTINATE_", "HUEY_")
        found = {name: value for name, value in os.environ.items() if not name.startswith(strange)}
        found |= {
            "DATABASE_URL": self.database_url(system),
            "BROKER_URL": self.broker_url(system),
            "BENCH_WITNESS": self.counter.url,
            "PYTHONPATH": str(PEERS),
            "PYTHONUNBUFFERED": "1",
        }
        if system.ours:
            mine = {
                "DJANGO_SETTINGS_MODULE": "tests.bench.settings",
                "LOG_LEVEL": "WARNING",
                "DEBUG": "0",
                "HTTPS": "0",
            }
            secret = {"SECRET_KEY": "only-for-bench-" + "x" * 50}
            return found | mine | secret | {"PYTHONPATH": os.pathsep.join([str(self.folder(system)), str(PEERS)])}
        return found | {"DJANGO_SETTINGS_MODULE": "peer_settings", "BENCH_SETTINGS": json.dumps(dict(system.settings))}

    def command(self, system: System, words: str) -> list[str]:
        """A command line of a system."""
        filled = words.replace(PYTHON, self.python(system)).replace("{broker}", self.broker_url(system))
        return filled.split()

    def folder(self, system: System) -> Path:
        """Where its processes run: ours in the repository, the others where nothing of it is found."""
        if not system.ours:
            return PEERS
        return ROOT if system.root == str(ROOT) else self.directory / system.name

    def database_url(self, system: System) -> str:
        """The address of its database."""
        if system.database == "sqlite":
            return f"sqlite:///{self.sqlite(system)}"
        return self.postgres.address(self.database(system))

    def database(self, system: System) -> str:
        """The name of its database."""
        return f"bench_{system.name.replace('-', '_')}"

    def sqlite(self, system: System) -> Path:
        """The file of its database."""
        return self.directory / f"{system.name}.sqlite3"

    def broker_url(self, system: System) -> str:
        """The address of its part of the broker."""
        return f"{self.redis.url.rpartition('/')[0]}/{self._numbers[system.name]}"

    # --- Before and between measurements

    @contextlib.contextmanager
    def connected(self, system: System) -> Iterator[psycopg.Connection[Any]]:
        """The database of a system on PostgreSQL, as one who is not measured."""
        url = self.database_url(system).replace("postgres://postgres@", f"postgres://{WATCHER}@")
        with psycopg.connect(url, autocommit=True) as connection:
            yield connection

    def count(self, system: System, sql: str) -> int:
        """What a counting query finds in its database."""
        if system.database == "sqlite":
            import sqlite3

            with contextlib.closing(sqlite3.connect(f"file:{self.sqlite(system)}?mode=ro", uri=True)) as file:
                return int(file.execute(sql).fetchone()[0])
        with self.connected(system) as connection:
            row = connection.execute(sql).fetchone()
            return int(row[0]) if row else 0

    def broker(self, system: System) -> Redis:
        """A client of its part of the broker."""
        return Redis.from_url(self.broker_url(system))

    def reset(self, system: System) -> None:
        """Leave it no job, and the servers nothing to do: everybody starts from the same."""
        with self.broker(system) as broker:
            gone = [key for key in broker.scan_iter(count=10_000) if not key.startswith(PREFETCHED)]
            if gone:
                broker.delete(*gone)
        self.witness.flushall()
        if system.database == "sqlite":
            self._copy_sqlite(system)
            return
        with self.connected(system) as connection:
            tables = [row[0] for row in connection.execute(TABLES) if row[0] not in self._kept[system.name]]
            connection.execute(f"TRUNCATE {', '.join(tables)} RESTART IDENTITY CASCADE")
            connection.execute("CHECKPOINT")

    def settle(self, system: System) -> None:
        """Let the planner know of a backlog, as it would in a database that is used for longer than a minute."""
        if system.database == "postgres":
            with self.connected(system) as connection:
                connection.execute("ANALYZE")
                connection.execute("CHECKPOINT")

    # --- Making the databases

    def _prepare(self) -> None:
        with self.postgres.connection() as connection:
            connection.execute(f"CREATE ROLE {WATCHER} SUPERUSER LOGIN")
            for system in self.systems.values():
                if system.database == "postgres":
                    connection.execute(f'CREATE DATABASE "{self.database(system)}"')
            if self.postgres.counts_statements:
                connection.execute("CREATE EXTENSION pg_stat_statements")
        with ThreadPoolExecutor(max(2, (os.cpu_count() or 2))) as several:
            list(several.map(self._prepare_one, self.systems.values()))

    def _prepare_one(self, system: System) -> None:
        """Make its tables; who has none takes no part, and the others go on."""
        try:
            self._lend_our_bench(system)
            self._migrate(system)
            self._keep_empty(system)
        except Exception as error:
            self.broken[system.name] = f"its database cannot be made ready: {error}"

    def _lend_our_bench(self, system: System) -> None:
        """Let another checkout be measured by the tasks and calls of this one, without a file put into it."""
        folder, own = self.folder(system), Path(system.root)
        if folder in (ROOT, PEERS):
            return
        tests = folder / "tests"
        tests.mkdir(parents=True)
        for each in (*own.iterdir(), *(own / "tests").glob("*")):
            place = folder / each.relative_to(own)
            if each.is_dir() and each.name not in ("tests", "bench"):
                place.symlink_to(each)
            elif each.is_file():
                shutil.copyfile(each, place)  # Python finds the folder of a script where a link leads to
        (tests / "bench").symlink_to(ROOT / "tests" / "bench")

    def _migrate(self, system: System) -> None:
        words = f"{PYTHON} manage.py migrate -v 0" if system.ours else f"{PYTHON} -m django migrate -v 0"
        log = self.directory / f"{system.name}-migrate.log"
        with log.open("wb") as output:
            done = subprocess.run(
                self.command(system, words), env=self.environ(system), cwd=self.folder(system),
                stdout=output, stderr=output, check=False, timeout=READY,
            )  # fmt: skip
        if done.returncode:
            raise Failed(processes.tail(log, 3))

    def _keep_empty(self, system: System) -> None:
        """Add the application's own table, and keep what an empty database is."""
        table = "CREATE TABLE bench_order (number integer)"
        if system.database == "sqlite":
            import sqlite3

            with contextlib.closing(sqlite3.connect(self.sqlite(system))) as file:
                file.execute(table)
                file.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            shutil.copyfile(self.sqlite(system), self.sqlite(system).with_suffix(".template"))
            return
        with self.connected(system) as connection:
            connection.execute(table)
            names = [row[0] for row in connection.execute(TABLES)]
            full = [name for name in names if connection.execute(f"SELECT 1 FROM {name} LIMIT 1").fetchone()]
            self._kept[system.name] = full

    def _copy_sqlite(self, system: System) -> None:
        """Put the empty tables back in place: a process that has the file open goes on with the same one."""
        import sqlite3

        template = self.sqlite(system).with_suffix(".template")
        with (
            contextlib.closing(sqlite3.connect(template)) as source,
            contextlib.closing(sqlite3.connect(self.sqlite(system), timeout=20)) as target,
        ):
            source.backup(target)
            target.execute("PRAGMA journal_mode=WAL")
            target.execute("PRAGMA wal_checkpoint(TRUNCATE)")


TABLES = "SELECT quote_ident(tablename) FROM pg_tables WHERE schemaname = 'public'"

Environment = Mapping[str, str]
