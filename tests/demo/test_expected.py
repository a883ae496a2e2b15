"""The intended outcome of the demo: it adds up, and a difference is said in a sentence."""

from dataclasses import astuple

from project.demo import expected
from project.demo.expected import TASKS, Ends
from project.demo.round import Round

ROUND = Round(seed=7)


def test_every_charge_ends_one_way_or_the_other():
    assert sum(astuple(expected.ends(ROUND)[TASKS + "ChargeOrder"])) == ROUND.charges


def test_a_receipt_is_asked_for_by_paid_orders_only():
    ends = expected.ends(ROUND)[TASKS + "send_receipt"]
    assert ends.completed + ends.failed == len([line for line in expected.paid(ROUND) if line.receipt])


def test_an_order_is_shipped_when_its_receipt_has_arrived():
    ends = expected.ends(ROUND)
    assert ends[TASKS + "mark_shipped"].completed == ends[TASKS + "send_receipt"].completed


def test_every_tax_entry_is_booked_in_the_end_though_some_failed_first():
    ends = expected.ends(ROUND)[TASKS + "book_tax"]
    assert (ends.completed, ends.failed) == (ROUND.taxes, len(expected.untaxable(ROUND)))


def test_a_round_shows_every_final_state():
    summed = sum(expected.ends(ROUND).values(), Ends())
    assert 0 not in astuple(summed)


def test_two_rounds_add_up():
    one, two = expected.ends(ROUND), expected.ends(Round(seed=7, number=2))
    assert expected.total([ROUND, Round(seed=7, number=2)]) == {task: one[task] + two[task] for task in one}


def test_the_intended_outcome_has_no_differences():
    assert list(expected.differences(expected.ends(ROUND), expected.ends(ROUND))) == []


def test_a_task_that_nobody_intended_is_a_difference():
    (difference,) = expected.differences({}, {"shop.surprise": Ends(completed=1)})
    assert difference.startswith("shop.surprise: intended 0 completed")


def test_a_demo_without_a_nightly_report_is_a_difference():
    assert len(list(expected.nightly_differences({}))) == 1


def test_any_number_of_completed_nightly_reports_is_as_intended():
    assert list(expected.nightly_differences({expected.NIGHTLY: Ends(completed=17)})) == []
