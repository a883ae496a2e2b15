"""The musts, and what is said of them."""

from __future__ import annotations

import pytest

from tests.bench import musts, runner, systems
from tests.bench.options import Options


def verdict(what: str, ours: float, theirs: float) -> str:
    """The status of one must, where the two were measured so in one round."""
    must = next(one for one in musts.MUSTS if what in one.what)
    found = {
        (must.measure, must.case, must.ours): {1: {must.figure: ours}},
        (*must.theirs, must.against): {1: {must.figure: theirs}},
    }
    return next(each.status for each in musts.judged(found) if each.must == must)


@pytest.mark.parametrize(
    ("what", "ours", "theirs", "status"),
    [
        ("prefork, against stock", 390, 400, "NOT MET"),
        ("prefork, against stock", 410, 400, "met"),
        ("prefork, against stock", 900, 400, "met, aim too"),
        ("delay() against stock delay()", 1600, 1000, "NOT MET"),
        ("delay() against stock delay()", 1400, 1000, "met"),
        ("delay() against stock delay()", 900, 1000, "met, aim too"),
        ("releases against stock delay()", 4000, 1000, "NOT MET"),
        ("releases against stock delay()", 5100, 1000, "met, aim too"),
        ("bulk against", 9000, 1000, "NOT MET"),
        ("idle broker to start of body", 1.1, 1.0, "met"),
        ("behind the flood of another", 2.1, 0, "NOT MET"),
        ("behind the flood of another", 1.9, 0, "met"),
        ("behind the flood of another", 0.1, 0, "met, aim too"),
    ],
)
def test_a_must_is_met_or_not_by_its_ratio(what: str, ours: float, theirs: float, status: str) -> None:
    assert verdict(what, ours, theirs) == status


def test_a_must_without_samples_is_not_measured() -> None:
    assert {each.status for each in musts.judged({})} == {"not measured"}


def test_every_must_names_systems_that_exist() -> None:
    assert {one.against for one in musts.MUSTS} <= {*systems.PEERS, ""}
    assert {one.ours for one in musts.MUSTS} <= set(systems.SYSTEMS)


def test_the_median_of_the_rounds_decides() -> None:
    must = musts.MUSTS[0]
    rates = {1: {"jobs_s": 300.0}, 2: {"jobs_s": 500.0}, 3: {"jobs_s": 600.0}}
    stock = {number: {"jobs_s": 400.0} for number in rates}
    found = {("drain", "prefork", "mainstay"): rates, ("drain", "prefork", "celery"): stock}
    judged = next(each for each in musts.judged(found) if each.must == must)
    assert judged.ratio is not None
    assert (judged.ratio.low, judged.ratio.middle, judged.ratio.high) == (0.75, 1.25, 1.5)
    assert judged.status == "met"


@pytest.mark.parametrize(
    ("check", "unmet", "failed", "code"),
    [
        (False, ["drain"], {"drain, solo: rq": "it crashed"}, 0),
        (True, ["drain"], {}, 1),
        (True, [], {"rq": "not installed"}, 1),
        (True, [], {}, 0),
        (False, [], {"drain, solo: mainstay": "lost a job"}, 1),
    ],
)
def test_unmet_musts_are_an_error_only_where_they_are_checked(
    check: bool, unmet: list[str], failed: dict[str, str], code: int
) -> None:
    assert runner.exit_code(Options(check_musts=check), unmet, failed) == code
