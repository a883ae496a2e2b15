"""``make bench`` as its user calls it: choices, and mistakes that are one sentence."""

from __future__ import annotations

import pytest

from tests.bench import runner, systems
from tests.bench.measures import MEASURES
from tests.bench.options import MEASURES as NAMES
from tests.bench.options import Options, parse


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--measure", "drian"], "MEASURE=drian is not a measure. Did you mean drain?"),
        (["--measure", "x"], "MEASURE=x is not a measure. There are: enqueue, bulk"),
        (["--peers", "celary"], "PEERS=celary is not a peer. Did you mean celery?"),
        (["--peers", "rq,x"], "PEERS=x is not a peer. There are: celery"),
        (["--rounds", "0"], "ROUNDS=0 cannot be."),
        (["--rounds", "many"], "ROUNDS=many cannot be."),
        (["--before", "/nowhere"], "BEFORE=/nowhere is no checkout of Mainstay."),
    ],
)
def test_a_mistake_is_one_sentence(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert runner.main(arguments) == 2
    said = capsys.readouterr().out
    assert said.startswith(f"bench: {says}")
    assert "Traceback" not in said


def test_what_make_leaves_empty_is_not_asked_for() -> None:
    assert parse(["--quick", "", "--measure", "", "--peers", "", "--rounds", "", "--check-musts", ""]) == Options()


@pytest.mark.parametrize("arguments", [["--quick"], ["--quick", "1"], ["--quick=yes"]])
def test_a_quick_run_is_asked_for_with_or_without_a_value(arguments: list[str]) -> None:
    assert parse(arguments).quick


def test_no_is_not_a_quick_run() -> None:
    assert not parse(["--quick", "0"]).quick


def test_mainstay_is_measured_beside_the_peers_that_are_named() -> None:
    assert [system.name for system in parse(["--peers", "rq, celery"]).systems] == ["mainstay", "celery", "rq"]


def test_measures_keep_their_order() -> None:
    assert parse(["--measure", "pickup,enqueue"]).measures == ("enqueue", "pickup")


def test_every_measure_that_can_be_named_exists() -> None:
    assert set(NAMES) == {*MEASURES, "scale"}


def test_a_quick_run_measures_less_but_every_must() -> None:
    for name, module in MEASURES.items():
        quick = module.cases(Options(quick=True), systems.ALL)
        assert quick, name
        assert len(quick) <= len(module.cases(Options(), systems.ALL))
        assert {"mainstay"} <= {case.system.name for case in quick}


def test_a_peer_that_is_named_is_drained_in_a_quick_run_too() -> None:
    named = parse(["--quick", "--peers", "huey"])
    assert "huey" in {case.system.name for case in MEASURES["drain"].cases(named, named.systems)}


def test_a_quick_run_says_what_it_leaves_out() -> None:
    said = runner.left_out(Options(quick=True))
    assert "drain: " in said
    assert "of its cases, and 2 rounds instead of 5" in said
