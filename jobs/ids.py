"""Time-ordered identifiers (UUID version 7, RFC 9562). Time inside an id is for order, not for truth. Pure."""

from __future__ import annotations

import os
import time
from uuid import UUID


def new_id() -> UUID:
    """A new UUID version 7: 48 bits of milliseconds, 12 of their fraction, 62 of randomness.

    >>> new_id().version
    7
    """
    nanoseconds = time.time_ns()
    milliseconds, rest = divmod(nanoseconds, 1_000_000)
    fraction = rest * 4096 // 1_000_000
    random = int.from_bytes(os.urandom(8), "big") & ((1 << 62) - 1)
    return UUID(int=(milliseconds & ((1 << 48) - 1)) << 80 | 7 << 76 | fraction << 64 | 0b10 << 62 | random)
