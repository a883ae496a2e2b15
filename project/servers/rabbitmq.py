"""A private RabbitMQ node on loopback, with its own cookie, its own port mapper and no plugins."""

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from uuid import uuid4

import amqp

from project import processes
from project.servers.base import LOOPBACK, Server, ServerUnavailable, free_port

# Debian's command on the PATH switches to a user of its own; the script behind it does not.
FOLDERS = ("/usr/lib/rabbitmq/bin", "/opt/homebrew/opt/rabbitmq/sbin", "/usr/local/opt/rabbitmq/sbin")
SYSTEM = "/usr/sbin"  # where Debian puts it, and where the PATH of an ordinary user does not look
PROGRAMS = ("rabbitmq-server", "rabbitmqctl")
MISSING = (
    "There is no RabbitMQ here, and no pip package has it. Install it (Debian: apt-get install rabbitmq-server), "
    "or set TEST_AMQP_URL to a server that may be used up."
)


class RabbitmqServer(Server):
    """A RabbitMQ node of our own; its queues live in ``directory`` and outlive the process."""

    name = "rabbitmq"
    when_orphaned = signal.SIGKILL
    patience = 30.0

    def __init__(
        self, directory: Path, *, port: int | None = None, options: Mapping[str, object] | None = None
    ) -> None:
        super().__init__(directory)
        self.binaries, self.epmd = rabbitmq_programs()
        self.port = port or free_port()
        self.distribution_port = free_port()
        self.mapper_port = free_port()
        self.options = dict(options or {})
        self.node = f"mainstay-{uuid4().hex[:8]}@localhost"
        self.mapper: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@{LOOPBACK}:{self.port}//"

    def command(self) -> list[str]:
        return [str(self.binaries / "rabbitmq-server"), "-noinput"]

    def spawn(self) -> subprocess.Popen[bytes]:
        self.write_files()
        self.start_mapper()
        try:
            return processes.start(
                self.command(),
                log=self.log,
                directory=self.data,
                environ=self.environ(),
                when_orphaned=self.when_orphaned,
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise ServerUnavailable(f"{self.name} cannot be started: {error}") from error

    def answers(self) -> bool:
        with contextlib.suppress(OSError, amqp.AMQPError), connected(self.url) as connection:
            # Another node may have taken the port first: each is a cluster that is called as its first node.
            return str(connection.server_properties.get("cluster_name")).startswith(self.node.partition("@")[0])
        return False

    def control(self, *words: str) -> str:
        """What ``rabbitmqctl`` answers to a command. Raises ``ServerUnavailable`` with what it complains of."""
        command = [str(self.binaries / "rabbitmqctl"), "--quiet", "--node", self.node, *words]
        try:
            done = subprocess.run(command, env=self.environ(), capture_output=True, text=True, timeout=60, check=True)
        except subprocess.CalledProcessError as error:
            raise ServerUnavailable(f"rabbitmqctl {' '.join(words)}: {error.stderr or error.stdout}") from error
        return done.stdout

    def virtual_host(self, name: str) -> str:
        """The address of a virtual host, with queues of its own; made if it is not there."""
        if name not in self.control("list_vhosts", "--no-table-headers").split():
            self.control("add_vhost", name)
            self.control("set_permissions", "-p", name, "guest", ".*", ".*", ".*")
        return f"amqp://guest:guest@{LOOPBACK}:{self.port}/{name}"

    # --- Its life: Erlang's threads and helpers stop and go together

    def end(self, how: signal.Signals) -> None:
        super().end(how)
        if self.mapper is not None:
            processes.end(self.mapper, signal.SIGKILL)
            self.mapper = None

    def start_mapper(self) -> None:
        """Start Erlang's port mapper ourselves: left to Erlang, it would be a daemon that nobody ends."""
        if self.mapper is None or self.mapper.poll() is not None:
            self.mapper = processes.start(
                [str(self.epmd), "-port", str(self.mapper_port), "-address", LOOPBACK],
                log=self.directory / "epmd.log",
                environ=self.environ(),
                directory=self.data,
            )
            processes.wait_until(lambda: processes.listens(self.mapper_port), 5.0)

    # --- What the node is made of

    def environ(self) -> dict[str, str]:
        """The environment of the node and of its tools: nothing of the machine's own RabbitMQ."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RABBITMQ_", "ERL_"))}
        files = {
            "CONF_ENV_FILE": "environment", "CONFIG_FILE": "rabbitmq.conf", "CONFIG_FILES": "no-more-files",
            "ADVANCED_CONFIG_FILE": "advanced.config", "ENABLED_PLUGINS_FILE": "enabled_plugins",
            "MNESIA_BASE": "mnesia", "LOG_BASE": "log", "GENERATED_CONFIG_DIR": "generated", "SCHEMA_DIR": "schema",
            "PID_FILE": "node.pid",
        }  # fmt: skip
        return kept | {f"RABBITMQ_{name}": str(self.directory / file) for name, file in files.items()} | {
            "HOME": str(self.directory),  # where Erlang keeps its cookie
            "ERL_EPMD_PORT": str(self.mapper_port),
            "ERL_EPMD_ADDRESS": LOOPBACK,
            "RABBITMQ_NODENAME": self.node,
            "RABBITMQ_NODE_IP_ADDRESS": LOOPBACK,
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self.distribution_port),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "RABBITMQ_LOGS": "-",
            # The script then becomes the node, instead of waiting for it: our child is who we signal.
            "RABBITMQ_ALLOW_INPUT": "1",
        }  # fmt: skip

    def write_files(self) -> None:
        """Write the configuration that the node reads at its start."""
        # A full disk is a fault to be provoked, not met: the alarm is far below what a test machine has.
        options = {"disk_free_limit.absolute": "50MB", **self.options}
        lines = "".join(f"{name} = {value}\n" for name, value in options.items())
        (self.directory / "rabbitmq.conf").write_text(lines)
        (self.directory / "enabled_plugins").write_text("[].\n")
        (self.directory / "environment").touch()
        (self.directory / "advanced.config").write_text("[].\n")


class GivenRabbitmq(Server):
    """A RabbitMQ that somebody else runs: it can be used, and not be stopped."""

    name = "rabbitmq"

    def __init__(self, directory: Path, url: str) -> None:
        super().__init__(directory)
        self._url = url

    @property
    def url(self) -> str:
        return self._url

    @property
    def running(self) -> bool:
        return self.answers()

    def command(self) -> list[str]:
        raise ServerUnavailable("The RabbitMQ of TEST_AMQP_URL is not ours to start, and nobody answers there.")

    def answers(self) -> bool:
        with contextlib.suppress(OSError, amqp.AMQPError), connected(self.url):
            return True
        return False

    def end(self, how: signal.Signals) -> None:
        """Leave it alone."""


def rabbitmq_server(
    directory: Path, *, port: int | None = None, options: Mapping[str, object] | None = None
) -> RabbitmqServer:
    """A private RabbitMQ node with its files in ``directory``; ``with`` starts and ends it."""
    return RabbitmqServer(directory, port=port, options=options)


def given_rabbitmq(directory: Path) -> GivenRabbitmq | None:
    """The RabbitMQ that TEST_AMQP_URL names, None where it names none."""
    given = os.environ.get("TEST_AMQP_URL")
    return GivenRabbitmq(directory, given) if given else None


@contextlib.contextmanager
def connected(url: str, seconds: float = 2.0) -> Iterator[Any]:
    """A bare AMQP connection, with short time-outs."""
    parts = urlsplit(url)
    connection = amqp.Connection(
        f"{parts.hostname}:{parts.port or 5672}", unquote(parts.username or "guest"),
        unquote(parts.password or "guest"), virtual_host=unquote(parts.path[1:]) or "/",
        connect_timeout=seconds, read_timeout=seconds, write_timeout=seconds,
    )  # fmt: skip
    try:
        connection.connect()
        yield connection
    finally:
        connection.collect()


def rabbitmq_programs() -> tuple[Path, Path]:
    """The folder with RabbitMQ's own programs, and Erlang's port mapper."""
    mapper = shutil.which("epmd")
    for folder in candidates():
        if mapper and all((folder / name).exists() for name in PROGRAMS):
            return folder, Path(mapper)
    raise ServerUnavailable(MISSING)


def candidates() -> Iterator[Path]:
    """Where the programs may be: where packages put them, beside the one that is on the PATH."""
    if on_path := shutil.which("rabbitmq-server", path=os.pathsep.join([os.environ.get("PATH", ""), SYSTEM])):
        yield from map(Path, FOLDERS)
        yield Path(on_path).resolve().parent
