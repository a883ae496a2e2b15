"""Where the processes of a system run, and what they find there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.bench import systems
from tests.bench.world import PEERS, World
from tests.chaos.children import ROOT


def prepared(directory: Path, system: systems.System, monkeypatch: pytest.MonkeyPatch) -> World:
    """A world in which the tables of a system would have been made."""
    world = World(directory, [system], "python", "python")
    monkeypatch.setattr(World, "_migrate", lambda *_: None)
    monkeypatch.setattr(World, "_keep_empty", lambda *_: None)
    world._prepare_one(system)
    assert world.broken == {}
    return world


def test_another_checkout_is_measured_by_the_tasks_of_this_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "old"
    for name in ("jobs", "project", "tests/jobs"):
        (old / name).mkdir(parents=True)
    for name in ("manage.py", "jobs/task.py", "tests/__init__.py"):
        (old / name).write_text("old")
    before = {path: path.stat().st_mtime_ns for path in old.rglob("*")}
    world = prepared(tmp_path / "run", replace(systems.OTHER, root=str(old)), monkeypatch)
    folder = world.folder(replace(systems.OTHER, root=str(old)))
    assert [(folder / name).read_text() for name in ("manage.py", "jobs/task.py", "tests/__init__.py")] == ["old"] * 3
    assert (folder / "manage.py").resolve().parent == folder
    assert (folder / "tests/bench/ours.py").samefile(ROOT / "tests/bench/ours.py")
    assert {path: path.stat().st_mtime_ns for path in old.rglob("*")} == before


def test_ours_runs_in_the_repository_and_a_peer_where_nothing_of_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert prepared(tmp_path, systems.OURS, monkeypatch).folder(systems.OURS) == ROOT
    assert prepared(tmp_path, systems.SYSTEMS["rq"], monkeypatch).folder(systems.SYSTEMS["rq"]) == PEERS
