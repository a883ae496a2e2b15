"""Letters from a worker's main process to its children: a claim that was still on its way when its job was handed out.

The memory is shared by those that were forked after it was made. A letter is known by the token of its claim; who does
not find one in time asks the database, which has the same answer.
"""

from __future__ import annotations

import mmap
import pickle
import struct
import time
import zlib
from typing import Any
from uuid import UUID

PLACES = 16  # letters that are kept; one is awaited for a few milliseconds
SIZE = 65_536  # bytes of a place
LOOK_EVERY = 0.00005  # seconds

_HEAD = struct.Struct("=16sII")  # the token, the length of the row, a checksum of both: it may be read half written

Row = tuple[Any, ...]


class Letterbox:
    """Places for letters, used in turn."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, PLACES * SIZE)
        self._last = -1

    def place(self) -> int:
        """Where the next letter will lie."""
        self._last = (self._last + 1) % PLACES
        return self._last

    def post(self, place: int, token: UUID, row: Row | None) -> None:
        """Write that a claim was made, and its row; or that the child must ask for itself."""
        content = pickle.dumps(row, pickle.HIGHEST_PROTOCOL)
        if len(content) > SIZE - _HEAD.size:
            content = pickle.dumps(None)
        start = place * SIZE
        self._memory[start + _HEAD.size : start + _HEAD.size + len(content)] = content
        # Not pack_into, which writes zeros first: the checksum of nothing is 0 too.
        self._memory[start : start + _HEAD.size] = _HEAD.pack(token.bytes, len(content), _checksum(token, content))

    def wait(self, place: int, token: UUID, seconds: float) -> Row | None:
        """The row of a claim; None where it was not made, is too long for a letter, or is not known in time."""
        until = time.monotonic() + seconds
        while True:
            found = self._read(place, token)
            if found is not None:
                row: Row | None = pickle.loads(found)  # noqa: S301 (from our own parent)
                return row
            if time.monotonic() > until:
                return None
            time.sleep(LOOK_EVERY)

    def _read(self, place: int, token: UUID) -> bytes | None:
        start = place * SIZE
        known, length, checksum = _HEAD.unpack_from(self._memory, start)
        if known != token.bytes or length > SIZE - _HEAD.size:
            return None
        content = self._memory[start + _HEAD.size : start + _HEAD.size + length]
        return content if _checksum(token, content) == checksum else None


def _checksum(token: UUID, content: bytes) -> int:
    return zlib.crc32(content, zlib.crc32(token.bytes))


_box: Letterbox | None = None


def make() -> None:
    """Make the box of this process and of those that it forks from now on."""
    global _box
    _box = Letterbox()


def made() -> Letterbox | None:
    """The box of this process, if there is one."""
    return _box
