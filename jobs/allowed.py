"""What the limits of the project's tasks allow, by the rule that makes their keys."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from jobs import declared, limits
from jobs.limits import Kind, Numbers


def in_code() -> dict[tuple[Kind, str], Numbers]:
    """What the limits of the project's tasks allow, by their rule; the smaller where two tasks differ.

    A rule whose keys name the task or the queue is not here where its tasks differ: they share no key by it, or need
    not, and each job keeps the numbers of its own.
    """
    tasks = declared.tasks()
    if len(tasks) != _in_code[0]:
        found: defaultdict[tuple[Kind, str], list[Numbers]] = defaultdict(list)
        for name, task in tasks.items():
            for limit in getattr(task, "limits", None) or ():
                if isinstance(limit, limits.Concurrency | limits.Rate):
                    found[limit.kind, limits.rule_of(name, limit)].append(limit.numbers)
        _in_code[:] = [len(tasks), {rule: min(all_) for rule, all_ in found.items() if not _apart(rule[1], all_)}]
    known: dict[tuple[Kind, str], Numbers] = _in_code[1]
    return known


def _apart(template: str, said: Sequence[Numbers]) -> bool:
    """Whether tasks say different numbers under a template whose keys are not the same for all of them."""
    return len(set(said)) > 1 and any(place in template for place in ("{task}", "{queue}"))


_in_code: list[Any] = [-1, {}]
