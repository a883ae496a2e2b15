"""What the tables say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.bench import publish, report
from tests.bench.measures.base import Sample


def run(*samples: Sample, **more: Any) -> dict[str, Any]:
    """A run that found this."""
    from dataclasses import asdict

    about = {
        "quick": False, "took_s": 61.0, "versions": {"celery": "5.7.0"}, "servers": "private", "warnings": [],
        "machine": {"processors": 2, "processor": "slow", "memory_gb": 4, "system": "Linux", "load": 0.1},
        "measures": ["drain"], "settings": {"mainstay": "ours", "celery": "acks_late"}, "failed": {},
        "floor": {"select_us": 81.0}, "samples": [asdict(sample) for sample in samples],
    }  # fmt: skip
    return about | more


def drain(system: str, number: int, rate: float, **more: float) -> Sample:
    """One drain."""
    return Sample("drain", "prefork", system, number, {"jobs_s": rate, "memory_mb": 90.0, **more})


TWO = [drain("mainstay", 1, 800.0), drain("mainstay", 2, 900.0), drain("celery", 1, 400.0), drain("celery", 2, 300.0)]


def test_a_table_has_medians_with_spread_the_ratio_and_what_is_kept() -> None:
    lines = report.markdown(run(*TWO)).splitlines()
    ours = next(line for line in lines if line.startswith("| Mainstay |"))
    assert "| 850 (800–900) |" in ours
    assert "| 2.50× (2.00–3.00) |" in ours
    assert ours.endswith("| a row with payload, times and result; attempts; dead letters |")


def test_every_must_has_a_line() -> None:
    text = report.markdown(run(*TWO))
    assert (
        "| drain on PostgreSQL, prefork, against stock Celery untracked | ≥ 1× (aim ≥ 2×) | 2.50× (2.00–3.00) |" in text
    )
    assert "**met, aim too**" in text
    assert text.count("**not measured**") >= 10


def test_a_peer_that_failed_is_named_with_the_reason() -> None:
    assert "* drain, prefork: rq: it crashed" in report.markdown(run(*TWO, failed={"drain, prefork: rq": "it crashed"}))


def test_the_settings_of_those_who_were_measured_are_beside_the_numbers() -> None:
    assert "| stock Celery, untracked | acks_late |" in report.markdown(run(*TWO))


def test_what_a_job_costs_is_said_where_it_was_counted() -> None:
    text = report.markdown(run(drain("mainstay", 1, 800.0, statements=3.0, wal_bytes=2048.0)))
    assert "| Mainstay, prefork | 3.00 | 2,048 |" in text


def test_a_busy_machine_is_said_in_the_report() -> None:
    assert "The machine is busy" in report.markdown(run(*TWO, warnings=["The machine is busy (load 3)."]))


def test_no_line_but_those_of_tables_is_long() -> None:
    text = report.markdown(run(*TWO, servers="private and " * 40, failed={"rq": "it crashed " * 30}))
    assert [line for line in text.splitlines() if len(line) > 130 and not line.startswith("|")] == []


def test_a_run_is_kept_as_json_with_its_tables_beside_it(tmp_path: Path) -> None:
    report.write(tmp_path / "new" / "run.json", run(*TWO))
    kept = json.loads((tmp_path / "new" / "run.json").read_text())
    assert [sample["figures"]["jobs_s"] for sample in kept["samples"]] == [800.0, 900.0, 400.0, 300.0]
    assert (tmp_path / "new" / "run.md").read_text() == report.markdown(kept)


def test_a_run_is_published_between_the_marks_of_the_page(tmp_path: Path) -> None:
    page, kept = tmp_path / "page.md", tmp_path / "run.json"
    page.write_text(f"before\n{publish.BEGIN}\nold\n{publish.END}\nafter\n")
    report.write(kept, run(*TWO))
    assert publish.main([str(kept)], page) == 0
    text = page.read_text()
    assert text.startswith(f"before\n{publish.BEGIN}\n")
    assert text.endswith(f"{publish.END}\nafter\n")
    assert "850 (800–900)" in text
    assert "old" not in text


def test_a_run_that_is_not_there_is_one_sentence(tmp_path: Path, capsys: Any) -> None:
    assert publish.main([str(tmp_path / "none.json")], tmp_path / "page.md") == 2
    assert "make bench" in capsys.readouterr().err


def test_statements_are_counted_by_the_job_over_all_rounds() -> None:
    def round_(number: int, calls: int, ms: float) -> Sample:
        rows = [
            {"query": "UPDATE jobs_job", "calls": calls, "ms": ms, "wal_bytes": 200.0 * calls},
            {"query": "SELECT seldom", "calls": 1, "ms": 9.0, "wal_bytes": 0.0},
        ]
        return Sample("drain", "prefork", "mainstay", number, {"jobs_s": 1.0}, {"jobs": 100, "statements": rows})

    text = report.statement_tables(report.Findings([round_(1, 200, 20.0), round_(2, 200, 60.0)]))
    assert "| `UPDATE jobs_job` | 2.00 | 0.20 | 200 |" in text
    assert "seldom" not in text


def pickup(number: int, took: list[float]) -> Sample:
    """One look at an idle system."""
    figures = {"call_p50_ms": sorted(took)[len(took) // 2], "call_p99_ms": max(took)}
    return Sample("pickup", "", "mainstay", number, figures, {"call_took_ms": took})


def test_a_p99_is_that_of_all_rounds_together_with_how_many_values_it_is_of() -> None:
    rounds = [pickup(1, [1.0] * 98 + [7.0, 9.0]), pickup(2, [1.0] * 99 + [8.0])]
    assert "| 7.00 (8.00–9.00) | 200 |" in report.markdown(run(*rounds, measures=["pickup"]))


def test_of_too_few_values_there_is_no_p99() -> None:
    assert "| 1.00 (1.00–1.00) |  | 99 |" in report.markdown(run(pickup(1, [1.0] * 98 + [9.0]), measures=["pickup"]))


def test_what_there_was_no_time_for_is_said() -> None:
    assert "* for want of time: rounds 2 to 5 of drain" in report.markdown(run(*TWO, late=["rounds 2 to 5 of drain"]))


@pytest.mark.parametrize(
    ("kind", "says"),
    [({"quick": True}, "A quick run"), ({"whole": True}, "A full run"), ({"whole": False}, "A partial run")],
)
def test_a_report_says_how_much_of_the_benchmark_it_is_of(kind: dict[str, bool], says: str) -> None:
    assert report.markdown(run(*TWO, **kind)).startswith(says)
