"""Identifiers: UUIDs of version 7, in the order of time."""

import time
from uuid import RFC_4122

from jobs.ids import new_id


def test_an_id_is_a_uuid_of_version_7():
    made = new_id()
    assert (made.version, made.variant) == (7, RFC_4122)


def test_ids_of_later_milliseconds_sort_later(monkeypatch):
    moments = iter(range(1_000_000_000, 1_100_000_000, 1_000_000))
    monkeypatch.setattr(time, "time_ns", lambda: next(moments))
    made = [new_id() for _ in range(100)]
    assert made == sorted(made)


def test_ids_of_one_millisecond_sort_by_its_fraction(monkeypatch):
    moments = iter([1_000_000_000, 1_000_250_000, 1_000_500_000, 1_000_999_999])
    monkeypatch.setattr(time, "time_ns", lambda: next(moments))
    made = [new_id() for _ in range(4)]
    assert made == sorted(made)


def test_an_id_tells_its_millisecond(monkeypatch):
    monkeypatch.setattr(time, "time_ns", lambda: 1_700_000_000_123_456_789)
    assert new_id().int >> 80 == 1_700_000_000_123


def test_ids_of_the_same_instant_differ(monkeypatch):
    monkeypatch.setattr(time, "time_ns", lambda: 1_000_000_000)
    assert len({new_id() for _ in range(10_000)}) == 10_000
