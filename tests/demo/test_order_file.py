"""Order files: what is written can be read, from any line on."""

import pytest

from jobs.errors import PermanentError
from project.demo import order_file
from project.demo.round import Round

SMALL = Round(seed=7, orders=40, charges=8, receipts=4, taxes=4)


@pytest.fixture
def path(tmp_path):
    order_file.write(tmp_path / "orders.csv", SMALL.lines())
    return tmp_path / "orders.csv"


def test_a_file_reads_back_as_the_orders_that_were_written(path):
    assert list(order_file.read(path)) == list(SMALL.lines())


def test_reading_can_begin_after_any_number_of_orders(path):
    assert [line.number for line in order_file.read(path, after=37)] == [
        "01-000038",
        "01-000039",
        "01-000040",
    ]


def test_batches_hold_at_most_as_many_orders_as_asked(path):
    assert [len(batch) for batch in order_file.batches(path, after=0, size=15)] == [15, 15, 10]


def test_a_line_that_cannot_be_read_is_a_permanent_error_that_names_its_place(tmp_path):
    order_file.write_broken(tmp_path / "broken.csv", SMALL)
    with pytest.raises(PermanentError, match="order 12 of the file cannot be read"):
        list(order_file.read(tmp_path / "broken.csv"))
