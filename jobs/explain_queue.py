"""For what the jobs of a queue wait, how many for each, and when one of them can go: at a cost that has a bound."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime

from jobs import backlog, chunks, declared, gauges, lanes, lifecycle, reasons, standing, stats, tally
from jobs.backlog import Number, Wait
from jobs.gauges import Gauge
from jobs.limits import Kind, binds
from jobs.models import Pause
from jobs.outbox import UNREACHABLE
from jobs.reasons import NAMED, Part, are, capital, jobs_in_words, time, verb
from jobs.states import State

KEYS_READ = 100  # keys of which it is read how full they are
# While one of these holds, nobody knows when the next job can go.
STANDING_STILL = {"no worker", "busy", "broker", "no conductor"}


@dataclass(frozen=True, slots=True)
class QueueExplanation:
    """For what the jobs of a queue wait; ``waiting`` is how many do, and ``next_at`` when one of them can go.

    That is None while it is not known: until a queue is resumed, say, or a job that runs has ended.
    """

    queue: str
    waiting: Number
    parts: tuple[Part, ...]
    next_at: datetime | None = None
    oldest: datetime | None = None

    @property
    def sentence(self) -> str:
        """All parts as text."""
        return " ".join([self.head, *(part.sentence for part in self.parts)])

    @property
    def head(self) -> str:
        """How many wait, and since when."""
        if not self.waiting:
            return f"No job waits in {self.queue}."
        since = f", the first that is due since {time(self.oldest)}" if self.oldest else ""
        return f"{capital(jobs_in_words(self.waiting))} {verb(self.waiting, 'wait')} in {self.queue}{since}."

    def __str__(self) -> str:
        return self.sentence


def explain_queue(queue: str) -> QueueExplanation:
    """Say for what the jobs of a queue wait, how many for each, and when one of them can go.

    It costs as much with a long backlog as with a short one: "about" stands before what is estimated, and "more than"
    before what was not counted to its end. Raises ``OptionError`` for a queue that there is not.
    """
    found = _found(queue)
    parts = [
        *_of_queue_pauses(found),
        *_of_keys(found),
        *_of_later(found),
        *_of_turns(found),
        *(reasons.hands(queue, found.now, waiting=bool(found.waiting)) if found.waiting or found.reserved else []),
        *_of_flight(found),
        *reasons.unreachable(found.now, found.unreachable),
        *(reasons.conductors(found.now) if found.waiting else []),
    ]
    next_at = _next_at(found, {part.word for part in parts}, parts)
    if next_at is not None:
        parts.append(_next(next_at, found.now))
    return QueueExplanation(queue, found.waiting, tuple(parts), next_at, found.oldest)


@dataclass(slots=True)
class _Found:
    """What was read of a queue, and in ``turns`` how many of its jobs only wait for their turn."""

    queue: str
    now: datetime
    waiting: Number
    reserved: int
    running: int
    as_of: datetime | None
    waits: list[Wait]
    later: backlog.Later
    for_others: Number
    gathering: Number
    direct: list[tuple[str, str, Number]]
    pauses: dict[tuple[str, str], Pause]
    oldest: datetime | None
    gauges: dict[str, Gauge] = field(default_factory=dict)
    circuits: dict[str, Part] = field(default_factory=dict)
    whole: list[Gauge] = field(default_factory=list)
    held_whole: Number = backlog.NONE
    paused: dict[str, Number] = field(default_factory=dict)
    turns: Number = backlog.NONE
    tenants: set[str] = field(default_factory=set)

    @property
    def unreachable(self) -> str:
        """What the broker said to whoever tried it last."""
        return next((reason for _, reason, _ in self.direct if reason.startswith(UNREACHABLE)), "")


def _found(queue: str) -> _Found:
    counts = tally.unfinished()
    of = {s: sum(n for state, _, q, n in counts.counts if (state, q) == (s, queue)) for s in State.values}
    if not sum(of.values()):
        declared.queue_named(queue)
    waiting = Number(of["pending"] + of["retrying"], more=counts.at_least, about=counts.as_of is not None)
    found = _Found(
        queue, lifecycle.database_now(), waiting, of["reserved"], of["running"], counts.as_of, backlog.waits(queue),
        backlog.later(queue), backlog.for_others(queue), backlog.gathering(queue), backlog.direct(queue),
        {(p.kind, p.name): p for p in stats.paused()}, backlog.oldest(queue),
    )  # fmt: skip
    _estimate(found)
    _sort_out(found)
    return found


def _estimate(found: _Found) -> None:
    """Of what was counted up to a bound, tell the rest of the whole, where that is known."""
    parts = [*(wait.jobs for wait in found.waits), found.later.jobs, found.for_others, found.gathering]
    parts += [jobs for _, _, jobs in found.direct]
    known = sum((part for part in parts), backlog.NONE)
    if known.of > found.waiting.of:
        found.waiting = Number(known.of, more=known.more, about=known.about)
    vague = [wait for wait in found.waits if wait.jobs.more or wait.jobs.about]
    if not vague or found.waiting.more or any(part.more for part in parts[len(found.waits) :]):
        return
    rest = found.waiting.of - (known.of - sum(wait.jobs.of for wait in vague))
    if len(vague) == 1:
        vague[0].jobs = Number(rest, about=True)
    elif rest > 1.1 * sum(wait.jobs.of for wait in vague):
        # Where the rest of them are, nobody counted.
        for wait in vague:
            wait.jobs = Number(wait.jobs.of, more=True)


def _sort_out(found: _Found) -> None:
    """Tell those that a pause or a key holds up from those that only wait for their turn."""
    tasks = {name for kind, name in found.pauses if kind == Pause.Kind.TASK}
    names = [wait.on for wait in found.waits if _kind(wait.on)][:KEYS_READ]
    binds_of = {b.name: b for wait in found.waits if wait.first for b in binds(wait.first.bound) if b.name in names}
    # Of a whole queue, task or tenant: no row keeps it.
    binds_of |= {name: bind for name in names if name not in binds_of and (bind := standing.named(name)) is not None}
    found.gauges = {gauge.bind.name: gauge for gauge in gauges.of(binds_of.values()) if gauge.full}
    for wait in found.waits:
        held = sum((n for task, n in wait.tasks.items() if task in tasks), backlog.NONE)
        for task in tasks & set(wait.tasks):
            found.paused[task] = found.paused.get(task, backlog.NONE) + wait.tasks[task]
        if wait.on.startswith(f"{Kind.CIRCUIT.value} "):
            key = wait.on.removeprefix(f"{Kind.CIRCUIT.value} ")
            found.circuits.update((wait.on, part) for part in reasons.circuit(key, found.now))
        released = wait.on not in found.gauges and wait.on not in found.circuits
        if wait.on == "" or (released and (wait.on in binds_of or wait.on.startswith(f"{Kind.CIRCUIT.value} "))):
            found.turns += Number(max(0, wait.jobs.of - held.of), wait.jobs.more, wait.jobs.about)
            found.tenants |= wait.tenants
    for task, reason, jobs in found.direct:
        if task in tasks:
            found.paused[task] = found.paused.get(task, backlog.NONE) + jobs
        elif not reason.startswith(UNREACHABLE):
            found.turns += jobs
    if not found.waiting.about and not found.waiting.more:
        # What came after the last release is in no lane that is known.
        seen = sum((w.jobs for w in found.waits), backlog.NONE).of + sum(jobs.of for _, _, jobs in found.direct)
        new = found.waiting.of - seen - found.later.jobs.of - found.for_others.of - found.gathering.of
        found.turns += Number(max(0, new))
    _hold_all(found)


def _hold_all(found: _Found) -> None:
    """Where a limit of the whole queue is full, nobody has a turn."""
    of_queue = gauges.of(standing.binds(standing.said_now(), found.queue))
    found.whole = [gauge for gauge in of_queue if gauge.full]
    names = {gauge.bind.name for gauge in found.whole}
    found.held_whole = sum((wait.jobs for wait in found.waits if wait.on in names), backlog.NONE)
    if found.whole:
        found.held_whole, found.turns = found.held_whole + found.turns, backlog.NONE


def _of_queue_pauses(found: _Found) -> Iterator[Part]:
    if pause := found.pauses.get((Pause.Kind.QUEUE, found.queue)):
        yield reasons.paused(pause, found.waiting)
    for task, jobs in sorted(found.paused.items(), key=lambda item: -item[1].of):
        yield reasons.paused(found.pauses[Pause.Kind.TASK, task], jobs)


def _of_keys(found: _Found) -> Iterator[Part]:
    """The keys for which most jobs wait, one by one; the others together."""
    whole = {gauge.bind.name for gauge in found.whole}
    held = [wait for wait in found.waits if wait.on not in ("", lanes.PAUSED, *whole)]
    known = {*found.gauges, *found.circuits}
    held = [wait for wait in held if wait.on in known or not _known_kind(wait.on) or wait.first is None]
    for full in found.whole if found.held_whole else ():
        yield _of_gauge(full, found.held_whole)
    for wait in held[:NAMED]:
        gauge, circuit = found.gauges.get(wait.on), found.circuits.get(wait.on)
        told = f"{capital(jobs_in_words(wait.jobs))} {verb(wait.jobs, 'wait')} for"
        if circuit is not None:
            sentence = f"{circuit.sentence.rstrip('.')}. {told} it."
            yield Part("circuit", sentence, circuit.until, circuit.details, wait.jobs)
        elif wait.on == chunks.GATHERS:
            first = chunks.first_at(found.queue)
            sentence = f"{told} others of their chunk; the first go at {time(first)} at the latest."
            yield Part("chunk", sentence, first, jobs=wait.jobs)
        elif gauge is None:
            yield Part("held", f"{told} {wait.on}.", jobs=wait.jobs, details={"key": wait.on})
        else:
            yield _of_gauge(gauge, wait.jobs)
    if len(held) > NAMED:
        rest = held[NAMED:]
        jobs = sum((wait.jobs for wait in rest), backlog.NONE)
        sentence = f"{capital(jobs_in_words(jobs))} {verb(jobs, 'wait')} for {len(rest):,} other keys."
        yield Part("limits", sentence, details={"keys": len(rest)}, jobs=jobs)


def _of_gauge(gauge: Gauge, jobs: Number) -> Part:
    """That so many jobs wait for a key."""
    told = f"{capital(jobs_in_words(jobs))} {verb(jobs, 'wait')} for"
    if gauge.bind.kind is Kind.TOKENS:
        part = reasons.no_token(gauge)
        sentence = f"{told} a token of the rate {gauge.key}; the next comes at {time(gauge.next_at, exact=True)}."
    else:
        part = reasons.full(gauge)
        sentence = f"{told} the limit {gauge.key}, which is full: {part.sentence.split(' is full: ', 1)[1]}"
    return Part(part.word, sentence, part.until, part.details, jobs)


def _of_later(found: _Found) -> Iterator[Part]:
    if jobs := found.later.jobs:
        at = f", the first at {time(found.later.first_at)}" if jobs.of > 1 else f", at {time(found.later.first_at)}"
        yield Part(
            "scheduled", f"{capital(jobs_in_words(jobs))} {are(jobs)} due later{at}.", found.later.first_at, jobs=jobs
        )
    if jobs := found.for_others:
        yield Part(
            "waits for others", f"{capital(jobs_in_words(jobs))} {verb(jobs, 'wait')} for other jobs.", jobs=jobs
        )

    if jobs := found.gathering:
        what = "the calls of a burst" if jobs.of == 1 else "the calls of bursts"
        yield Part("gathers", f"{capital(jobs_in_words(jobs))} {verb(jobs, 'gather')} {what}.", jobs=jobs)


def _of_turns(found: _Found) -> Iterator[Part]:
    paused = (Pause.Kind.QUEUE, found.queue) in found.pauses
    if (jobs := found.turns) and not paused:
        tenants = len(found.tenants - {""})
        whose = f" of {tenants:,} tenants" if tenants > 1 else ""
        turn = "its turn" if jobs.of == 1 else "their turn"
        sentence = f"{capital(jobs_in_words(jobs))}{whose} {verb(jobs, 'wait')} only for {turn}."
        yield Part("line", sentence, jobs=jobs, details={"tenants": tenants})


def _of_flight(found: _Found) -> Iterator[Part]:
    if not found.reserved and not found.running:
        return
    reserved, running = (Number(many, about=found.as_of is not None) for many in (found.reserved, found.running))
    runs = "runs" if str(running) == "1" else "run"
    sentence = f"{capital(str(reserved))} {are(reserved)} with the broker, {running} {runs}."
    yield Part("sent", sentence, details={"reserved": found.reserved, "running": found.running})


def _next_at(found: _Found, words: set[str], parts: list[Part]) -> datetime | None:
    if (Pause.Kind.QUEUE, found.queue) in found.pauses or words & STANDING_STILL:
        return None
    times = [part.until for part in parts if part.until is not None]
    return found.now if found.turns else min(times, default=None)


def _next(at: datetime, now: datetime) -> Part:
    if at <= now:
        return Part("next", "The next release lets some go.", at)
    return Part("next", f"The next one can go at {time(at, exact=True)}.", at)


def _known_kind(waits_on: str) -> bool:
    """Whether a lane waits for something of which it is known how it stands."""
    return _kind(waits_on) or waits_on.startswith(f"{Kind.CIRCUIT.value} ")


def _kind(waits_on: str) -> bool:
    """Whether a lane waits for a key of a limit."""
    return waits_on.startswith((f"{Kind.SLOTS.value} ", f"{Kind.TOKENS.value} "))
