"""The processes of the demo: private servers, what the shop talks to, and the platform itself.

Everything listens on loopback and ends with this process, however it ends.
"""

import contextlib
import os
import secrets
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Self

import django
from django.db import DatabaseError
from rich.console import Console
from rich.live import Live
from rich.table import Table

from project import processes
from project.servers import PostgresServer, RedisServer, Server, free_port

ROOT = Path(__file__).resolve().parent.parent
# A worker takes what is urgent in any of its queues first, so what must not wait for that has a worker of its own.
WORKERS = {"worker": ("default,payments,media", 4), "desk": ("mail,reports,suppliers", 3)}
CELERY = ("-m", "celery", "-A", "project")
USUAL_PORTS = {"gateway": 8071, "mailbox": 8072, "web": 8000, "flower": 5555}
READY_WITHIN = 60.0
SETTLE_WITHIN = 280
STATES = ("pending", "reserved", "running", "retrying", "completed", "failed", "cancelled")
# How long each may take to end, in seconds, in the order in which they end: first the workers finish their jobs.
WORKERS_PATIENCE = 30.0
PATIENCE = {"beat": 10.0, "flower": 5.0, "web": 10.0, "mailbox": 5.0, "gateway": 5.0}


class DemoFailed(Exception):
    """The demo cannot go on; the message says why."""


class Interrupted(BaseException):
    """Somebody asked the demo to end."""


class Platform:
    """Every process of the demo: started in order, ended in order."""

    def __init__(self, directory: Path, database: str, console: Console) -> None:
        self.directory = directory
        self.console = console
        self.logs = directory / "logs"
        self.logs.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.children: dict[str, subprocess.Popen[bytes]] = {}
        self.redis = RedisServer(directory / "redis")
        self.servers: list[Server] = [self.redis]
        self.database_url = f"sqlite:///{directory}/db.sqlite3"
        if database == "postgres":
            postgres = PostgresServer(directory / "postgres")
            self.servers.append(postgres)
            self.database_url = postgres.url
        self.ports = {name: free_port(usual) for name, usual in USUAL_PORTS.items()}
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
        self.explain()

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
            "DEMO_DIR": str(self.directory / "shop"),
            "DEMO_POWER_CUT": "1",
            "GATEWAY_URL": f"http://127.0.0.1:{self.ports['gateway']}",
            "EMAIL_HOST": "127.0.0.1",
            "EMAIL_PORT": str(self.ports["mailbox"]),
            "FLOWER_ADDRESS": "127.0.0.1",
            "FLOWER_PORT": str(self.ports["flower"]),
            "FLOWER_BASIC_AUTH": f"admin:{self.password}",
            "PYTHONUNBUFFERED": "1",
        }

    def start_processes(self) -> None:
        """Start what the shop talks to and the platform itself; wait until all are ready."""
        self.say("starting web, two workers, beat, Flower, and the shop's payment gateway and mail server")
        self.begin("gateway", "manage.py", "demo_gateway", "--port", str(self.ports["gateway"]))
        self.begin("mailbox", "manage.py", "demo_mailbox", "--port", str(self.ports["mailbox"]))
        bind = ("--bind", f"127.0.0.1:{self.ports['web']}")
        self.begin("web", "-m", "gunicorn", "project.wsgi", *bind, "--threads", "4")
        self.begin("beat", *CELERY, "beat")
        for name, (queues, size) in WORKERS.items():
            # Flower shows the tasks of workers that send events.
            self.begin(name, *CELERY, "worker", "-n", f"{name}@%h", "-Q", queues, "-c", str(size), "-E")
        self.begin("flower", *CELERY, "flower")
        for name in WORKERS:
            self.wait_for(name, lambda name=name: " ready." in self.printed(name))  # type: ignore[misc]
        for name, port in self.ports.items():
            self.wait_for(name, partial(processes.listens, port))

    def wait_for(self, name: str, ready: Callable[[], bool]) -> None:
        """Wait until a process is ready, while all live."""
        if not processes.wait_until(lambda: self.check() and ready(), READY_WITHIN):
            last = processes.tail(self.log_of(name))
            raise DemoFailed(f"{name} is not ready after {READY_WITHIN:.0f} s; its last words:\n{last}")

    def begin(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Start Python with ``arguments`` as our child ``name``."""
        child = processes.start([sys.executable, *arguments], log=self.log_of(name), directory=ROOT)
        self.children[name] = child
        return child

    def manage(self, command: str, *arguments: str) -> str:
        """Run a command of the project to its end; return what it printed."""
        child = self.begin(command, "manage.py", command, *arguments)
        code = child.wait()
        del self.children[command]
        if code:
            raise DemoFailed(f"manage.py {command} failed:\n{processes.tail(self.log_of(command))}")
        return self.printed(command).strip()

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

    def explain(self) -> None:
        """Tell why some of the work waits, and whose turn came at once."""
        if self.follow("demo_explain"):
            raise DemoFailed("the work does not wait as it should; the last line says what is missing")

    def settle(self) -> int:
        """Wait until all the work has settled, telling how it goes; return the verdict as an exit code."""
        return self.follow("demo_settle", "--timeout", str(SETTLE_WITHIN))

    def follow(self, name: str, *arguments: str) -> int:
        """Tell what a command of the project prints until it ends, while all else lives; return its exit code."""
        told, child = 0, self.begin(name, "manage.py", name, *arguments)
        while child.poll() is None:
            told = self.tell(name, told)
            self.check(besides=name)
            time.sleep(0.2)
        self.tell(name, told)
        return self.children.pop(name).returncode

    def tell(self, name: str, told: int) -> int:
        """Say what ``name`` has printed since its line ``told``; return how many lines that makes."""
        lines = self.printed(name).splitlines()
        for text in lines[told:]:
            self.say(text)
        return len(lines)

    def check(self, besides: str = "") -> bool:
        """Fail if a process has ended that should not have; True otherwise."""
        for name, child in self.children.items():
            if name != besides and child.poll() is not None:
                last = processes.tail(self.log_of(name))
                raise DemoFailed(f"{name} ended with exit code {child.returncode}; its last words:\n{last}")
        for server in self.servers:
            if not server.running:
                raise DemoFailed(f"{server.name} ended; its last words:\n{processes.tail(server.log)}")
        return True

    # --- Ending

    def end(self) -> None:
        """End everything in good order; if asked again meanwhile, at once."""
        for name in ("addresses", "environment"):
            (self.directory / name).unlink(missing_ok=True)
        with contextlib.suppress(Interrupted):
            self.end_workers()
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

    def end_workers(self) -> None:
        """Let the workers finish their running jobs, all at the same time."""
        workers = [self.children[name] for name in WORKERS if name in self.children]
        if workers:
            self.say("stopping the workers (up to 30 s for their running jobs; Ctrl-C again ends at once)")
        for worker in workers:
            worker.terminate()
        processes.wait_until(lambda: all(worker.poll() is not None for worker in workers), WORKERS_PATIENCE)
        for worker in workers:
            processes.end(worker, signal.SIGKILL)

    # --- Saying

    def log_of(self, name: str) -> Path:
        """Where a process logs."""
        return self.logs / f"{name}.log"

    def printed(self, name: str) -> str:
        """What a process has printed."""
        return self.log_of(name).read_text(errors="replace")

    def say(self, words: str) -> None:
        """Print a plain line; a terminal that has gone away does not keep us from ending the rest."""
        with contextlib.suppress(OSError):
            self.console.print(words, markup=False)

    def show_addresses(self, login: str) -> None:
        """Say where to look, and keep it for ``make screenshots``."""
        admin, flower = f"127.0.0.1:{self.ports['web']}", f"127.0.0.1:{self.ports['flower']}"
        self.say(f"\n  admin   http://{admin}/admin/   {login}")
        self.say(f"  flower  http://{flower}/         login: admin {self.password}")
        self.say(f"  logs    {os.path.relpath(self.logs)}/")
        self.say(f"  shell   {self.keep_environment()}\n")
        _, user, password = login.split()
        self.keep(
            "addresses",
            f"--url http://{admin} --user {user} --password {password} --flower http://admin:{self.password}@{flower}\n",
        )

    def keep_environment(self) -> str:
        """Keep what commands need in another terminal, and return how one is typed there."""
        lines = (f"export {name}={shlex.quote(os.environ[name])}\n" for name in self.environment())
        kept = self.keep("environment", "".join(lines))
        return f". {os.path.relpath(kept)} && {os.path.relpath(sys.executable)} manage.py jobs explain --queue mail"

    def keep(self, name: str, text: str) -> Path:
        """A file that only its owner may read, until the demo ends."""
        kept = self.directory / name
        kept.unlink(missing_ok=True)
        kept.touch(mode=0o600)
        kept.write_text(text)
        return kept


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
