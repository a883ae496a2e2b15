"""Asking the parcel service where a parcel is: an API that may not be asked more often than its contract says."""

from __future__ import annotations

from collections.abc import Iterable

import httpx

from project.demo import conf

ALLOWED = "2/s"
PER_SECOND = 2
BURST = 2
# Starts follow the releases of a limit by a moment, which on a busy machine may bring some of them together.
BLUR = 5


def state_of(parcel: str) -> str:
    """Where a parcel is."""
    answer = httpx.get(f"{conf.GATEWAY_URL}/parcels/{parcel}", timeout=conf.GATEWAY_TIMEOUT, trust_env=False)
    answer.raise_for_status()
    state: str = answer.json()["state"]
    return state


def busiest_second(moments: Iterable[float]) -> int:
    """How many there were in the second that had most.

    >>> busiest_second([0.0, 0.5, 0.9, 1.2, 5.0])
    3
    """
    most, window = 0, list[float]()
    for moment in sorted(moments):
        window = [earlier for earlier in window if earlier > moment - 1] + [moment]
        most = max(most, len(window))
    return most
