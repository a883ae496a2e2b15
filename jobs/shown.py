"""What may be shown of a payload and its companions: pretty JSON and a call, with the secrets hidden."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from jobs import declared
from jobs.errors import JobsError, PayloadError
from jobs.masking import mask, mask_arguments, mask_text
from jobs.payload import Payload, decode, later, shorten, signature_of

MOST_SHOWN: Final = 20_000


@dataclass(frozen=True, slots=True)
class ShownPayload:
    """A payload for a page: as JSON, and as the call that would make it."""

    text: str
    call: str


def payload(task: str, text: str) -> ShownPayload:
    """A stored payload, as it may be shown."""
    names = parameters(task)
    return ShownPayload(pretty(masked_payload(text, names)), call(task, text, names))


def masked_payload(text: str, names: Sequence[str] = ()) -> Any:
    """A stored payload as plain JSON values with the secrets hidden."""
    content = loaded(text)
    if isinstance(content, str):
        return mask_text(content)
    if not isinstance(content, dict) or not isinstance(content.get("args", []), list):
        return mask(content)
    return {**mask(content), "args": mask_arguments(content.get("args", []), names)}


@cache
def parameters(task: str) -> tuple[str, ...]:
    """The parameters of a task's body, which name its positional arguments; none when the task is not known here."""
    try:
        body = declared.task(task)
    except JobsError:
        return ()
    return tuple(signature_of(body.run).parameters) if body is not None else ()


def call(task: str, text: str, names: Sequence[str] = ()) -> str:
    """The line of Python that would enqueue the same payload; empty when there is none."""
    try:
        given = decode(text)
    except PayloadError:
        return ""
    module, _, name = task.rpartition(".")
    line = f"{name}.delay({_arguments(given, names)})"
    return f"from {module} import {name}\n\n{line}" if module else line


def _arguments(given: Payload, names: Sequence[str]) -> str:
    positional = [_readable(value) for value in mask_arguments(given.args, names)]
    named = [f"{name}={_readable(value)}" for name, value in mask(given.kwargs).items()]
    line = ", ".join((*positional, *named))
    return line if len(line) <= 80 else "\n    " + ",\n    ".join((*positional, *named)) + ",\n"


def _readable(value: Any) -> str:
    """A value as Python writes it; what another job is still to give, in words."""
    return "<result of the job before>" if value == later() else shorten(repr(value))


def pretty(value: Any) -> str:
    """A value as indented JSON, cut where it gets too long to read."""
    text = value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False, default=str)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}\n… {len(text) - MOST_SHOWN:,} characters more"


def masked(text: str | None) -> str:
    """A stored JSON text, indented, with the secrets hidden; empty when there is nothing in it."""
    content = loaded(text or "")
    return pretty(mask(content)) if content not in (None, "", {}, []) else ""


def loaded(text: str) -> Any:
    """A JSON text's plain value, or the text itself when it is not JSON."""
    try:
        return json.loads(text)
    except ValueError:
        return text
