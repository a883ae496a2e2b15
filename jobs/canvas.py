"""What follows a job, as data: Celery's links and chains, kept with the row."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from celery.canvas import Signature, maybe_signature

from jobs import payload, publisher
from jobs.conf import current as settings
from jobs.errors import OptionError


def kept(options: dict[str, Any], name: str, *, held: bool = False) -> str:
    """What follows the job, as JSON; empty when nothing does.

    Of a job that is ``held`` for others, also what it was asked for beyond its payload: its key and its delay.
    """
    follows: dict[str, Any] = {
        "links": _listed(options.get("link")), "errors": _listed(options.get("link_error")),
        "chain": _listed(options.get("chain")),
    }  # fmt: skip
    if held:
        follows["held"] = {name: options[name] for name in ("key", "countdown", "eta") if options.get(name) is not None}
    if not any(follows.values()):
        return ""
    return payload.limit(payload.to_json(follows), int(settings().CANVAS_LIMIT), f"the canvas of {name}")


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    signatures = list(value) if isinstance(value, list | tuple) else [value]
    for one in signatures:
        if not isinstance(one, dict) or "task" not in one:
            raise OptionError(f"link, link_error and chain take signatures such as add.s(1), not {one!r}.")
    return signatures


def signature(content: Any) -> Any:
    """A signature of the app from what was kept of it."""
    return maybe_signature(content, app=publisher.in_use().app)


def is_signature(value: Any) -> bool:
    """Whether this is a signature, of whatever kind."""
    return isinstance(value, Signature)


def kind_of(signature: Any) -> str:
    """What a signature is a canvas of (``chain``, ``group``, ``chord``); empty for that of one task."""
    return str(signature.get("subtask_type") or "")


def ends(signatures: Any) -> Iterator[Any]:
    """The signatures with which a canvas ends: those that others wait for."""
    for end in map(signature, signatures):
        match end.get("subtask_type"):
            case "chord":
                yield from ends([end.body])
            case "group":
                yield from ends(end.tasks)
            case "chain":
                yield from ends(list(end.tasks)[-1:])
            case _:
                yield end
