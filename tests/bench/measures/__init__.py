"""The measures, one module each: ``cases(options, systems)`` says what is to be taken, ``take`` takes it once."""

from __future__ import annotations

from types import MappingProxyType

from tests.bench.measures import bulk, drain, enqueue, flood, limits, pickup, release

MEASURES = MappingProxyType({
    "enqueue": enqueue, "bulk": bulk, "drain": drain, "pickup": pickup, "release": release, "limits": limits,
    "flood": flood,
})  # fmt: skip
