"""Commands called as on a command line, without a process: what they print, and how they end."""

import json
from dataclasses import dataclass
from io import StringIO
from typing import Any

from django.core.management import call_command
from django.core.management.base import CommandError


class Terminal(StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@dataclass(frozen=True)
class Answer:
    """What a command said, and its exit code."""

    out: str
    err: str
    code: int

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


def run(*words: object, terminal: bool = False) -> Answer:
    """Call a command; a refusal is the last line of ``err``."""
    out, err = (Terminal(), Terminal()) if terminal else (StringIO(), StringIO())
    code = 0
    try:
        call_command(*map(str, words), stdout=out, stderr=err, no_color=not terminal)
    except CommandError as refusal:
        err.write(f"{refusal}\n")
        code = refusal.returncode
    return Answer(out.getvalue(), err.getvalue(), code)
