"""The platform's processes as tests run them: real, on the test's database and broker, ended by pid."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

from django.db import connection

from project import processes
from tests import environment

ROOT = Path(__file__).resolve().parent.parent


class Child:
    """A process of the platform, and what it has printed."""

    def __init__(self, name: str, command: list[str], log: Path, environ: dict[str, str]) -> None:
        self.name = name
        self.path = log
        self.process: subprocess.Popen[bytes] = processes.start(
            command, log=log, environ=child_environment() | environ, directory=ROOT
        )

    @property
    def pid(self) -> int:
        """The process id."""
        return self.process.pid

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self.process.poll() is None

    @property
    def log(self) -> str:
        """What the process has printed so far."""
        return self.path.read_text(errors="replace")

    def children(self) -> list[int]:
        """The pids of its direct children, which for a prefork worker are its pool."""
        return [pid for pid, parent, _ in living() if parent == self.pid]

    def expect(self, words: str, timeout: float = 30) -> "Child":
        """Wait until the process has printed ``words``."""
        processes.wait_until(lambda: words in self.log or not self.running, timeout)
        assert words in self.log, f"{self.name} has not printed {words!r}:\n{self.log}"
        return self

    def signal(self, how: signal.Signals) -> None:
        """Send a signal to the process itself."""
        self.process.send_signal(how)

    def stop(self, patience: float = 20) -> int:
        """End the process in good order; return its exit code."""
        return processes.end(self.process, signal.SIGTERM, patience)

    def kill(self) -> int:
        """End the process and its children with SIGKILL, as a lost machine would."""
        processes.end_group(self.pid)
        return processes.end(self.process, signal.SIGKILL)


def living() -> list[tuple[int, int, str]]:
    """Every process of the machine as (pid, parent's pid, command); not the dead whom nobody has reaped."""
    listing = subprocess.run(["ps", "-eo", "pid=,ppid=,stat=,args="], capture_output=True, text=True, check=True)
    rows = (line.split(maxsplit=3) for line in listing.stdout.splitlines())
    return [(int(pid), int(parent), command) for pid, parent, state, command in rows if state[0] != "Z"]


def alive(pids: list[int]) -> list[int]:
    """Those of ``pids`` that still run."""
    return sorted({pid for pid, _, _ in living()}.intersection(pids))


def outlived(pids: list[int], patience: float = 5) -> list[int]:
    """Those of ``pids`` that still run, once the kernel has had the time to bury the others."""
    processes.wait_until(lambda: not alive(pids), patience)
    return alive(pids)


def child_environment() -> dict[str, str]:
    """The environment of a process that works on the test database."""
    return {**os.environ, "DATABASE_URL": database_url(), "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


def database_url() -> str:
    """The address of the test database that Django made."""
    name = str(connection.settings_dict["NAME"])
    if connection.vendor == "sqlite":
        return f"sqlite:///{name}"
    return f"{environment.database_url().rpartition('/')[0]}/{quote(name, safe='')}"


def python(*arguments: str) -> list[str]:
    """A command line for this interpreter."""
    return [sys.executable, *arguments]
