"""What the keys still allow within one release: slots and tokens, taken all or none. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from jobs.breaker import Passage
from jobs.limits import Bind, Kind, Numbers


@dataclass(slots=True)
class Bucket:
    """The tokens of a key, as of a moment."""

    tokens: float
    filled_at: datetime

    def fill(self, now: datetime, numbers: Numbers) -> None:
        """Add what has come since. A clock that was set back adds nothing."""
        passed = max(0.0, (now - self.filled_at).total_seconds())
        self.tokens = min(numbers.burst, self.tokens + passed * numbers.amount)
        self.filled_at = now


@dataclass(frozen=True, slots=True)
class Closed:
    """The key that does not allow a job to go, and when it may: known for a rate and an open circuit, not for slots."""

    by: Bind
    until: datetime | None = None


@dataclass(slots=True)
class Allowance:
    """What is used of each key, as of ``now``; ``in_force`` tells what a key allows today."""

    now: datetime
    in_force: Callable[[Bind], Numbers]
    used: dict[str, int] = field(default_factory=dict)
    buckets: dict[str, Bucket] = field(default_factory=dict)
    circuits: dict[str, Passage] = field(default_factory=dict)
    taken_from: set[str] = field(default_factory=set)
    seen: dict[str, Numbers] = field(default_factory=dict)

    def unknown(self, wanted: Iterable[Bind]) -> set[Bind]:
        """The keys of which nothing is known yet."""
        known: dict[Kind, Collection[str]] = {
            Kind.SLOTS: self.used,
            Kind.TOKENS: self.buckets,
            Kind.CIRCUIT: self.circuits,
        }
        return {b for b in wanted if b.key not in known[b.kind]}

    def refusal(self, wanted: Iterable[Bind]) -> Closed | None:
        """The first key that has nothing left, None if all have."""
        for bind in wanted:
            if bind.kind is Kind.CIRCUIT:
                passage = self.circuits[bind.key]
                if passage.left < 1:
                    return Closed(bind, passage.until)
                continue
            numbers = self.in_force(bind)
            if bind.kind is Kind.SLOTS:
                if self.used[bind.key] >= numbers.amount:
                    return Closed(bind)
            elif (short := 1.0 - self._filled(bind, numbers).tokens) > 1e-9:
                return Closed(bind, self.now + timedelta(seconds=short / numbers.amount))
        return None

    def take(self, wanted: Iterable[Bind]) -> None:
        """Take one of each key: one, also where two rules make the same key."""
        for bind in {bind.name: bind for bind in wanted}.values():
            if bind.kind is Kind.SLOTS:
                self.used[bind.key] += 1
            elif bind.kind is Kind.CIRCUIT:
                self.circuits[bind.key].left -= 1
            else:
                self._filled(bind, self.in_force(bind)).tokens -= 1.0
                self.taken_from.add(bind.key)

    def left(self, bind: Bind) -> float:
        """How many may still go by this key alone."""
        numbers = self.in_force(bind)
        if bind.kind is Kind.SLOTS:
            return numbers.amount - self.used[bind.key]
        return self._filled(bind, numbers).tokens

    def fills_in(self, key: str) -> float:
        """In how many seconds the bucket of a key has all the tokens that it can have, if nobody takes any."""
        numbers = self.seen[key]
        return (numbers.burst - self.buckets[key].tokens) / numbers.amount

    def _filled(self, bind: Bind, numbers: Numbers) -> Bucket:
        bucket = self.buckets[bind.key]
        bucket.fill(self.now, numbers)
        self.seen[bind.key] = numbers
        return bucket
