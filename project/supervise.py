"""The whole platform on one machine, for ``make demo``: private servers, every process, real work.

Everything listens on loopback, keeps its files in ``.demo/`` and ends with this process, however it ends.
"""

import argparse
import contextlib
import fcntl
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Self

import django
from django.db import DatabaseError
from rich.console import Console
from rich.live import Live
from rich.table import Table

from project import processes
from project.servers import PostgresServer, RedisServer, Server, ServerUnavailable, free_port

ROOT = Path(__file__).resolve().parent.parent
DIRECTORY = ROOT / ".demo"
LOGS = DIRECTORY / "logs"
QUEUES = "default,payments,mail,media,reports"
CELERY = ("-m", "celery", "-A", "project")
READY_WITHIN = 60.0
SETTLE_WITHIN = 280
STATES = ("pending", "reserved", "running", "retrying", "completed", "failed", "cancelled")
# How long each may take to end, in seconds, in the order in which they end: the worker finishes its jobs.
PATIENCE = {"worker": 30.0, "beat": 10.0, "flower": 5.0, "web": 10.0, "mailbox": 5.0, "gateway": 5.0}


class DemoFailed(Exception):
    """The demo cannot go on; the message says why."""


class Interrupted(BaseException):
    """Somebody asked the demo to end."""


def main(arguments: list[str] | None = None) -> int:
    """Run the demo; return the exit code."""
    options = parse(arguments)
    console = Console(highlight=False, soft_wrap=True)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    try:
        with alone(), Platform(options.database, console) as platform:
            return platform.settle() if options.once else platform.watch()
    except Interrupted:
        return 130 if options.once else 0
    except (DemoFailed, ServerUnavailable) as error:
        console.print(f"demo: {error}", markup=False)
        return 1


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser("python -m project.supervise", description="Run the whole platform.")
    parser.add_argument("--once", action="store_true", help="run the work, wait until it has settled, end")
    parser.add_argument("--database", choices=("sqlite", "postgres"), default="sqlite")
    return parser.parse_args(arguments)


def interrupt(number: int, frame: FrameType | None) -> None:
    """Turn a signal into the way out."""
    raise Interrupted


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Hold the demo's folder, emptied, for as long as the demo runs."""
    DIRECTORY.mkdir(exist_ok=True)
    handle = os.open(DIRECTORY, os.O_RDONLY)
    try:
        hold(handle)
        for entry in DIRECTORY.iterdir():
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        LOGS.mkdir()
        yield
    finally:
        os.close(handle)


def hold(folder: int) -> None:
    """Lock a folder against other demos of this checkout."""
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise DemoFailed("another demo of this checkout is running; end it with Ctrl-C first") from None


class Platform:
    """Every process of the demo: started in order, ended in order."""

    def __init__(self, database: str, console: Console) -> None:
        self.console = console
        self.children: dict[str, subprocess.Popen[bytes]] = {}
        self.redis = RedisServer(DIRECTORY / "redis")
        self.servers: list[Server] = [self.redis]
        self.database_url = f"sqlite:///{DIRECTORY}/db.sqlite3"
        if database == "postgres":
            postgres = PostgresServer(DIRECTORY / "postgres")
            self.servers.append(postgres)
            self.database_url = postgres.url
        self.web, self.flower = free_port(8000), free_port(5555)
        self.gateway, self.mailbox = free_port(8071), free_port(8072)
        self.password = secrets.token_urlsafe(9)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.end()

    # --- Starting

    def start(self) -> None:
        """Bring everything up and give it work."""
        os.environ.update(self.environment())
        for server in self.servers:
            self.say(f"starting {server.name}")
            server.start()
        self.say("preparing the database")
        self.manage("migrate", "--verbosity=0")
        login = self.manage("demo_setup").splitlines()[-1]
        self.start_processes()
        self.say(self.manage("demo_seed"))
        self.show_addresses(login)

    def environment(self) -> dict[str, str]:
        """What the settings, the sample shop and Flower read."""
        return {
            "DJANGO_SETTINGS_MODULE": "project.settings",
            "DATABASE_URL": self.database_url,
            "BROKER_URL": self.redis.url,
            "SECRET_KEY": secrets.token_urlsafe(50),
            "DEBUG": "0",
            "HTTPS": "0",
            "ALLOWED_HOSTS": "127.0.0.1,localhost",
            "DEMO_DIR": str(DIRECTORY / "shop"),
            "GATEWAY_URL": f"http://127.0.0.1:{self.gateway}",
            "EMAIL_HOST": "127.0.0.1",
            "EMAIL_PORT": str(self.mailbox),
            "FLOWER_ADDRESS": "127.0.0.1",
            "FLOWER_PORT": str(self.flower),
            "FLOWER_BASIC_AUTH": f"admin:{self.password}",
            "PYTHONUNBUFFERED": "1",
        }

    def start_processes(self) -> None:
        """Start what the shop talks to, then the platform itself."""
        self.spawn("gateway", "manage.py", "demo_gateway", "--port", str(self.gateway), port=self.gateway)
        self.spawn("mailbox", "manage.py", "demo_mailbox", "--port", str(self.mailbox), port=self.mailbox)
        web = ("project.wsgi", "--bind", f"127.0.0.1:{self.web}", "--threads", "4")
        self.spawn("web", "-m", "gunicorn", *web, port=self.web)
        self.spawn("beat", *CELERY, "beat")
        # Flower shows the tasks of workers that send events.
        self.spawn("worker", *CELERY, "worker", "-Q", QUEUES, "-c", "4", "-E", words=" ready.")
        self.spawn("flower", *CELERY, "flower", port=self.flower)

    def spawn(self, name: str, *arguments: str, port: int | None = None, words: str = "") -> None:
        """Start a process and wait until it listens on its port and has printed its words."""
        self.say(f"starting {name}")
        child = self.begin(name, *arguments)

        def ready() -> bool:
            listening = port is None or processes.listens(port)
            return child.poll() is not None or (listening and words in printed(name))

        if not processes.wait_until(ready, READY_WITHIN):
            raise DemoFailed(
                f"{name} is not ready after {READY_WITHIN:.0f} s:\n{processes.tail(log_of(name))}"
            )
        self.check()

    def begin(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Start Python with ``arguments`` as our child ``name``."""
        child = processes.start([sys.executable, *arguments], log=log_of(name), directory=ROOT)
        self.children[name] = child
        return child

    def manage(self, command: str, *arguments: str) -> str:
        """Run a command of the project to its end; return what it printed."""
        child = self.begin(command, "manage.py", command, *arguments)
        code = child.wait()
        del self.children[command]
        if code:
            raise DemoFailed(f"manage.py {command} failed:\n{processes.tail(log_of(command))}")
        return printed(command).strip()

    # --- Running

    def watch(self) -> int:
        """Show how the work goes until somebody ends it."""
        django.setup()
        if self.console.is_terminal:
            with Live(console=self.console, refresh_per_second=4) as live:
                while self.check():
                    live.update(table())
                    time.sleep(1)
        before = ""
        while self.check():
            if (now := line()) and now != before:
                self.say(now)
                before = now
            time.sleep(5)
        return 0

    def settle(self) -> int:
        """Wait until all the work has settled, telling how it goes; return the verdict as an exit code."""
        name, told = "demo_settle", 0
        child = self.begin(name, "manage.py", name, "--timeout", str(SETTLE_WITHIN))
        while child.poll() is None:
            told = self.tell(name, told)
            self.check(besides=name)
            time.sleep(0.2)
        self.tell(name, told)
        return self.children.pop(name).returncode

    def tell(self, name: str, told: int) -> int:
        """Say what ``name`` has printed since its line ``told``; return how many lines that makes."""
        lines = printed(name).splitlines()
        for text in lines[told:]:
            self.say(text)
        return len(lines)

    def check(self, besides: str = "") -> bool:
        """Fail if a process has ended that should not have; True otherwise."""
        for name, child in self.children.items():
            if name != besides and child.poll() is not None:
                last = processes.tail(log_of(name))
                raise DemoFailed(f"{name} ended with exit code {child.returncode}; its last words:\n{last}")
        for server in self.servers:
            if not server.running:
                raise DemoFailed(f"{server.name} ended; its last words:\n{processes.tail(server.log)}")
        return True

    # --- Ending

    def end(self) -> None:
        """End everything in good order; if asked again meanwhile, at once."""
        with contextlib.suppress(Interrupted):
            for name, patience in PATIENCE.items():
                if child := self.children.get(name):
                    self.say(f"stopping {name}")
                    processes.end(child, signal.SIGTERM, patience)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        for child in self.children.values():
            processes.end(child, signal.SIGKILL)
        for server in reversed(self.servers):
            self.say(f"stopping {server.name}")
            server.close()

    # --- Saying

    def say(self, words: str) -> None:
        """Print a plain line."""
        self.console.print(words, markup=False)

    def show_addresses(self, login: str) -> None:
        """Say where to look."""
        self.say(f"\n  admin   http://127.0.0.1:{self.web}/admin/   {login}")
        self.say(f"  flower  http://127.0.0.1:{self.flower}/         login: admin {self.password}")
        self.say(f"  logs    {LOGS.relative_to(ROOT)}/\n")


def log_of(name: str) -> Path:
    """Where a process of the demo logs."""
    return LOGS / f"{name}.log"


def printed(name: str) -> str:
    """What a process of the demo has printed."""
    return log_of(name).read_text(errors="replace")


def counts() -> dict[str, int]:
    """How many jobs are in each state; nothing while the database does not answer."""
    from project.demo import settling

    try:
        return settling.counts()
    except DatabaseError:
        return {}


def line() -> str:
    """The states of the jobs, in a line."""
    found = counts()
    return "  ".join(f"{state} {found[state]}" for state in STATES if found.get(state))


def table() -> Table:
    """The states of the jobs, as a table."""
    found = counts()
    grid = Table(caption="Ctrl-C ends the demo")
    for state in STATES:
        grid.add_column(state, justify="right")
    grid.add_row(*(str(found.get(state, 0)) for state in STATES))
    return grid


if __name__ == "__main__":
    sys.exit(main())
