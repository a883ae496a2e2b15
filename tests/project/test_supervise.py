"""The demo's processes: they start together, end in order, and none outlives the demo, however it ends."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from project import processes
from tests.children import ROOT, living, outlived

pytestmark = [pytest.mark.slow, pytest.mark.one_database, pytest.mark.usefixtures("redis")]

DEMO = """
import pathlib, sys
from project import supervise
supervise.DIRECTORY = pathlib.Path(sys.argv[1])
sys.exit(supervise.main(sys.argv[2:]))
"""


class Demo:
    """A demo in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder.with_suffix(".log")
        command = [sys.executable, "-c", DEMO, str(folder)]
        self.process = processes.start(command, log=self.log, environ=environment(), directory=ROOT)

    @property
    def output(self) -> str:
        """What the demo has printed."""
        return self.log.read_text()

    def address(self, name: str) -> str:
        """The address of a page that the demo has printed."""
        return next(line.split()[1] for line in self.output.splitlines() if line.strip().startswith(name))

    def descendants(self) -> dict[int, str]:
        """The processes that the demo has started, and those that they have, with their commands."""
        found: dict[int, str] = {}
        family = {self.process.pid}
        for pid, parent, command in sorted(living()):
            if parent in family:
                family.add(pid)
                found[pid] = command
        return found

    def pid_of(self, words: str) -> int:
        """The first descendant whose command contains ``words``."""
        return next(pid for pid, command in self.descendants().items() if words in command)


def environment() -> dict[str, str]:
    """The environment of somebody who has set nothing."""
    return {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}


@contextmanager
def running(folder: Path) -> Iterator[Demo]:
    """A demo whose work has been seeded."""
    demo = Demo(folder)
    try:
        processes.wait_until(lambda: "admin   http" in demo.output or demo.process.poll() is not None, 60)
        assert "admin   http" in demo.output, demo.output
        yield demo
    finally:
        processes.end(demo.process)


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    """A running demo of one test's own."""
    with running(tmp_path / "demo") as demo:
        yield demo


@pytest.fixture(scope="module")
def lasting_demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """A running demo that no test ends."""
    with running(tmp_path_factory.mktemp("demo") / "demo") as demo:
        yield demo


def test_an_interrupted_demo_ends_well_and_leaves_no_process(demo: Demo) -> None:
    started = demo.descendants()
    assert len(started) >= 10
    demo.process.send_signal(signal.SIGINT)
    assert demo.process.wait(60) == 0
    assert outlived(list(started)) == []


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has died")
def test_a_killed_demo_leaves_no_process(demo: Demo) -> None:
    started = demo.descendants()
    demo.process.kill()
    assert outlived(list(started), patience=15) == []


def test_a_process_that_dies_ends_the_demo_which_says_who_and_shows_its_last_words(demo: Demo) -> None:
    started = demo.descendants()
    os.kill(demo.pid_of("celery -A project beat"), signal.SIGKILL)
    assert demo.process.wait(60) == 1
    said = demo.output.partition("demo: beat ended with exit code -9; its last words:\n")[2]
    assert "celery beat" in said or "jobs.schedule" in said  # the banner, or what came after it
    assert outlived(list(started)) == []


def test_a_second_demo_in_the_same_folder_is_refused(lasting_demo: Demo) -> None:
    command = [sys.executable, "-c", DEMO, str(lasting_demo.folder)]
    second = subprocess.run(command, env=environment(), cwd=ROOT, capture_output=True, text=True, check=False)
    assert second.returncode == 1
    assert second.stdout == "demo: another demo of this checkout is running; end it with Ctrl-C first\n"
    assert lasting_demo.process.poll() is None


def test_flower_wants_a_password(lasting_demo: Demo) -> None:
    assert httpx.get(lasting_demo.address("flower"), timeout=10).status_code == 401


def test_the_admin_answers_with_its_login_and_its_style(lasting_demo: Demo) -> None:
    page = httpx.get(lasting_demo.address("admin"), follow_redirects=True, timeout=10)
    assert page.status_code == 200
    style = httpx.URL(lasting_demo.address("admin")).join("/static/admin/css/base.css")
    assert httpx.get(style, timeout=10).status_code == 200


@pytest.mark.parametrize("name", ["admin", "flower"])
def test_the_demo_is_not_reachable_from_other_machines(lasting_demo: Demo, name: str) -> None:
    outside = address_of_this_machine()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((outside, httpx.URL(lasting_demo.address(name)).port or 80), 5)


def address_of_this_machine() -> str:
    """The address that others know this machine by; the test is skipped where there is no network."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            # Nothing is sent: the kernel only chooses the interface.
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no network but loopback")
        return str(probe.getsockname()[0])
