"""The ledger keeps what bodies did, whoever dies while writing."""

from __future__ import annotations

from multiprocessing import get_context
from pathlib import Path

import pytest

from tests.chaos import ledger
from tests.chaos.ledger import Line
from tests.chaos.stage import recovery


def line(what: str, at: int, *, number: int = 1, attempt: int = 1, pid: int = 10) -> Line:
    """A line of job ``number``."""
    return Line(what, number, "job", attempt, pid, "-", at)


def _write(path: Path, pid: int) -> None:
    for at in range(200):
        ledger.append(path, str(line("beat", at, pid=pid)))


def test_lines_of_many_processes_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    writers = [get_context("spawn").Process(target=_write, args=(path, pid)) for pid in (1, 2, 3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(ledger.read_lines(path)) == 600


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    ledger.append(path, str(line("begin", 1)))
    with path.open("a") as file:
        file.write("end 1 jo")
    assert [found.what for found in ledger.read_lines(path)] == ["begin"]


def test_a_run_lasts_from_its_begin_to_its_last_line() -> None:
    found = ledger.runs([line("begin", 1), line("beat", 5), line("begin", 6, attempt=2), line("end", 9, attempt=2)])
    assert [(run.began, run.last, run.ended) for run in found] == [(1, 5, None), (6, 9, 9)]


def test_a_process_that_is_lied_to_about_the_time_still_writes_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAOS_CLOCK", str(ledger.clock_offset()))
    honest = ledger.now()
    monkeypatch.setattr("time.time_ns", lambda: 0)
    assert ledger.now() - honest < 1e9


def test_recovery_is_when_the_last_interrupted_body_began_again() -> None:
    lines = [line("begin", 1), line("begin", 2, number=2), line("begin", 5_000_000_000, number=2, attempt=2),
             line("begin", 9_000_000_000, attempt=2), line("begin", 20_000_000_000, number=3)]  # fmt: skip
    assert recovery(ledger.runs(lines), 1_000_000_000) == 8.0


def test_recovery_without_an_interrupted_body_is_when_the_next_one_began() -> None:
    lines = [line("begin", 1), line("end", 2), line("begin", 3_000_000_000, number=2)]
    assert recovery(ledger.runs(lines), 1_000_000_000) == 2.0
