"""Importing an order file: in batches, each committed with its cursor and the charges that it asks for."""

import signal

import pytest

from jobs.states import State
from project.demo import conf, evidence, order_file, power, tasks
from project.demo.models import ImportRun, Order
from project.demo.round import Round
from project.demo.seeding import order_file_of
from tests.platform import attempt, drain, fresh, hurry

pytestmark = pytest.mark.django_db

ROUND = Round(seed=7, orders=50, charges=10, receipts=4, taxes=0)


@pytest.fixture
def asked(monkeypatch):
    """The orders whose charge was asked for, instead of enqueuing it."""
    orders = []
    monkeypatch.setattr(tasks, "ask_for_payment", lambda order, **options: orders.append(order.number))
    return orders


@pytest.fixture
def run(tmp_path, monkeypatch, asked, sent):
    monkeypatch.setattr(conf, "ORDER_FILES", tmp_path)
    monkeypatch.setattr(tasks, "BATCH", 15)
    name = order_file_of(ROUND.number)
    order_file.write(tmp_path / name, ROUND.lines())
    return ImportRun.objects.create(file=name, rows=ROUND.orders)


@pytest.fixture
def job(run):
    """The import, asked for."""
    return tasks.ImportOrders.apply_async(kwargs={"run_id": run.pk, "tag": "round-1"}, metadata={"file": run.file})


def imported(run):
    """How many rows there are, how many were counted, and whether the run says that it is done."""
    run.refresh_from_db()
    return Order.objects.count(), run.cursor, run.done


def test_an_import_brings_in_every_order_of_the_file(run, job):
    drain()
    assert imported(run) == (ROUND.orders, ROUND.orders, True)
    assert fresh(job).result == '{"imported":50}'


def test_an_import_asks_for_the_charge_of_every_due_order(job, asked):
    drain()
    assert asked == [line.number for line in ROUND.charged()]


@pytest.fixture
def interrupted(run, job, monkeypatch):
    """An import whose process ended in its second batch, after that was written and before it was committed."""

    def cut(*, attempt, done, rows):
        if attempt == 1 and 2 * done > rows:
            raise SystemExit("the process ends here")

    monkeypatch.setattr(power, "cut_once", cut)
    attempt(job.id)
    return job


def test_an_interrupted_import_leaves_whole_batches_and_their_cursor(run, interrupted):
    assert fresh(interrupted).state == State.RETRYING
    assert imported(run) == (15, 15, False)


def test_an_import_resumes_behind_its_cursor_and_brings_in_each_row_once(run, interrupted):
    hurry()
    drain()
    assert fresh(interrupted).state == State.COMPLETED
    assert imported(run) == (ROUND.orders, ROUND.orders, True)


def test_a_charge_that_was_asked_for_in_a_batch_that_did_not_commit_is_asked_for_again(interrupted, asked):
    hurry()
    drain()
    due = [line.number for line in ROUND.charged()]
    assert sorted(set(asked)) == due


def test_the_evidence_says_that_the_import_was_resumed(interrupted):
    hurry()
    drain()
    said = "import of orders-01.csv: 1 power cut, 2 attempts, 50 rows, each brought in once"
    assert str(evidence.resumption(ROUND)) == said


def test_a_row_that_was_brought_in_twice_is_amiss(run, interrupted):
    hurry()
    drain()
    ImportRun.objects.filter(pk=run.pk).update(rows=60, cursor=51)
    findings = evidence.Findings()
    evidence.look_at_imports(findings, [ROUND])
    assert findings.amiss == ["imports: intended 50 rows, found: " + str(evidence.resumption(ROUND))]


def test_an_import_whose_power_was_never_cut_is_amiss_where_it_should_have_been(run, job, monkeypatch):
    monkeypatch.setattr(conf, "POWER_CUT", True)
    findings = evidence.Findings()
    evidence.look_at_imports(findings, [ROUND])
    assert findings.amiss == ["imports: the power was not cut during that of round-1"]


def test_the_power_is_cut_once_half_way_where_the_demo_asks_for_it(monkeypatch):
    killed = []
    monkeypatch.setattr(power.os, "kill", lambda pid, how: killed.append(how))
    power.cut_once(attempt=1, done=30, rows=50)
    monkeypatch.setattr(conf, "POWER_CUT", True)
    power.cut_once(attempt=1, done=20, rows=50)
    power.cut_once(attempt=2, done=30, rows=50)
    assert killed == []
    power.cut_once(attempt=1, done=30, rows=50)
    assert killed == [signal.SIGKILL]
