"""What each limit allows today, by whose word, how much of it is used, and by which jobs. Reads only."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from jobs import declared, lanes, lifecycle, standing
from jobs.limits import Bind, Concurrency, Kind, Limit, Numbers, Rate, binds, rule_of
from jobs.models import Allotment, Bucket, Lane, Slot

LOOKED = 5_000  # released jobs, and closed lanes, that are looked at for the keys that are in use


@dataclass(frozen=True, slots=True)
class Rule:
    """A limit as tasks declare it: under one template, which the same or several tasks may write."""

    kind: Kind
    name: str
    numbers: Numbers
    tasks: tuple[str, ...]
    by_function: bool = False
    templates: frozenset[str] = frozenset()

    @property
    def said(self) -> str:
        """What it allows, as a declaration would say it."""
        return as_said(self.kind, self.numbers)

    def makes(self, key: str) -> bool:
        """Whether this may be one of its keys; of a function's, nobody can say."""
        if self.by_function or key == self.name or key in self.templates:
            return True
        return "{" not in key and bool(_pattern(self.name, self.tasks).fullmatch(key))

    @property
    def plain(self) -> int:
        """How much of its keys is the same for all: of two that may make a key, the one with more of it did."""
        return -1 if self.by_function else len(re.sub(r"\{[^{}]*\}", "", self.name))


@dataclass(frozen=True, slots=True)
class Gauge:
    """One key: what it allows now, how much of that is used, and how many lanes wait for it."""

    bind: Bind
    numbers: Numbers
    used: int = 0  # slots
    left: float = 0.0  # tokens
    next_at: datetime | None = None  # when there is a whole token again
    lanes: int = 0

    @property
    def key(self) -> str:
        """Its name."""
        return self.bind.key

    @property
    def share(self) -> float:
        """How full it is: 1 when nothing is left."""
        if self.bind.kind is Kind.SLOTS:
            return self.used / self.numbers.amount
        return 1.0 - self.left / self.numbers.burst

    @property
    def full(self) -> bool:
        """Whether a job that needs it has to wait."""
        return self.used >= self.numbers.amount if self.bind.kind is Kind.SLOTS else self.next_at is not None

    @property
    def said(self) -> str:
        """How much is used, for people."""
        if self.bind.kind is Kind.SLOTS:
            return f"{self.used:,} of {self.numbers.amount:,g}"
        return f"{int(self.left + 1e-9):,} of {self.numbers.burst:,g} left"


def as_said(kind: str, numbers: Numbers) -> str:
    """Numbers as a declaration would say them.

    >>> as_said(Kind.SLOTS, Numbers(2, 2)), as_said(Kind.TOKENS, Numbers(2.0, 120)), as_said("tokens", Numbers(0.1, 3))
    ('2', '2/s, burst 120', '6/m, burst 3')
    """
    if kind != Kind.TOKENS.value:
        return f"{numbers.amount:g}"
    many, span = next(
        ((numbers.amount * seconds, span) for span, seconds in (("s", 1), ("m", 60), ("h", 3600))
         if abs(numbers.amount * seconds - round(numbers.amount * seconds)) < 1e-6 and numbers.amount * seconds > 0.5),
        (numbers.amount * 86400, "d"),
    )  # fmt: skip
    burst = f", burst {numbers.burst:g}" if abs(numbers.burst - max(1.0, many)) > 1e-6 else ""
    return f"{round(many, 3):g}/{span}{burst}"


def rules() -> list[Rule]:
    """What the tasks of the project declare, by kind and template; one that is a task's name is each task's own."""
    found: dict[tuple[Kind, str], list[tuple[str, str, Limit]]] = {}
    for name, task in declared.tasks().items():
        for limit in getattr(task, "limits", None) or ():
            if isinstance(limit, Concurrency | Rate):
                template = rule_of(name, limit)
                own = template.replace("{task}", name)
                shown = template if "{" in own or callable(limit.key) else own
                found.setdefault((limit.kind, shown), []).append((name, template, limit))
    return [
        Rule(
            kind, name, min(limit.numbers for _, _, limit in by), tuple(dict.fromkeys(task for task, _, _ in by)),
            any(callable(limit.key) for _, _, limit in by), frozenset(template for _, template, _ in by),
        )
        for (kind, name), by in sorted(found.items(), key=lambda item: (item[0][1], item[0][0]))
    ]  # fmt: skip


def rule(kind: str, name: str) -> Rule | None:
    """The rule of this template, None where no task declares it."""
    return next((rule for rule in rules() if rule.kind == kind and rule.name == name), None)


def rules_of(kind: str, key: str) -> list[Rule]:
    """The rules that may make this key, the likeliest first."""
    found = (rule for rule in rules() if rule.kind == kind and rule.makes(key))
    return sorted(found, key=lambda rule: (rule.name != key, -rule.plain))


def said(kind: str, name: str) -> Allotment | None:
    """What an operator said of this name."""
    return Allotment.objects.using(lifecycle.alias()).filter(kind=kind, name=name).first()


# --- Which keys are in use --------------------------------------------------------------------------


def in_use() -> list[Gauge]:
    """The keys that released jobs have slots of, or that somebody waits for; the fullest first.

    It looks at the newest of the released jobs and at the first of the closed lanes, ``LOOKED`` of each.
    """
    known = {bind: 0 for bound in _bounds_in_flight() for bind in binds(bound)}
    known.update(_waited_for())
    return sorted(_read(known), key=lambda gauge: (-gauge.share, -gauge.lanes, gauge.bind.name))


def of(wanted: Iterable[Bind]) -> list[Gauge]:
    """How full these keys are, in this order."""
    return _read(dict.fromkeys(wanted, 0))


def of_key(kind: str, key: str) -> Gauge:
    """How full one key is."""
    bind = _known_bind(kind, key)
    waiting = Lane.objects.using(lifecycle.alias()).filter(waits_on=bind.name).order_by()
    return _read({bind: len(waiting.values_list("pk", flat=True)[:LOOKED])})[0]


def of_names(names: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Gauge]:
    """How full the keys are of which an operator said something, by kind and name."""
    wanted = {Bind(Kind(kind), name, name, Numbers(1.0, 1.0)): (kind, name) for kind, name in names}
    return {wanted[gauge.bind]: gauge for gauge in of(wanted)}


def holders(key: str, most: int) -> list[tuple[UUID, str, str]]:
    """The jobs that have slots of a key: id, task and state; those first that have had them for longest."""
    rows = _all(
        "SELECT k.id, k.task, k.state FROM jobs_slot JOIN jobs_job k ON k.id = jobs_slot.job_id "
        f"WHERE jobs_slot.key = %s AND {lanes.counts()} ORDER BY jobs_slot.id LIMIT {int(most)}",
        [key],
    )
    return [(UUID(str(job_id)), task, state) for job_id, task, state in rows]


def _read(keys: Mapping[Bind, int]) -> list[Gauge]:
    """What these keys allow and have left, with the lanes that wait for each; those of circuits are not asked for."""
    known = {bind: waiting for bind, waiting in keys.items() if bind.kind is not Kind.CIRCUIT}
    looking = lanes.Release(0)
    looking.learn(known)
    ended = _ended({bind.key for bind in known if bind.kind is Kind.SLOTS})
    gauges = []
    for bind, waiting in known.items():
        numbers = looking.in_force(bind)
        if bind.kind is Kind.SLOTS:
            used = looking.allowance.used[bind.key] - ended.get(bind.key, 0)
            gauges.append(Gauge(bind, numbers, used=max(0, used), lanes=waiting))
        else:
            closed = looking.allowance.refusal([bind])
            left = looking.allowance.left(bind)
            gauges.append(Gauge(bind, numbers, left=left, next_at=closed.until if closed else None, lanes=waiting))
    return gauges


def _ended(keys: set[str]) -> dict[str, int]:
    """Slots of jobs that have ended, which the next release gives up."""
    if not keys:
        return {}
    rows = _all(f"SELECT key FROM jobs_slot WHERE NOT (key = '') AND NOT ({lanes.counts()}) LIMIT {LOOKED}")
    return Counter(key for (key,) in rows if key in keys)


def _bounds_in_flight() -> set[str]:
    rows = _all(
        "SELECT j.bound FROM jobs_slot s JOIN jobs_job j ON j.id = s.job_id "
        f"WHERE s.key = '' ORDER BY s.id DESC LIMIT {LOOKED}"
    )
    return {bound for (bound,) in rows if bound}


def _waited_for() -> dict[Bind, int]:
    """The keys that lanes wait for, and how many do."""
    rows = _all(
        "SELECT x.waits_on, COUNT(*), MIN(x.bound) FROM (SELECT waits_on, bound FROM jobs_lane "
        f"WHERE NOT (waits_on = '') LIMIT {LOOKED}) x GROUP BY x.waits_on"
    )
    found = {}
    for name, many, bound in rows:
        for bind in (*binds(bound), *filter(None, [standing.named(name)])):
            if bind.name == name:
                found[bind] = int(many)
    return found


def _known_bind(kind: str, key: str) -> Bind:
    """The key with the rule that made it, as far as a job tells; else by the form of the key."""
    name = f"{kind} {key}"
    rows = Lane.objects.using(lifecycle.alias()).filter(waits_on=name)
    bounds: list[str] = list(rows.values_list("bound", flat=True)[:1])
    slots = Slot.objects.using(lifecycle.alias()).filter(key=key).order_by("pk").values_list("job_id", flat=True)[:1]
    bounds += [text for (text,) in _all(
        "SELECT bound FROM jobs_job WHERE id = %s", [lifecycle.prepared("id", slots[0])]
    )] if slots else []  # fmt: skip
    for bound in bounds:
        for bind in binds(bound):
            if bind.name == name:
                return bind
    made_by = next(iter(rules_of(kind, key)), None)
    if made_by is not None:
        return Bind(Kind(kind), key, made_by.name, made_by.numbers)
    said_so = said(kind, key)
    return Bind(Kind(kind), key, key, Numbers(said_so.amount, said_so.burst) if said_so else Numbers(1.0, 1.0))


def exists(kind: str, key: str) -> bool:
    """Whether a key is in use just now: by a job that has a slot, or has taken a token, or waits for one."""
    alias = lifecycle.alias()
    if Lane.objects.using(alias).filter(waits_on=f"{kind} {key}").exists():
        return True
    if kind == Kind.SLOTS.value:
        return Slot.objects.using(alias).filter(key=key).exists()
    return Bucket.objects.using(alias).filter(key=key).exists()


def _pattern(template: str, tasks: Iterable[str]) -> re.Pattern[str]:
    """What the keys of a template look like; of a task or a queue it is known which there are."""
    places = {"task": tasks, "queue": declared.queues()}
    parts = []
    for text, field, _, _ in string.Formatter().parse(template):
        known = "|".join(re.escape(name) for name in places.get(field or "", ()))
        parts += [re.escape(text), "" if field is None else f"({known or '.+'})"]
    return re.compile("".join(parts), re.DOTALL)


def _all(sql: str, parameters: Iterable[Any] = ()) -> list[Any]:
    with lifecycle.database().cursor() as cursor:
        cursor.execute(sql, list(parameters))
        return list(cursor.fetchall())
