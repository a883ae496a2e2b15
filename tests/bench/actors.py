"""The processes of a system: one that enqueues, and workers that drain. Each is ended by its own pid."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from project import processes
from tests.bench import footprint
from tests.bench.systems import System
from tests.bench.world import PEERS, Failed, World

PATIENCE = 8.0
LONGEST = 180.0


class Producer:
    """The process that enqueues for a system; it takes an order at a time."""

    def __init__(self, world: World, system: System) -> None:
        self.system = system
        self.log = world.directory / f"{system.name}-producer.log"
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [world.python(system), str(PEERS / "producer.py"), system.calls],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=output, text=True, cwd=world.folder(system),
                env=world.environ(system), start_new_session=True,
                preexec_fn=processes.dies_with_parent(os.getpid(), signal.SIGKILL),
            )  # fmt: skip
        self._answer(60)

    def ask(self, do: str, **order: Any) -> dict[str, Any]:
        """Give an order and wait for the answer. Raises ``Failed``."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps({"do": do, **order}) + "\n")
            self.process.stdin.flush()
        except OSError as error:
            raise self._gone() from error
        return self._answer(LONGEST)

    def end(self) -> None:
        """End it."""
        processes.end(self.process, patience=2)  # type: ignore[arg-type]
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _answer(self, seconds: float) -> dict[str, Any]:
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], seconds)
        line = self.process.stdout.readline() if ready else ""
        if not line:
            raise self._gone()
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise Failed(f"it cannot enqueue: {answer['error']}")
        return answer

    def _gone(self) -> Failed:
        return Failed(f"its producer does not answer: {last_words(self.log)}")


class Producers:
    """The producers of a run, each started when it is first needed and kept, as a web process is."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._running: dict[str, Producer] = {}

    def of(self, system: System) -> Producer:
        """The producer of a system."""
        kept = self._running.get(system.name)
        if kept is None or kept.process.poll() is not None:
            kept = self._running[system.name] = Producer(self.world, system)
        return kept

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for producer in self._running.values():
            producer.end()
        self._running.clear()


class Workers:
    """The worker processes of a system in one pool; ``with`` starts and ends them."""

    def __init__(self, world: World, system: System, commands: Sequence[str], copies: int = 1) -> None:
        self.world = world
        self.system = system
        self.commands = list(commands) * copies
        self.started: list[subprocess.Popen[bytes]] = []
        self.log: Path = world.directory / f"{system.name}-worker.log"

    def __enter__(self) -> Self:
        for words in self.commands:
            self.started.append(
                processes.start(
                    self.world.command(self.system, words),
                    log=self.log,
                    environ=self.world.environ(self.system),
                    directory=self.world.folder(self.system),
                )
            )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        pids = self.pids
        for process in self.started:  # all are told before one is waited for
            if process.poll() is None:
                process.terminate()
        until = time.monotonic() + (PATIENCE if kind is None else 1)
        for process in self.started:
            processes.end(process, patience=max(0.1, until - time.monotonic()))
        for pid in pids:  # a child that has a session of its own
            if Path(f"/proc/{pid}").exists():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    @property
    def pids(self) -> list[int]:
        """All processes of these workers."""
        return footprint.trees(process.pid for process in self.started)

    def check(self) -> None:
        """Raise ``Failed`` when one of them has ended by itself."""
        for process in self.started:
            if process.poll() is not None:
                raise Failed(f"its worker ended with {process.returncode}: {last_words(self.log)}")


def last_words(log: Path) -> str:
    """The end of a log in one line."""
    return " / ".join(processes.tail(log, 3).split("\n"))[-300:]
