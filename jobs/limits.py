"""What a task declares of limits, and the keys by which they bind one job. Pure."""

from __future__ import annotations

import functools
import hashlib
import json
import re
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar, Final, NamedTuple, Protocol

from jobs.errors import DeclarationError, KeyCannotBeMade

KEY_LENGTH: Final = 200
LARGEST_CHUNK: Final = 1000  # jobs that one statement names
LONGEST_GATHERING: Final = 24 * 3600  # seconds
# What every key may name beside the parameters of the body.
PLACES: Final = ("task", "queue", "tenant")
NOBODY: Final = "(no tenant)"  # jobs without one count together
_QUEUE: Final = f"{chr(0xE000)}queue{chr(0xE000)}"  # until it is known to which queue a job goes
_SPANS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_RATE: Final = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*/\s*(s|m|h|d)\s*$")

LimitKey = str | Callable[..., str]


class Kind(StrEnum):
    """What a key counts."""

    SLOTS = "slots"  # jobs at a time
    TOKENS = "tokens"  # jobs in a span of time
    CIRCUIT = "circuit"  # failures
    CHUNK = "chunk"  # jobs that go together; it holds none back for long


@dataclass(frozen=True, slots=True)
class Concurrency:
    """At most ``limit`` jobs with this key at a time: ``Concurrency("customer:{customer_id}", 1)``."""

    kind: ClassVar[Kind] = Kind.SLOTS

    key: LimitKey
    limit: int = 1

    def __post_init__(self) -> None:
        if not _whole(self.limit):
            raise DeclarationError(
                f"Concurrency({self.key!r}, {self.limit!r}): say how many may run at a time, 1 or more. "
                "To let none run, pause the queue or the task."
            )

    @property
    def numbers(self) -> Numbers:
        """What it allows."""
        return Numbers(float(self.limit), float(self.limit))


@dataclass(frozen=True, slots=True)
class Rate:
    """At most so many starts in a span of time: ``Rate("gateway", "20/s")``, or with a burst: ``Rate(…, burst=50)``.

    The burst, as many as in one span where it is not given, may start at once after a quiet time.
    """

    kind: ClassVar[Kind] = Kind.TOKENS

    key: LimitKey
    rate: str
    burst: int | None = None

    def __post_init__(self) -> None:
        if not is_rate(self.rate):
            raise DeclarationError(
                f'Rate({self.key!r}, {self.rate!r}): say how many in which span: "20/s", "100/m", "5/h" or "1/d".'
            )
        if self.burst is not None and not _whole(self.burst):
            raise DeclarationError(
                f"Rate({self.key!r}, …, burst={self.burst!r}): a burst is a whole number, 1 or more."
            )

    @property
    def numbers(self) -> Numbers:
        """What it allows.

        >>> Rate("gateway", "120/m").numbers
        Numbers(amount=2.0, burst=120.0)
        """
        return rate_numbers(self.rate, self.burst)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def is_rate(value: object) -> bool:
    """Whether it says how many in which span."""
    found = _RATE.match(value) if isinstance(value, str) else None
    return found is not None and float(found[1]) > 0


class Numbers(NamedTuple):
    """What a limit allows: slots, or tokens in a second and the most that can be saved up."""

    amount: float
    burst: float


def rate_numbers(rate: str, burst: float | None = None) -> Numbers:
    """What a rate such as "20/s" allows. Raises ``ValueError`` for another text."""
    found = _RATE.match(rate)
    if found is None or not is_rate(rate):
        raise ValueError(f'A rate is written as "20/s", "100/m", "5/h" or "1/d", not {rate!r}.')
    many, span = float(found[1]), _SPANS[found[2]]
    return Numbers(many / span, max(1.0, float(burst or many)))


Limit = Concurrency | Rate


class Keyed(Protocol):
    """What binds jobs by a key."""

    kind: ClassVar[Kind]

    @property
    def key(self) -> LimitKey:
        """A template, or a function of the arguments."""

    @property
    def numbers(self) -> Numbers:
        """What it allows."""


@dataclass(frozen=True, slots=True)
class Gather:
    """Jobs with this key go together: ``size`` of them, or what there is after ``max_wait`` seconds."""

    kind: ClassVar[Kind] = Kind.CHUNK

    key: LimitKey
    size: int
    max_wait: float

    @property
    def numbers(self) -> Numbers:
        """What it gathers, and for how long."""
        return Numbers(float(self.size), float(self.max_wait))


class Bind(NamedTuple):
    """A key that binds one job: what it counts, the rule that made it, and what that allowed when it was made."""

    kind: Kind
    key: str
    rule: str
    numbers: Numbers

    @property
    def name(self) -> str:
        """The key, apart from those of the other kind."""
        return f"{self.kind.value} {self.key}"


def check_limits(name: str, limits: Any, parameters: Mapping[str, Any] | None) -> None:
    """Refuse limits that can never be kept: at declaration, with the remedy."""
    if isinstance(limits, Concurrency | Rate) or not isinstance(limits, Sequence) or isinstance(limits, str):
        raise DeclarationError(f'The limits of {name} must be a list, such as [Concurrency("x", 1)], not {limits!r}.')
    for limit in limits:
        if not isinstance(limit, Concurrency | Rate):
            raise DeclarationError(f"A limit of {name} must be a Concurrency or a Rate, not {limit!r}.")
        if not callable(limit.key):
            check_template(name, limit.key, parameters)
    rules = [(limit.kind, limit.key) for limit in limits]
    for twice in (rule for rule in rules if rules.count(rule) > 1):
        raise DeclarationError(f"{name} has two limits of one kind for the key {twice[1]!r}. Keep the smaller one.")


def check_template(name: str, key: Any, parameters: Mapping[str, Any] | None, what: str = "limit") -> None:
    """Refuse a template of keys that can never be filled in."""
    if not isinstance(key, str) or not key.strip():
        raise DeclarationError(
            f"The key of a {what} of {name} must be a text or a function, not {key!r}. For one {what} for all jobs of "
            'the task write "{task}".'
        )
    try:
        fields = [f.split(".")[0].split("[")[0] for _, f, _, _ in string.Formatter().parse(key) if f is not None]
    except ValueError as error:
        raise DeclarationError(f"The key {key!r} of a {what} of {name} is not a template: {error}.") from None
    if parameters is None or any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    missing = [field for field in fields if field not in parameters and field not in PLACES]
    if "" in missing:
        raise DeclarationError(
            f"The key {key!r} of a {what} of {name} has {{}} without a name. Write which parameter is meant: "
            f"{', '.join(f'{{{place}}}' for place in dict.fromkeys([*parameters, *PLACES]))}."
        )
    if missing:
        raise DeclarationError(
            f"The key {key!r} of a {what} of {name} uses {', '.join(missing)}, which its body does not take. "
            f"It may use: {', '.join(dict.fromkeys([*parameters, *PLACES]))}."
        )


def check_gather(name: str, gather: Gather, parameters: Mapping[str, Any] | None) -> None:
    """Refuse chunks that can never be formed: at declaration, with the remedy."""
    size: object = gather.size
    if not isinstance(size, int) or not _whole(size) or size > LARGEST_CHUNK:
        raise DeclarationError(
            f"The size of {name} is how many payloads one call gets at most: a whole number from 1 to "
            f"{LARGEST_CHUNK:,}, not {gather.size!r}."
        )
    wait: object = gather.max_wait
    if isinstance(wait, bool) or not isinstance(wait, int | float) or not 0 <= wait <= LONGEST_GATHERING:
        raise DeclarationError(
            f"The max_wait of {name} is for how many seconds a job waits for others at most: a number from 0 to "
            f"{LONGEST_GATHERING:,} (a day), not {wait!r}."
        )
    if not callable(gather.key):
        check_template(name, gather.key, parameters, "chunk")


def rule_of(name: str, limit: Keyed) -> str:
    """By what a declared limit is known: its template, or the function of its task."""
    return f"{name}:{getattr(limit.key, '__name__', 'key')}" if callable(limit.key) else limit.key


def bound(name: str, limits: Iterable[Keyed], arguments: Mapping[str, Any], tenant: str) -> str:
    """The keys that bind a job of these arguments, as its row keeps them; ``settle`` puts in its queue.

    >>> settle(bound("charge", [Concurrency("customer:{id}", 2)], {"id": 7}, ""), "default")
    '[["slots","customer:7","customer:{id}",2.0,2.0]]'
    """
    made = [
        [limit.kind.value, _key(name, limit, arguments, tenant), rule_of(name, limit), *limit.numbers]
        for limit in limits
    ]
    return json.dumps(made, separators=(",", ":"), ensure_ascii=False) if made else ""


def settle(text: str, queue: str) -> str:
    """The same keys, once the queue is known."""
    return text.replace(_QUEUE, json.dumps(queue, ensure_ascii=False)[1:-1]) if text else text


def _key(name: str, limit: Keyed, arguments: Mapping[str, Any], tenant: str) -> str:
    places: dict[str, Any] = {"task": name, "queue": _QUEUE, "tenant": tenant or NOBODY, **arguments}
    made: Any
    try:
        made = limit.key(**arguments) if callable(limit.key) else limit.key.format(**places)
    except Exception as error:
        raise KeyCannotBeMade(
            f"The key of a limit of {name} cannot be made from {sorted(arguments)}: {type(error).__name__}: {error}."
        ) from error
    if not isinstance(made, str) or not made:
        raise KeyCannotBeMade(f"The key of a limit of {name} must be a text that is not empty, not {made!r}.")
    if "\x00" in made or len(made) > KEY_LENGTH:
        return "sha256:" + hashlib.sha256(made.encode(errors="surrogatepass")).hexdigest()
    return made.encode(errors="replace").decode()


@functools.lru_cache(maxsize=4096)
def binds(text: str) -> tuple[Bind, ...]:
    """The keys by which limits bind a row."""
    return tuple(bind for bind in _binds(text) if bind.kind is not Kind.CHUNK)


@functools.lru_cache(maxsize=4096)
def gathers(text: str) -> Bind | None:
    """The key under which a row gathers with others into a chunk."""
    return next((bind for bind in _binds(text) if bind.kind is Kind.CHUNK), None)


def _binds(text: str) -> list[Bind]:
    rows = json.loads(text) if text else []
    return [Bind(Kind(kind), key, rule, Numbers(amount, burst)) for kind, key, rule, amount, burst in rows]


def lane(queue: str, priority: int, tenant: str, task: str, text: str) -> str:
    """The name of a job's lane: that of all jobs which may go when it may."""
    content = json.dumps([queue, priority, tenant, task, text])
    return hashlib.blake2b(content.encode(errors="surrogatepass"), digest_size=16).hexdigest()
