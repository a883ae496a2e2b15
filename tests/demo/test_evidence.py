"""The independent count: what is lost, what failed openly, and what is too much."""

from datetime import timedelta
from uuid import uuid4

import pytest
from django.utils import timezone

from jobs import control
from jobs.models import Job
from jobs.states import State
from project.demo import conf, evidence, tasks
from project.demo.models import Promise
from project.demo.round import SHOPS, Round
from project.demo.seeding import SUPPLIERS

pytestmark = pytest.mark.django_db

ORDER = "01-000001"


@pytest.fixture
def findings():
    return evidence.Findings()


def job_in(state, **fields):
    """A job row as it would stand in the database."""
    now = timezone.now()
    finished = {"finished_at": now} if state != State.PENDING else {}
    fields = {"task": "shop.charge", "payload": "{}", "queue": "payments", "max_attempts": 5} | fields
    return Job.objects.create(state=state, created_at=now, **finished, **fields)


def charge(**fields):
    return {"key": "k", "order": ORDER, "amount": "1.00", "currency": "EUR", "reference": "ch_1"} | fields


def test_a_promised_job_without_a_row_is_lost():
    Promise.objects.create(job_id=uuid4(), about="charge of order 01-000001")
    assert ["charge of order 01-000001" in line for line in evidence.vanished_jobs()] == [True]


def test_a_promised_job_with_a_row_is_not_lost():
    Promise.objects.create(job_id=job_in(State.PENDING).pk, about="a charge")
    assert evidence.vanished_jobs() == []


def test_an_effect_that_no_job_accounts_for_is_lost(findings):
    findings.compare("charged orders", [ORDER], [])
    assert (findings.lost, findings.amiss) == ([f"charged orders: missing {ORDER}"], [])


def test_an_effect_that_a_completed_job_should_have_had_is_lost(findings):
    job_in(State.COMPLETED, metadata={"order": ORDER})
    findings.compare("charged orders", [ORDER], [])
    assert len(findings.lost) == 1


@pytest.mark.parametrize("state", [State.FAILED, State.CANCELLED, State.PENDING])
def test_an_effect_that_a_job_openly_did_not_have_is_amiss_but_not_lost(findings, state):
    job_in(state, metadata={"order": ORDER})
    findings.compare("charged orders", [ORDER], [])
    assert (len(findings.lost), len(findings.amiss)) == (0, 1)


def test_a_missing_thumbnail_is_accounted_for_by_the_payload_of_its_failed_job(findings):
    job_in(State.FAILED, payload='{"kwargs": {"source": "01-bell-1.jpg"}}')
    findings.compare("thumbnails", ["small/01-bell-1.jpg"], [])
    assert findings.lost == []


def test_an_order_is_accounted_for_by_its_unfinished_import(findings):
    job_in(State.PENDING, metadata={"file": "orders-01.csv"})
    findings.compare("orders", [ORDER], [])
    assert findings.lost == []


def test_an_effect_that_nobody_intended_is_amiss(findings):
    findings.compare("charged orders", [], [ORDER])
    assert findings.amiss == [f"charged orders: not intended {ORDER}"]


def test_an_order_charged_under_two_keys_is_named_with_both():
    (sentence,) = evidence.charged_twice([charge(key="a"), charge(key="b", reference="ch_2")])
    assert sentence == f"order {ORDER} was charged 2 times: a, b"


def test_a_charge_that_the_shop_does_not_know_of_is_lost(findings):
    evidence.look_at_charges(findings, [], [charge()])
    assert f"payments: missing {ORDER} ch_1" in findings.lost


def test_a_kept_message_without_a_receipt_is_amiss(findings, tmp_path, monkeypatch):
    monkeypatch.setattr(conf, "MAILBOX", tmp_path)
    (tmp_path / "stray.eml").touch()
    evidence.look_at_mail(findings, [])
    assert findings.amiss == ["messages: not intended stray.eml"]


def test_a_round_of_which_nothing_was_done_is_wholly_lost(findings, tmp_path, monkeypatch):
    monkeypatch.setattr(conf, "MAILBOX", tmp_path)
    monkeypatch.setattr(conf, "PICTURES", tmp_path)
    monkeypatch.setattr(conf, "LEAFLETS", tmp_path)
    small = Round(seed=7, orders=9, charges=0, receipts=0, taxes=2, subscribers=3, products=2, pictures=2,
                  leaflets=2, parcels=2, supplies=2)  # fmt: skip
    found = evidence.gather([small], {"charges": []})
    # Orders, tax entries and subscribers; three readable thumbnails and one sheet, in the rows and on disk; three
    # leaflets and two parcels.
    assert len(found.lost) == 9 + 2 + 3 + 2 * (3 + 1) + 3 + 2


def leaflet(shop, number, started):
    """A leaflet whose body started so many seconds after now."""
    now = timezone.now()
    return job_in(
        State.COMPLETED, task=tasks.fold_leaflet.name, tenant=shop, key=f"leaflet:{shop}:{number}",
        started_at=now + timedelta(seconds=started),
    )  # fmt: skip


def looked_at(a_round, findings, tmp_path, monkeypatch):
    """What is said of the turns of a round whose files are all there."""
    monkeypatch.setattr(conf, "LEAFLETS", tmp_path)
    names = [f"{SHOPS[0]}-{n}" for n in a_round.leaflet_numbers()] + [f"{SHOPS[1]}-{a_round.lone_leaflet()}"]
    for name in names:
        (tmp_path / f"{name}.txt").touch()
    evidence.look_at_leaflets(findings, [a_round])
    return findings.lost, findings.amiss


@pytest.mark.parametrize(("before", "sentences"), [(evidence.SENT_BEFORE, 0), (evidence.SENT_BEFORE + 1, 1)])
def test_a_single_leaflet_that_waited_for_the_mailing_of_another_shop_is_amiss(
    findings, tmp_path, monkeypatch, before, sentences
):
    a_round = Round(seed=7, leaflets=before + 3)
    for index, number in enumerate(a_round.leaflet_numbers()):
        leaflet(SHOPS[0], number, started=index)
    leaflet(SHOPS[1], a_round.lone_leaflet(), started=before - 0.5)
    lost, amiss = looked_at(a_round, findings, tmp_path, monkeypatch)
    assert (lost, len(amiss)) == ([], sentences)


@pytest.mark.parametrize(("asked", "sentences"), [(9, 0), (10, 1)])
def test_a_service_that_was_asked_more_often_than_it_allows_is_amiss(findings, asked, sentences):
    a_round = Round(seed=7, parcels=asked)
    moments = [(parcel, index / 100) for index, parcel in enumerate(a_round.parcel_numbers())]
    evidence.look_at_parcels(findings, [a_round], moments)
    assert (findings.lost, len(findings.amiss)) == ([], sentences)


def test_an_order_that_started_while_its_queue_was_paused_is_amiss(findings):
    early = job_in(State.COMPLETED, task=tasks.order_supplies.name, started_at=timezone.now())
    control.pause(queue=SUPPLIERS, reason="he counts", by="test")
    control.resume(queue=SUPPLIERS, by="test")
    job_in(State.COMPLETED, task=tasks.order_supplies.name, started_at=timezone.now() + timedelta(seconds=1))
    evidence.look_at_supplies(findings)
    assert findings.amiss == [f"supplies: job {early.pk} started while its queue was paused"]
