"""The page of the fault matrix: a run makes it anew, and a run of some rows leaves the others as they are."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from tests.chaos import publish
from tests.chaos.one import Outcome


def run(directory: Path, *numbers: int, against: str = "mainstay", jobs: int = 5, **options: Any) -> str:
    """The JSON of a run of these rows."""
    counts = {"in": jobs, "completed": jobs, "failed": 0, "cancelled": 0, "lost": 0, "unfinished": 0, "overlapping": 0}
    rows = [asdict(Outcome(n, f"row{n}", f"fault {n}", "it holds", "ok", counts=counts)) for n in numbers]
    about = {"seed": 1, "quick": True, "database": "postgres", "broker": "redis", "took_s": 9.0, "against": against}
    path = directory / f"{against}-{'-'.join(map(str, numbers))}-{jobs}.json"
    path.write_text(json.dumps({**about, **options, "rows": rows}))
    return str(path)


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A page with two tables, of which plain Celery has played the first."""
    path = tmp_path / "page.md"
    path.write_text(f"Before.\n\n{publish.BEGIN}\n\n{publish.END}\n\nAfter.\n")
    monkeypatch.setattr(publish, "PAGE", path)
    assert (
        publish.main([run(tmp_path, 1, 3), run(tmp_path, 1, 3, against="celery"), run(tmp_path, 1, broker="rabbitmq")])
        == 0
    )
    return path


def rows(page: Path) -> list[tuple[int, str, str]]:
    """Of each line: its number, how many jobs went in, and what plain Celery did."""
    cells = [line.split(" | ") for line in page.read_text().splitlines() if line[2:3].isdigit()]
    return [(int(cell[0].strip("| ")), cell[3], cell[-1].strip(" |")) for cell in cells]


def test_a_run_makes_the_tables_anew(page: Path, tmp_path: Path) -> None:
    assert rows(page) == [(1, "5", "ok"), (3, "5", "ok"), (1, "5", "")]
    publish.main([run(tmp_path, 2)])
    assert rows(page) == [(2, "5", "")]
    assert page.read_text().startswith("Before.\n\n")
    assert page.read_text().endswith("\n\nAfter.\n")


def test_some_rows_take_their_places_and_leave_the_others(page: Path, tmp_path: Path) -> None:
    publish.main(["--rows", run(tmp_path, 2, 3, jobs=8), run(tmp_path, 4, broker="rabbitmq")])
    assert rows(page) == [(1, "5", "ok"), (2, "8", ""), (3, "8", ""), (1, "5", ""), (4, "5", "")]
    assert (
        "\nRows 2–3 later, shorter leases (6 s) and fewer jobs (`QUICK=1`), seed 1: 2 rows with 16 jobs in 9 s.\n"
        in (page.read_text())
    )


def test_the_same_rows_once_more_are_told_once(page: Path, tmp_path: Path) -> None:
    for jobs in (6, 7):
        publish.main(["--rows", run(tmp_path, 2, jobs=jobs)])
    assert rows(page)[1] == (2, "7", "")
    assert page.read_text().count("Row 2 later") == 1
