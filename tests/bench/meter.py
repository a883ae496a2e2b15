"""What jobs cost the servers: statements, bytes, syncs, commands and time on a processor, as the servers count."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import psycopg

from tests.bench import footprint
from tests.bench.systems import System
from tests.bench.world import WATCHER, World

SHOWN = 12
# Its own accounting is nobody's work.
STATEMENTS = f"""
    SELECT query, calls, total_exec_time, wal_bytes FROM pg_stat_statements s
    JOIN pg_database d ON d.oid = s.dbid JOIN pg_roles r ON r.oid = s.userid
    WHERE d.datname = %s AND r.rolname <> '{WATCHER}' AND query NOT LIKE '%%pg_stat_force%%'
    ORDER BY calls DESC, total_exec_time DESC
"""


@dataclass(frozen=True, slots=True)
class Reading:
    """What the counters said at a moment."""

    wal: float = 0.0
    syncs: float = 0.0
    commands: int = 0
    bytes_in: int = 0
    bytes_out: int = 0


class Meter:
    """Reads the counters before and after the work of one system."""

    def __init__(self, world: World, system: System) -> None:
        self.world = world
        self.system = system
        self.before = Reading()

    def start(self) -> None:
        """Count from here."""
        with self.world.broker(self.system) as broker:
            broker.config_resetstat()
        if self.system.database == "postgres" and self.world.postgres.counts_statements:
            with self.world.postgres.connection() as connection:
                connection.execute("SELECT pg_stat_statements_reset()")
        self.before = self.read()

    def read(self) -> Reading:
        """The counters now."""
        wal, syncs = self._database() if self.system.database == "postgres" else (0.0, 0.0)
        with self.world.broker(self.system) as broker:
            stats = broker.info("stats")
            commands = sum(entry["calls"] for entry in broker.info("commandstats").values())
        return Reading(wal, syncs, commands, stats["total_net_input_bytes"], stats["total_net_output_bytes"])

    def per_job(self, jobs: int) -> dict[str, float]:
        """What one job has cost since the start."""
        now, was = self.read(), self.before
        found = {
            "redis_commands": (now.commands - was.commands) / jobs,
            "redis_bytes": (now.bytes_in + now.bytes_out - was.bytes_in - was.bytes_out) / jobs,
        }
        if self.system.database == "postgres":
            found |= {"wal_bytes": (now.wal - was.wal) / jobs, "wal_syncs": (now.syncs - was.syncs) / jobs}
            statements = self.statements()
            if statements:
                found["statements"] = sum(row["calls"] for row in statements) / jobs
        return {name: round(value, 3) for name, value in found.items()}

    def statements(self) -> list[dict[str, Any]]:
        """Each statement of the system, most frequent first; none where the server does not count them."""
        if self.system.database != "postgres" or not self.world.postgres.counts_statements:
            return []
        with self.world.postgres.connection() as connection:
            rows = connection.execute(STATEMENTS, [self.world.database(self.system)]).fetchall()
        return [
            {"query": " ".join(str(query).split()), "calls": calls, "ms": float(ms), "wal_bytes": float(wal)}  # type: ignore[arg-type]
            for query, calls, ms, wal in rows
        ]

    def commands(self) -> dict[str, int]:
        """How often each Redis command was sent to the broker."""
        with self.world.broker(self.system) as broker:
            found = {
                name.removeprefix("cmdstat_"): entry["calls"] for name, entry in broker.info("commandstats").items()
            }
        return {name: calls for name, calls in sorted(found.items(), key=lambda one: -one[1]) if name != "info"}

    def _database(self) -> tuple[float, float]:
        with self.world.postgres.connection() as connection:
            row = connection.execute("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn").fetchone()
            assert row is not None
            with contextlib.suppress(psycopg.Error):  # newer servers count syncs elsewhere
                syncs = connection.execute("SELECT wal_sync FROM pg_stat_wal").fetchone()
                assert syncs is not None
                return float(row[0]), float(syncs[0])  # type: ignore[arg-type]
        return float(row[0]), 0.0  # type: ignore[arg-type]


class Clockwork:
    """Seconds on a processor of the workers, of PostgreSQL and of the broker."""

    def __init__(self, world: World, workers: Iterable[int], aides: Iterable[int]) -> None:
        self.groups = {
            "worker_cpu_ms": list(workers),
            "aide_cpu_ms": list(aides),
            "postgres_cpu_ms": footprint.trees([world.postgres.pid]),
            "redis_cpu_ms": [world.redis.pid],
        }
        self.before = self.read()

    def read(self) -> dict[str, float]:
        """Milliseconds by group, since each began."""
        return {name: footprint.processor_seconds(pids) * 1000 for name, pids in self.groups.items()}

    def per_job(self, jobs: int) -> dict[str, float]:
        """What one job has taken since this was made."""
        return {name: round((value - self.before[name]) / jobs, 3) for name, value in self.read().items()}
