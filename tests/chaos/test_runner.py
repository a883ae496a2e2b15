"""``make chaos`` as its user meets it: choices, mistakes, the exit code."""

from __future__ import annotations

import io
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from project import processes
from tests.chaos import matrix, report, runner
from tests.chaos.children import descendants, living
from tests.chaos.matrix import Row
from tests.chaos.one import Outcome
from tests.chaos.runner import Playing, Run
from tests.chaos.world import Options


def nothing(stage: Any) -> None:
    """A script."""


def outcome(status: str, **how: Any) -> Outcome:
    """An outcome of row 1."""
    return Outcome(1, "nothing", "a fault", "", status, **how)


def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Run:
    """A run that plays nothing."""
    monkeypatch.setattr(runner, "DIRECTORY", tmp_path)
    monkeypatch.delenv("CI", raising=False)
    return Run(Console(file=io.StringIO()), Options(1, **options), [Row(1, "a fault", "", nothing)], 1)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--row", "9999"], "ROW=9999 is not a row of the matrix. There are: 1, 2"),
        (["--row", "main_kiled"], "Did you mean main_killed?"),
        (["--seed", "abc"], "SEED=abc is not a whole number. Write it as in SEED=42."),
        (["--parallel", "0"], "PARALLEL=0 cannot be."),
        (["--database", "oracle"], "DATABASE=oracle is not known. Set it to postgres or sqlite."),
        (["--broker", "kafka"], "BROKER=kafka is not known. Set it to redis or rabbitmq."),
        (["--against", "rq"], "AGAINST=rq is not known."),
    ],
)
def test_a_mistake_is_one_sentence(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert runner.main(arguments) == 2
    said = capsys.readouterr().out
    assert said.startswith(f"chaos: {says.partition('Did')[0]}") or says in said
    assert says in said
    assert "Traceback" not in said


def test_rows_are_chosen_by_number_and_by_name() -> None:
    known = matrix.load()
    assert [r.number for r in matrix.choose("17, main_killed,1", known)] == [17, 17, 1]
    assert matrix.choose("", known) == list(known.values())


def test_every_row_says_what_must_happen_and_has_a_name_of_its_own() -> None:
    rows = matrix.load().values()
    assert all(row.fault and row.must for row in rows)
    assert len({row.name for row in rows}) == len(rows)


@pytest.mark.parametrize(("status", "code"), [("ok", 0), ("n/a", 0), ("failed", 1), ("skipped", 1)])
def test_the_exit_code_is_1_when_a_row_failed_or_was_not_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: str, code: int
) -> None:
    assert run(tmp_path, monkeypatch).exit_code([outcome("ok"), outcome(status)]) == code


def test_losses_of_plain_celery_are_a_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(tmp_path, monkeypatch, against="celery").exit_code([outcome("failed")]) == 0


def test_rows_without_a_rabbitmq_are_excused_but_not_in_ci(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rabbit = run(tmp_path, monkeypatch, broker="rabbitmq")
    assert rabbit.exit_code([outcome("skipped")]) == 0
    monkeypatch.setitem(os.environ, "CI", "1")
    assert rabbit.exit_code([outcome("skipped")]) == 1


def test_a_line_says_all_counts() -> None:
    counts = {"in": 20, "completed": 19, "failed": 1}
    said = report.line(outcome("ok", counts=counts, recovery_s=1.5, took_s=9.0))
    assert said == (
        "fault=1:a-fault in=20 completed=19 failed=1 cancelled=0 unfinished=0 lost=0 overlapping=0 late_writes=0 "
        "duplicate_effects=0 bodies_overlapped=0 recovery_s=1.5 took_s=9.0 ok"
    )


def test_the_outcomes_are_kept_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "outcomes.json"
    report.write(path, [outcome("failed", problems=["job 1 is lost"])], {"seed": 1})
    assert report.read(path) == [outcome("failed", problems=["job 1 is lost"])]
    assert report.read(tmp_path / "none.json") == []


def test_the_table_shows_both_sides() -> None:
    console = Console(file=io.StringIO(), width=200)
    counts = {"in": 20, "completed": 20}
    other = outcome("failed", counts={"in": 20, "lost": 7})
    report.show_table(console, [outcome("ok", counts=counts)], [other], "ours")
    assert "7 lost" in console.file.getvalue()  # type: ignore[attr-defined]


def test_a_row_whose_process_breaks_has_failed_and_shows_its_last_words(tmp_path: Path) -> None:
    unknown = Row(987654, "a fault", "", nothing)
    playing = Playing(unknown, Options(1), tmp_path, "")
    playing.process.wait(30)
    assert playing.over
    found = playing.outcome()
    assert found.status == "failed"
    assert "KeyError: 987654" in found.problems[0]


def test_a_row_that_does_not_end_is_ended_with_all_that_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "PATIENCE", 0.5)
    code = "import signal, subprocess; signal.signal(15, signal.SIG_IGN); subprocess.Popen(['sleep', '600']); "
    code += "print('on', flush=True); signal.pause()"
    playing = Playing(Row(1, "a fault", "", nothing, limit=-1000), Options(1), tmp_path, "")
    playing.process.kill()
    playing.process.wait(10)
    playing.process = processes.start([sys.executable, "-c", code], log=playing.log)
    assert processes.wait_until(lambda: "on" in playing.last_words(), 10)
    below = descendants(playing.process.pid)
    for pid in below:
        os.kill(pid, signal.SIGSTOP)
    assert playing.over
    assert processes.wait_until(lambda: not {pid for pid, _ in living()} & {playing.process.pid, *below}, 10)
