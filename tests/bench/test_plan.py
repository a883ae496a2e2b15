"""How long a run is: said before, and kept to."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.bench import plan, runner, systems
from tests.bench.measures.base import Bench, Case, Sample
from tests.bench.options import Options, parse
from tests.bench.plan import Part
from tests.bench.world import Failed, World


def test_a_whole_run_is_planned_for_no_more_than_25_minutes() -> None:
    assert 15 * 60 < plan.length(Options()) <= 25 * 60


def test_a_quick_run_is_planned_for_less_than_three_minutes() -> None:
    assert plan.length(Options(quick=True)) < 170


def test_a_run_that_is_as_long_as_planned_has_time_for_every_round() -> None:
    for options in (Options(), Options(quick=True)):
        assert plan.length(options) - plan.HISTORY * plan.with_history(options) <= options.budget


def test_whoever_says_how_many_rounds_there_are_gets_them() -> None:
    assert parse(["--rounds", "9"]).budget == float("inf")


def test_a_run_says_at_its_start_how_long_it_takes() -> None:
    options = parse(["--measure", "drain", "--peers", "celery", "--rounds", "2"])
    assert runner.Run(Console(), options).length() == "12 samples: about 1:35 minutes"
    assert "so that it ends after about 24:00 too" in runner.Run(Console(), Options()).length()


class Clock:
    """Seconds that pass when a sample is taken."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        """The time."""
        return self.now


class Slow:
    """A measure whose samples take as long as they are told to, or fail."""

    def __init__(self, clock: Clock, seconds: float, fails: str = "") -> None:
        self.clock, self.seconds, self.fails = clock, seconds, fails

    def take(self, bench: Bench | None, case: Case, number: int) -> Sample:
        """Take one."""
        self.clock.now += self.seconds
        if case.system.name == self.fails:
            raise Failed("it crashed")
        return Sample("drain", case.case, case.system.name, number, {"jobs_s": 1.0})


def played(monkeypatch: pytest.MonkeyPatch, seconds: float, fails: str = "") -> tuple[runner.Run, str]:
    """A run with a budget of 100 seconds, whose samples take so long."""
    clock, said = Clock(), io.StringIO()
    monkeypatch.setattr(runner, "time", clock)
    monkeypatch.setattr(runner, "MEASURES", {"drain": Slow(clock, seconds, fails)})
    monkeypatch.setattr(Options, "budget", 100.0)
    run = runner.Run(Console(file=said, soft_wrap=True), Options())
    cases = [Case("drain", "prefork", systems.SYSTEMS[name]) for name in ("mainstay", "celery")]
    run.parts = [Part("drain", cases, 5, 10.0)]
    bench: Any = None
    run.measure(bench)
    return run, said.getvalue()


def test_a_run_that_is_as_fast_as_planned_takes_every_round(monkeypatch: pytest.MonkeyPatch) -> None:
    run, said = played(monkeypatch, 10.0)
    assert len(run.taken) == 10
    assert run.late == []
    assert said.splitlines()[-1].startswith("[1:40, 10 of 10] drain prefork")


def test_a_slow_run_leaves_out_whole_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = played(monkeypatch, 20.0)
    assert [(sample.round, sample.system) for sample in run.taken] == [
        (1, "celery"), (1, "mainstay"), (2, "mainstay"), (2, "celery"),
    ]  # fmt: skip
    assert run.late == ["rounds 3 to 5 of drain"]


def test_one_that_fails_is_told_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    run, said = played(monkeypatch, 5.0, fails="celery")
    assert [sample.system for sample in run.taken] == ["mainstay"] * 5
    assert run.failed == {"drain, prefork: celery": "it crashed"}
    assert said.count("drain, prefork: celery is left out: it crashed") == 1


def test_one_whose_tables_cannot_be_made_is_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def never(*_: object) -> None:
        raise TimeoutError("it is still busy")

    world = World(tmp_path, [systems.SYSTEMS["rq"]], "python", "python")
    monkeypatch.setattr(World, "_migrate", never)
    world._prepare_one(systems.SYSTEMS["rq"])
    assert world.broken == {"rq": "its database cannot be made ready: it is still busy"}
