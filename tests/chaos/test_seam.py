"""A process dies at the statement that it was told to die at, once."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos import seam, world
from tests.chaos.children import ROOT

THREE_STATEMENTS = """
import django; django.setup()
from django.db import connection, transaction
from tests.chaos import seam
connection.ensure_connection(); seam.watch(connection)
with connection.cursor() as cursor:
    cursor.execute("INSERT INTO done VALUES (1)")
with transaction.atomic(), connection.cursor() as cursor:
    cursor.execute("INSERT INTO done VALUES (2)")
with connection.cursor() as cursor:
    cursor.execute("INSERT INTO done VALUES (3)")
"""


def run(tmp_path: Path, where: str, who: str | None = "any") -> tuple[int, list[int], bool]:
    """Run three statements, the second in a transaction; return the exit code, what is there, whether still armed."""
    file, armed = tmp_path / "seam.sqlite3", tmp_path / "armed"
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE done (n int)")
    if who is not None:
        armed.write_text(who)
    environ = {**world.base_environ(), "DJANGO_SETTINGS_MODULE": "tests.chaos.plain_settings",
               "DATABASE_URL": f"sqlite:///{file}", "CHAOS_DIE": where, "CHAOS_ARMED": str(armed)}  # fmt: skip
    code = subprocess.run([sys.executable, "-c", THREE_STATEMENTS], env=environ, cwd=ROOT, check=False).returncode
    found = [n for (n,) in connection.execute("SELECT n FROM done ORDER BY n")]
    connection.close()
    return code, found, armed.exists()


@pytest.mark.parametrize(
    ("where", "left"),
    # The second is BEGIN, the fourth COMMIT.
    [
        ("1:before", []),
        ("1:after", [1]),
        ("3:after", [1]),
        ("4:before", [1]),
        ("4:after", [1, 2]),
        ("5:before", [1, 2]),
    ],
)
def test_a_process_dies_before_or_after_a_statement_or_a_commit(tmp_path: Path, where: str, left: list[int]) -> None:
    assert run(tmp_path, where) == (-signal.SIGKILL, left, False)


def test_a_process_lives_when_it_does_not_reach_the_seam(tmp_path: Path) -> None:
    assert run(tmp_path, "9:before") == (0, [1, 2, 3], True)


@pytest.mark.parametrize("who", [None, "child", "any another-thread"])
def test_a_process_lives_when_it_is_not_meant(tmp_path: Path, who: str | None) -> None:
    assert run(tmp_path, "1:before", who)[0] == 0


def test_of_many_processes_one_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAOS_ARMED", str(tmp_path / "gone"))
    monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("somebody else has died here already"))
    seam._die()
