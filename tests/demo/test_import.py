"""Importing an order file: in batches, each committed with its cursor and the charges that it asks for."""

import pytest

from project.celery import app
from project.demo import conf, order_file, tasks
from project.demo.models import CursorMoved, ImportRun, Order
from project.demo.round import Round

pytestmark = pytest.mark.django_db

ROUND = Round(seed=7, orders=50, charges=10, receipts=4, taxes=0)


class PowerCut(Exception):
    """The process ends here."""


@pytest.fixture
def asked(monkeypatch):
    """The orders whose charge was asked for, instead of enqueuing it."""
    orders = []
    monkeypatch.setattr(tasks, "ask_for_payment", lambda order, **options: orders.append(order.number))
    return orders


@pytest.fixture
def run(tmp_path, monkeypatch, asked):
    monkeypatch.setattr(conf, "ORDER_FILES", tmp_path)
    monkeypatch.setattr(tasks, "BATCH", 15)
    order_file.write(tmp_path / "orders.csv", ROUND.lines())
    return ImportRun.objects.create(file="orders.csv", rows=ROUND.orders)


def bring_in(run):
    """One attempt of the import, as a plain call."""
    return app.tasks[tasks.ImportOrders.name](run_id=run.pk, tag="round-1")


def cut_the_power_at(order_number, monkeypatch):
    """Make the import end at an order, after its batch was written and before it is committed."""
    ask = tasks.ask_for_payment

    def cut(order, **options):
        if order.number == order_number:
            raise PowerCut
        ask(order, **options)

    monkeypatch.setattr(tasks, "ask_for_payment", cut)


def test_an_import_brings_in_every_order_of_the_file(run):
    bring_in(run)
    assert Order.objects.count() == ROUND.orders


def test_an_import_asks_for_the_charge_of_every_due_order(run, asked):
    bring_in(run)
    assert asked == [line.number for line in ROUND.charged()]


def test_a_finished_import_says_so(run):
    bring_in(run)
    run.refresh_from_db()
    assert (run.cursor, run.done) == (ROUND.orders, True)


@pytest.fixture
def interrupted(run, monkeypatch):
    """An import that ended in its third batch."""
    with monkeypatch.context() as patched:
        cut_the_power_at("01-000041", patched)
        with pytest.raises(PowerCut):
            bring_in(run)
    return run


def test_an_interrupted_import_leaves_whole_batches_and_their_cursor(interrupted):
    interrupted.refresh_from_db()
    assert (Order.objects.count(), interrupted.cursor) == (30, 30)


def test_an_import_resumes_behind_its_cursor(interrupted):
    bring_in(interrupted)
    assert Order.objects.count() == ROUND.orders


def test_a_resumed_import_finds_nothing_left_to_do_when_asked_again(interrupted):
    bring_in(interrupted)
    assert bring_in(interrupted) == {"imported": ROUND.orders}


def test_a_batch_that_somebody_else_has_imported_is_refused(run):
    stale = ImportRun.objects.get(pk=run.pk)
    lines = list(ROUND.lines())
    run.take(lines[:15])
    with pytest.raises(CursorMoved):
        stale.take(lines[:15])


def test_a_refused_batch_leaves_no_order_behind(run):
    stale = ImportRun.objects.get(pk=run.pk)
    lines = list(ROUND.lines())
    run.take(lines[:15])
    with pytest.raises(CursorMoved):
        stale.take(lines[15:30])
    assert Order.objects.count() == 15
