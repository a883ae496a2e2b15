"""Whoever stops a run finds nothing of it left."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from project import processes
from project.servers import ServerUnavailable
from project.servers.postgres import find_programs
from project.servers.redis import redis_binary
from tests.bench.runner import DIRECTORY
from tests.chaos.children import ROOT, descendants, living


@pytest.mark.slow
@pytest.mark.parametrize(
    ("measure", "words"),
    [("drain", "starting private servers"), ("drain", "The floor here"), ("scale", "how cost grows with history")],
)
def test_an_interrupted_run_ends_all_that_it_started_and_removes_its_data(
    tmp_path: Path, measure: str, words: str
) -> None:
    try:
        find_programs(), redis_binary()
    except ServerUnavailable as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    log = tmp_path / "bench.log"
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("DJANGO_", "DATABASE_", "BROKER_", "TEST_"))}
    command = [sys.executable, "-m", "tests.bench", "--measure", measure, "--peers", "mainstay"]
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    environ["TMPDIR"] = str(temporary)
    before = set(DIRECTORY.glob("run-*")) if DIRECTORY.exists() else set()
    process = processes.start(command, log=log, environ=environ, directory=ROOT)
    try:
        assert processes.wait_until(lambda: words in log.read_text() or process.poll() is not None, 60)
        assert processes.wait_until(lambda: descendants(process.pid), 10)
        assert measure != "scale" or processes.wait_until(lambda: any(temporary.glob("mainstay-scale-*/redis")), 30)
        below = descendants(process.pid)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130, log.read_text()
    finally:
        processes.end(process)
    assert "everything that was started has ended" in log.read_text()
    assert not {pid for pid, _ in living()} & set(below)
    assert set(DIRECTORY.glob("run-*")) <= before
    assert not any(temporary.glob("mainstay-*"))
