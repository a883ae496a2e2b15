"""Asking the payment gateway for money. Errors stay httpx's own: their status says whether to try again."""

from decimal import Decimal

import httpx

from project.demo import conf


def charge(*, order: str, amount: Decimal, currency: str, token: str) -> str:
    """Charge an order, at most once per token; return the gateway's reference.

    Raises ``httpx.HTTPStatusError`` when the gateway says no, ``httpx.TransportError`` when nobody knows.
    """
    answer = httpx.post(
        f"{conf.GATEWAY_URL}/charges",
        json={"order": order, "amount": str(amount), "currency": currency},
        headers={"Idempotency-Key": token},
        timeout=conf.GATEWAY_TIMEOUT,
        trust_env=False,
    )
    answer.raise_for_status()
    reference: str = answer.json()["reference"]
    return reference
