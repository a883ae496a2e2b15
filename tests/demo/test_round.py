"""A round of the demo: how much there is to do, and for whom."""

import pytest

from project.demo.round import Round, spread


def test_a_round_writes_at_least_ten_thousand_orders_unless_told_otherwise():
    assert Round(seed=7).orders >= 10_000


def test_the_same_round_lists_the_same_orders():
    assert list(Round(seed=7, orders=300, charges=10, receipts=5, taxes=5).lines()) == list(
        Round(seed=7, orders=300, charges=10, receipts=5, taxes=5).lines()
    )


def test_two_rounds_share_no_order_number():
    sizes = {"orders": 300, "charges": 10, "receipts": 5, "taxes": 5}
    first, second = Round(seed=7, number=1, **sizes), Round(seed=7, number=2, **sizes)
    assert not {line.number for line in first.lines()} & {line.number for line in second.lines()}


def test_no_two_orders_share_a_customer():
    emails = [line.email for line in Round(seed=7).lines()]
    assert len(set(emails)) == len(emails)


def test_a_round_charges_as_many_orders_as_asked():
    assert len(Round(seed=7, orders=1000, charges=37, receipts=5).charged()) == 37


def test_only_charged_orders_get_a_receipt():
    a_round = Round(seed=7, orders=1000, charges=40, receipts=13)
    assert [line.due for line in a_round.with_receipt()] == [True] * 13


def test_some_tax_is_booked_for_the_country_without_a_rate():
    assert "NO" in {line.country for line in Round(seed=7).taxed()}


def test_exactly_one_picture_of_a_round_is_corrupt():
    a_round = Round(seed=7)
    pictures = [picture for sku, _ in a_round.skus() for picture in a_round.product_pictures(sku)]
    assert [picture.corrupt for picture in pictures].count(True) == 1


def test_more_charges_than_orders_are_refused_with_both_numbers():
    with pytest.raises(ValueError, match=r"charges must be between 0 and orders \(10\)"):
        Round(seed=7, orders=10, charges=11, receipts=0, taxes=0)


@pytest.mark.parametrize(("total", "wanted"), [(10, 0), (10, 1), (10, 3), (10, 10), (12_000, 300)])
def test_spread_gives_as_many_places_as_wanted_inside_the_total(total, wanted):
    places = spread(total, wanted)
    assert (len(places), max(places, default=0) < total) == (wanted, True)
