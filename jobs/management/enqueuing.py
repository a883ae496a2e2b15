"""``manage.py jobs enqueue``: the lines of a file become jobs."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from codecs import BOM_UTF8
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from django.core.management.base import CommandError

from jobs import audit, bulk, declared
from jobs.bulk import Enqueued, Item
from jobs.errors import JobsError, PayloadError
from jobs.management import arguments
from jobs.management.refusals import REFUSED, mistaken, one_line
from jobs.management.rendering import counting
from jobs.management.verbs import Verb, numbered
from jobs.payload import Payload, from_json

STDIN = "-"
LONGEST = 16 * 1024 * 1024  # bytes of a line
_ENVELOPE = {"args", "kwargs", "key"}
_OPTIONS = ("queue", "priority", "tenant", "countdown", "expires", "correlation_id", "key")


class Enqueue(Verb):
    """Enqueue in bulk from a file."""

    name = "enqueue"
    help = "enqueue a job for each line of a file"
    about = (
        "Enqueue a job of one task for each line of a file in JSON Lines. A line is a list of arguments, an object\n"
        'of them by name, or {"args": [...], "kwargs": {...}, "key": "..."}; anything else is the only argument.\n'
        "A thousand lines are committed at a time. A line that is wrong ends it, and the answer says which lines\n"
        "are enqueued and how to go on."
    )
    examples = (
        "jobs enqueue SendLetter --from letters.jsonl",
        "jobs enqueue shop.tasks.SendLetter --from letters.jsonl --dry-run",
        "jobs enqueue SendLetter --from - --queue mail --priority low --tag spring --key 'letter:{customer_id}'",
        "jobs enqueue SendLetter --from letters.jsonl --start 2001",
    )

    @classmethod
    def arguments(cls, parser: ArgumentParser) -> None:
        """A task, a file, options of all jobs."""
        parser.add_argument("task", help="the task: SendLetter, or shop.tasks.SendLetter")
        parser.add_argument(
            "--from", dest="source", required=True, metavar="FILE", help="the file; - is the standard input"
        )
        parser.add_argument("--start", type=arguments.count, default=1, metavar="LINE", help="the first line to take")
        parser.add_argument("--dry-run", action="store_true", help="check all lines, and enqueue nothing")
        group = parser.add_argument_group("what all jobs have alike")
        group.add_argument("--queue", help="their queue (default: that of the task)")
        group.add_argument("--priority", type=arguments.priority, help="critical, high, normal or low")
        group.add_argument("--tag", action="append", help="a tag that they carry; may be repeated")
        group.add_argument("--tenant", help="whose jobs")
        group.add_argument("--key", help="how their keys are made, as in letter:{customer_id}")
        group.add_argument("--correlation-id", help="what they belong to (default: each to itself)")
        group.add_argument("--countdown", type=arguments.age, metavar="AGE", help="due after an age: 30m, 2h")
        group.add_argument("--expires", type=arguments.age, metavar="AGE", help="cancelled if not begun after an age")
        arguments.add_signature(parser)

    def run(self) -> None:
        """Read, enqueue, tell."""
        task = declared.task_named(self.given["task"])
        options = {**self.chosen(*_OPTIONS), **({"tags": self.given["tag"]} if self.given["tag"] else {})}
        with self.opened() as file:
            lines = Lines(file, self.given["start"])
            if self.given["dry_run"]:
                self._check(task, lines, options)
            else:
                self._enqueue(task, lines, options)

    @contextmanager
    def opened(self) -> Iterator[BinaryIO]:
        """The file, or the standard input."""
        source = self.given["source"]
        if source == STDIN and sys.stdin is None:
            raise mistaken("The standard input is closed.")
        try:
            with nullcontext(sys.stdin.buffer) if source == STDIN else Path(source).open("rb") as file:
                yield file
        except OSError as error:
            raise mistaken(f"{source} cannot be read: {error.strerror or error}.") from error

    def _check(self, task: str, lines: Lines, options: dict[str, Any]) -> None:
        try:
            count = bulk.check(task, lines.items(), **options)
        except JobsError as error:
            raise self._refused(lines, error, "Nothing was to be enqueued.") from error
        if self.given["json"]:
            self.paper.json({"task": task, "lines": count, "dry_run": True})
        else:
            self.paper.line(f"{numbered(count, 'job')} of {task} would be enqueued.")

    def _enqueue(self, task: str, lines: Lines, options: dict[str, Any]) -> None:
        done = Enqueued()
        try:
            with counting(self.err, "enqueued", self._total()) as tell:
                bulk.bulk(task, lines.items(), into=done, progress=tell, **options)
        except JobsError as error:
            raise self._refused(lines, error, self._how_far(lines, done)) from error
        except KeyboardInterrupt:
            raise CommandError(f"Stopped. {self._how_far(lines, done)}", returncode=130) from None
        finally:
            if len(done):
                self._keep_on_record(task, done)
        self._tell(task, done)

    def _total(self) -> int | None:
        """How many lines there are to take, where that can be known before they are read."""
        source = self.given["source"]
        if source == STDIN or not Path(source).is_file():
            return None
        with Path(source).open("rb") as file:
            lines = sum(1 for line in _pieces(file) if line.strip())
        return max(0, lines - int(self.given["start"]) + 1)

    def _refused(self, lines: Lines, error: JobsError, how_far: str) -> CommandError:
        if error.item is None and not isinstance(error, _Unreadable):
            raise error
        said = error.__cause__ if error.item is not None and error.__cause__ is not None else error
        where = "the standard input" if self.given["source"] == STDIN else self.given["source"]
        return CommandError(f"{where}, line {lines.number:,}: {one_line(said)} {how_far}", returncode=REFUSED)

    def _how_far(self, lines: Lines, done: Enqueued) -> str:
        if not len(done):
            return "Nothing is enqueued."
        after = lines.after(len(done))
        return f"The lines before line {after:,} are enqueued; to go on from there: --start {after}"

    def _keep_on_record(self, task: str, done: Enqueued) -> None:
        audit.record_act(
            "enqueue",
            self.by,
            task,
            reason=self.given["reason"],
            inserted=done.inserted,
            duplicates=len(done.duplicates),
        )

    def _tell(self, task: str, done: Enqueued) -> None:
        if self.given["json"]:
            ends = {"first": str(done.ids[0]), "last": str(done.ids[-1])} if len(done) else {}
            self.paper.json(
                {
                    "task": task,
                    "lines": len(done),
                    "enqueued": done.inserted,
                    "duplicates": len(done.duplicates),
                    **ends,
                }
            )
            return
        taken = f" {numbered(len(done.duplicates), 'line')} had a key that was taken." if done.duplicates else ""
        self.paper.line(f"{numbered(done.inserted, 'job')} of {task} enqueued.{taken}")


class _Unreadable(PayloadError):
    """A line that is not JSON."""


class Lines:
    """The lines of a file as items, and where each began."""

    def __init__(self, file: BinaryIO, start: int) -> None:
        self._file, self._start = file, start
        self.number = 0
        self._blank: list[int] = []

    def items(self) -> Iterator[Item]:
        """What each line stands for; blank lines are left out."""
        whole = True
        for line in _pieces(self._file):
            self.number += whole  # what goes on with a line that is too long is no line of its own
            whole = line.endswith(b"\n")
            if self.number < self._start:
                continue
            if len(line) >= LONGEST and not whole:
                raise _Unreadable(f"It is longer than {LONGEST:,} bytes. Pass the id of a record instead.")
            if self.number == 1:
                line = line.removeprefix(BOM_UTF8)
            if not line.strip():
                self._blank.append(self.number)
                continue
            yield _item(line)

    def after(self, items: int) -> int:
        """The number of the line that follows so many items."""
        number = self._start + items
        for blank in self._blank:
            number += blank < number
        return number


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    """The lines of a file; those that are too long in pieces, so that none of them fills the memory."""
    return iter(partial(file.readline, LONGEST), b"")


def _item(line: bytes) -> Item:
    try:
        value = from_json(line.decode())
    except (ValueError, RecursionError) as error:
        raise _Unreadable(f"This is not JSON: {error}.") from None
    if isinstance(value, dict) and set(value) <= _ENVELOPE and {"args", "kwargs"} & set(value):
        args, kwargs = value.get("args", []), value.get("kwargs", {})
        if not isinstance(args, list) or not isinstance(kwargs, dict):
            raise _Unreadable('Here "args" is not a list, or "kwargs" not an object.')
        return Item(Payload(tuple(args), kwargs), key=value.get("key"))
    return Item(value)
