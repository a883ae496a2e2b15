"""The letterbox of a worker: a child reads what was written for it, whole, or nothing."""

from __future__ import annotations

import os
import struct
import threading
import time
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest

from jobs.letterbox import PLACES, SIZE, Letterbox

ROW = (uuid4(), "running", None, 3, datetime(2026, 1, 2, tzinfo=UTC), '{"a": 1}')


@pytest.fixture
def box() -> Letterbox:
    """An empty box."""
    return Letterbox()


def test_a_letter_is_read_by_who_has_its_token(box: Letterbox) -> None:
    place, token = box.place(), uuid4()
    box.post(place, token, ROW)
    assert box.wait(place, token, 0) == ROW
    assert box.wait(place, uuid4(), 0) is None


@pytest.mark.parametrize("written", [16, 20, 24])
def test_a_letter_whose_head_is_half_written_is_not_read(box: Letterbox, written: int) -> None:
    place, token = box.place(), uuid4()
    box._memory[place * SIZE : place * SIZE + 24] = (token.bytes + struct.pack("=II", 0, 0))[:written].ljust(24, b"\0")
    assert box.wait(place, token, 0) is None
    box.post(place, token, ROW)
    assert box.wait(place, token, 0) == ROW


def test_a_letter_that_says_that_there_is_no_claim_ends_the_wait(box: Letterbox) -> None:
    place, token = box.place(), uuid4()
    box.post(place, token, None)
    began = time.monotonic()
    assert box.wait(place, token, 5) is None
    assert time.monotonic() - began < 1


def test_what_is_too_long_for_a_letter_ends_the_wait_too(box: Letterbox) -> None:
    place, token = box.place(), uuid4()
    box.post(place, token, ("x" * SIZE,))
    began = time.monotonic()
    assert box.wait(place, token, 5) is None
    assert time.monotonic() - began < 1


def test_a_letter_is_awaited(box: Letterbox) -> None:
    place, token = box.place(), uuid4()
    later = threading.Timer(0.05, box.post, [place, token, ROW])
    later.start()
    assert box.wait(place, token, 5) == ROW
    later.join()


def test_who_waits_in_vain_goes_on(box: Letterbox) -> None:
    assert box.wait(box.place(), uuid4(), 0.01) is None


def test_a_letter_that_is_half_written_is_not_read(box: Letterbox) -> None:
    place, token = box.place(), uuid4()
    box.post(place, token, ROW)
    box._memory[place * SIZE + 30] ^= 0xFF
    assert box.wait(place, token, 0.01) is None
    struct.pack_into("=I", box._memory, place * SIZE + 16, SIZE)
    assert box.wait(place, token, 0.01) is None


def test_letters_lie_beside_each_other(box: Letterbox) -> None:
    tokens: dict[int, Any] = {}
    for number in range(PLACES):
        place = box.place()
        tokens[place] = (uuid4(), number)
        box.post(place, tokens[place][0], (number, "x" * (SIZE // 2)))
    assert [box.wait(place, token, 0) for place, (token, _) in tokens.items()] == [
        (number, "x" * (SIZE // 2)) for _, number in tokens.values()
    ]


def test_a_child_reads_what_its_parent_writes_after_the_fork(box: Letterbox) -> None:
    place, token = box.place(), uuid4()
    pid = os.fork()
    if pid == 0:
        os._exit(0 if box.wait(place, token, 5) == ROW else 1)
    box.post(place, token, ROW)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
