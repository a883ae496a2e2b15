"""The payment gateway of the demo, asked over real HTTP."""

import threading
from decimal import Decimal

import httpx
import pytest

from project.demo import conf, parcels, payments, plan
from project.demo.gateway import Gateway, Ledger
from project.demo.round import Round

SEED = conf.SEED


@pytest.fixture
def gateway(tmp_path, monkeypatch):
    server = Gateway(0, Ledger(SEED, tmp_path / "gateway.jsonl"), hang=30)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setattr(conf, "GATEWAY_URL", server.url)
    monkeypatch.setattr(conf, "GATEWAY_TIMEOUT", 0.5)
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def order_with(script):
    """An order of the default round that the gateway treats by a script."""
    return next(line.number for line in Round(seed=SEED).charged() if plan.gateway_script(SEED, line.number) == script)


def ask(order, token="token"):
    """What comes of asking for money once: a reference, a status or the name of an error."""
    try:
        return payments.charge(order=order, amount=Decimal("12.50"), currency="EUR", token=token)
    except httpx.HTTPStatusError as error:
        return error.response.status_code
    except httpx.TransportError as error:
        return type(error).__name__


@pytest.mark.parametrize(
    ("script", "failures"),
    [
        ("charges at once", []),
        ("busy twice", [503, 503]),
        ("too many once", [429]),
        ("broken once", [500]),
        ("resets once", ["ReadError"]),
        ("charges, then resets", ["ReadError"]),
        ("charges, then hangs", ["ReadTimeout"]),
    ],
)
def test_a_payable_order_is_charged_after_the_planned_failures(gateway, script, failures):
    order = order_with(script)
    *before, last = [ask(order) for _ in range(len(failures) + 1)]
    assert (before, str(last)[:3]) == (failures, "ch_")


@pytest.mark.parametrize(
    ("script", "status"), [("card refused", 402), ("unknown order", 404), ("broken for ever", 500)]
)
def test_an_order_that_cannot_be_paid_gets_the_same_answer_every_time(gateway, script, status):
    order = order_with(script)
    assert [ask(order) for _ in range(6)] == [status] * 6


def test_too_many_requests_come_with_a_time_to_wait(gateway):
    order = order_with("too many once")
    with pytest.raises(httpx.HTTPStatusError) as refused:
        payments.charge(order=order, amount=Decimal(1), currency="EUR", token="token")
    assert refused.value.response.headers["Retry-After"] == "1"


@pytest.mark.parametrize("script", ["charges at once", "charges, then resets", "charges, then hangs"])
def test_an_order_asked_about_again_under_one_key_is_charged_once(gateway, script):
    order = order_with(script)
    references = {answer for answer in (ask(order) for _ in range(3)) if str(answer).startswith("ch_")}
    charges = gateway.ledger.snapshot()["charges"]
    assert [references] == [{charge["reference"]} for charge in charges]


def test_the_ledger_shows_a_second_charge_under_another_key(gateway):
    order = order_with("charges at once")
    ask(order, token="one")
    ask(order, token="two")
    ledger = httpx.get(f"{gateway.url}/ledger", trust_env=False).json()
    assert [(charge["key"], charge["order"]) for charge in ledger["charges"]] == [
        ("one", order),
        ("two", order),
    ]


def test_an_order_that_cannot_be_paid_leaves_the_ledger_empty(gateway):
    ask(order_with("card refused"))
    assert gateway.ledger.snapshot()["charges"] == []


def test_a_restarted_gateway_remembers_what_it_charged_and_was_asked(gateway, tmp_path):
    ask(order_with("charges, then resets"))
    ask(order_with("busy twice"))
    assert Ledger(SEED, tmp_path / "gateway.jsonl").snapshot() == gateway.ledger.snapshot()


def test_a_request_without_an_idempotency_key_is_refused(gateway):
    answer = httpx.post(
        f"{gateway.url}/charges", json={"order": "1", "amount": "1", "currency": "EUR"}, trust_env=False
    )
    assert answer.status_code == 400


def test_the_parcel_service_says_where_a_parcel_is_and_when_it_was_asked(gateway):
    assert parcels.state_of("P01-007") == "on its way"
    ((parcel, _),) = httpx.get(f"{gateway.url}/ledger", trust_env=False).json()["looked_up"]
    assert parcel == "P01-007"
