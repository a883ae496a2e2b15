"""What bodies do and what callers asked for, as lines in append-only files outside of the system under test."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NOBODY = "-"


def clock_offset() -> int:
    """What turns this machine's monotonic clock into the time of day, in nanoseconds; asked once per run."""
    return time.time_ns() - time.monotonic_ns()


def now() -> int:
    """The time of day in nanoseconds, also in a process to which somebody lies about it."""
    return time.monotonic_ns() + int(os.environ.get("CHAOS_CLOCK") or clock_offset())


def append(path: Path | str, line: str) -> None:
    """Add a line with one write, so that those of many processes do not mix."""
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        os.write(handle, line.encode() + b"\n")
    finally:
        os.close(handle)


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the ledger: what a body did, in which attempt, where and when."""

    what: str
    number: int
    job: str
    attempt: int
    pid: int
    token: str
    at: int

    def __str__(self) -> str:
        return f"{self.what} {self.number} {self.job} {self.attempt} {self.pid} {self.token} {self.at}"


def read_lines(path: Path) -> list[Line]:
    """The ledger, in the order of time. A torn last line (its writer was killed) is left out."""
    return Reader(path).lines()


class Reader:
    """Reads a ledger that grows: each time only what is new."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read = 0
        self._lines: list[Line] = []

    def lines(self) -> list[Line]:
        """All lines so far, in the order of time."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            file.seek(self._read)
            whole, newline, _ = file.read().rpartition(b"\n")
        if newline:
            self._read += len(whole) + 1
            new = [line for text in whole.decode(errors="replace").split("\n") if (line := _line(text)) is not None]
            self._lines = sorted([*self._lines, *new], key=lambda line: line.at)
        return self._lines


def _line(text: str) -> Line | None:
    words = text.split(" ")
    if len(words) != 7:
        return None
    what, number, job, attempt, pid, token, at = words
    return Line(what, int(number), job, int(attempt), int(pid), token, int(at))


def whole_lines(path: Path) -> Iterator[str]:
    """The lines of a file that end as lines do."""
    if path.exists():
        yield from path.read_bytes().decode(errors="replace").split("\n")[:-1]


@dataclass(slots=True)
class Run:
    """One execution of a body: what one process did between a ``begin`` and the next one of that job."""

    number: int
    job: str
    attempt: int
    pid: int
    token: str
    began: int
    last: int
    ended: int | None = None


def runs(lines: list[Line]) -> list[Run]:
    """The executions of bodies that a ledger shows, in the order in which they began."""
    found: list[Run] = []
    open_runs: dict[tuple[int, str, int, int], Run] = {}
    for line in lines:
        where = (line.number, line.job, line.pid, line.attempt)
        if line.what == "begin":
            open_runs[where] = Run(line.number, line.job, line.attempt, line.pid, line.token, line.at, line.at)
            found.append(open_runs[where])
        elif run := open_runs.get(where):
            run.last = line.at
            if line.what == "end":
                run.ended = line.at
    return found


@dataclass(slots=True)
class Asked:
    """One job that was asked for: by its number, and what became of the call.

    It is due only once the jobs ``after`` which it comes have ended as ``when`` says. Its ``effect`` is the ``end`` in
    the ledger, or a ``row`` in the database.
    """

    number: int
    kind: str
    expects: str
    after: tuple[int, ...] = ()
    when: str = "completed"
    effect: str = "end"
    accepted: bool = False
    job: str = ""
    refused: str = ""
    took: float = 0.0
    in_transaction: bool = False
    at: int = 0  # when the call began


@dataclass(slots=True)
class Intake:
    """All that was asked for, by number."""

    asked: dict[int, Asked] = field(default_factory=dict)
    cancelled: set[int] = field(default_factory=set)


def write_intake(path: Path | str, **entry: Any) -> None:
    """Add an entry to the intake."""
    append(path, json.dumps(entry))


def read_intake(path: Path) -> Intake:
    """Everything that was asked for, and the answers."""
    intake = Intake()
    for text in whole_lines(path):
        entry = json.loads(text)
        event = entry.pop("event")
        if event == "ask":
            entry["after"] = tuple(entry.get("after", ()))
            intake.asked[entry["number"]] = Asked(**entry)
        elif event == "cancel":
            intake.cancelled.add(entry["number"])
        elif event == "expect":
            intake.asked[entry["number"]].expects = entry["expects"]
        else:
            asked = intake.asked[entry["number"]]
            asked.accepted = event == "accepted"
            asked.job, asked.refused, asked.took = entry.get("job", ""), entry.get("error", ""), entry.get("took", 0.0)
    return intake
