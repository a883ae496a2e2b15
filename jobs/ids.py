"""Time-ordered identifiers (UUID version 7, RFC 9562). Time inside an id is for order, not for truth. Pure."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
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


def created_at(job_id: UUID) -> datetime | None:
    """When an id was made, by the clock of the host that made it; None for an id that does not say (version 4).

    >>> created_at(UUID("019aaa00-0000-7000-8000-000000000000")).year, created_at(UUID(int=4))
    (2025, None)
    """
    if job_id.version != 7:
        return None
    return datetime.fromtimestamp((job_id.int >> 80) / 1000, UTC)
