"""Whether anything would obey a limit of a name: one that is mistyped would limit nothing, and nobody would notice."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from jobs import declared, gauges, standing
from jobs.limits import Kind

WHAT = {Kind.SLOTS.value: "jobs at a time", Kind.TOKENS.value: "starts in a span of time"}


def mistake(kind: str, name: str) -> str:
    """Why nothing would obey a limit of this name, and what would; empty where something may."""
    if gauges.rule(kind, name) or gauges.exists(kind, name) or gauges.said(kind, name):
        return ""
    if scope := standing.scope_of(name):
        return _no_such(*scope)
    other = next(each for each in WHAT if each != kind)
    if gauges.rule(other, name):
        return f"Tasks declare {name} as a limit of {WHAT[other]}, not of {WHAT[kind]}."
    if gauges.rules_of(kind, name):
        return ""
    names = [rule.name for rule in gauges.rules() if rule.kind == kind]
    if not names:
        return f"No task declares a limit of {WHAT[kind]}, so nothing would obey it. Declare one: limits=[…]."
    listed = ", ".join(names[:10]) + (" …" if len(names) > 10 else "")
    meant = _meant(name, names)
    return f"No task declares a limit with the key {name}, so nothing would obey it.{meant} There are: {listed}."


def _no_such(scope: str, of: str) -> str:
    """Why there are no jobs of a queue or a task, where that is known."""
    known = {"queue": declared.queues(), "task": declared.tasks()}.get(scope) or {of}
    if of in known:
        return ""
    ending = next((name for name in known if name.endswith(f".{of}")), None)
    return f"There is no {scope} {of}.{f' Did you mean {ending}?' if ending else _meant(of, known)}"


def _meant(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(names), n=1)
    return f" Did you mean {close[0]}?" if close else ""
