"""The processes of a row: started, signalled, killed and ended by their own pids."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from project import processes

ROOT = Path(__file__).resolve().parent.parent.parent


class NotReady(Exception):
    """A process did not come up; the message says what it printed."""


class Process:
    """A process of the platform, which leads a group of its own."""

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        log: Path,
        environ: Mapping[str, str],
        struck: Callable[[], object] = lambda: None,
        wrap: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.struck = struck
        self.log = log
        self.process = processes.start([*wrap, sys.executable, *arguments], log=log, environ=environ, directory=ROOT)
        self._frozen: list[int] = []

    @property
    def pid(self) -> int:
        """The process id; for a worker, that of its main process."""
        return self.process.pid

    @property
    def running(self) -> bool:
        """Whether the process itself lives."""
        return self.process.poll() is None

    @property
    def printed(self) -> str:
        """What it has printed so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def expect(self, words: str, timeout: float = 60) -> Process:
        """Wait until it has printed ``words``. Raises ``NotReady``."""
        processes.wait_until(lambda: words in self.printed or not self.running, timeout)
        if words not in self.printed:
            raise NotReady(f"{self.name} has not printed {words!r}; its last words:\n{processes.tail(self.log)}")
        return self

    def children(self) -> list[int]:
        """The pids of its direct children, which for a prefork worker are its pool."""
        return [pid for pid, parent in living() if parent == self.pid]

    def stopped(self) -> int:
        """How many of its children are stopped."""
        listing = subprocess.run(["ps", "-eo", "ppid=,stat="], capture_output=True, text=True, check=True)
        rows = (line.split() for line in listing.stdout.splitlines())
        return sum(int(parent) == self.pid and state.startswith("T") for parent, state in rows)

    def group(self) -> list[int]:
        """The pids of the process and of all below it."""
        return [self.pid, *descendants(self.pid)]

    def signal(self, how: signal.Signals) -> None:
        """Send a signal to the process itself."""
        self.struck()
        self.process.send_signal(how)

    def kill_main(self) -> None:
        """SIGKILL the process itself, and nobody else."""
        self.struck()
        self.process.kill()
        self.process.wait(10)

    def kill(self) -> None:
        """SIGKILL the whole group, as a lost machine would."""
        self.struck()
        processes.end_group(self.pid)
        self.process.wait(10)

    def kill_child(self, pid: int | None = None) -> int:
        """SIGKILL one child of the pool (the first one); return its pid."""
        chosen = pid or self.children()[0]
        self.struck()
        os.kill(chosen, signal.SIGKILL)
        return chosen

    def freeze(self) -> None:
        """Stop the whole group with SIGSTOP, as a hung machine would."""
        self.struck()
        self._frozen = self.group()
        for pid in self._frozen:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen group go on."""
        for pid in reversed(self._frozen):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self._frozen = []

    def stop(self, patience: float = 30) -> int:
        """End the process in good order with SIGTERM, and with SIGKILL after ``patience`` seconds."""
        self.thaw()
        return processes.end(self.process, signal.SIGTERM, patience)

    def end(self) -> None:
        """End everything at once; what was frozen too."""
        processes.end_group(self.pid)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait(10)


def descendants(ancestor: int) -> list[int]:
    """The pids of all processes below one."""
    found, pairs = [ancestor], living()
    for pid in found:
        found += [child for child, parent in pairs if parent == pid]
    return found[1:]


def living() -> list[tuple[int, int]]:
    """Every living process of the machine, as (pid, parent's pid)."""
    listing = subprocess.run(["ps", "-eo", "pid=,ppid=,stat="], capture_output=True, text=True, check=True)
    rows = (line.split() for line in listing.stdout.splitlines())
    return [(int(pid), int(parent)) for pid, parent, state in rows if state[0] != "Z"]
