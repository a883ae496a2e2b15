"""Who goes next, of the jobs that something constrains: one place decides it, for one release at a time.

How it chooses, what it counts and what a crash leaves behind stands in docs/explanation/order.md.
"""

from __future__ import annotations

import heapq
import math
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db import transaction
from django.db.models import Value
from django.db.models.functions import Greatest

from jobs import chunks, circuits, declared, floods, lifecycle, limits, standing
from jobs.allowance import Allowance, Bucket, Closed
from jobs.chunks import Gathering
from jobs.conf import current as settings
from jobs.limits import Bind, Kind, Numbers
from jobs.models import Allotment, Arrival, Job, Lane, Pause, Share, Slot, Worker
from jobs.models import Bucket as BucketRow
from jobs.states import WAITING, Priority, State

LOCK = 7_212_340_512_845_001  # of PostgreSQL's advisory locks, for the length of a transaction
ARRIVALS = 1000  # that one release takes in at once
TAKING_IN = 0.2  # seconds in which it takes in more of them
SLICE = 500  # names in one statement
LOOKS = 500  # shares that one release looks at, of a queue and priority
AHEAD = 500  # the most jobs that the broker holds for workers of a queue that have their hands full
MOMENT = 0.5  # seconds for which it holds some
ONE_IN = 8  # releases of a queue that go to whoever waits below for too long
PARKED = timedelta(seconds=60)  # the same of one that waits for a circuit, which tells
ALL_AT_ONCE = 1000  # lanes that are opened in one release when a circuit closes
RECHECK = timedelta(seconds=5)  # after which a closed lane is looked at, even if nobody opened it
PAUSED = "pause"

_IN_FLIGHT = f"('{State.RESERVED.value}', '{State.RUNNING.value}')"
_WAITS = "finished_at IS NULL AND NOT (lane = '') AND state IN ({})".format(
    ", ".join(f"'{s.value}'" for s in sorted(WAITING))
)
# Whether anything is in line, or counts, or has to.
IN_LINE = (
    "(EXISTS(SELECT 1 FROM jobs_arrival) OR EXISTS(SELECT 1 FROM jobs_slot) OR EXISTS(SELECT 1 FROM jobs_share) "
    f"OR {standing.ANY})"
)
# What became of the job of a slot. One that was ended by force may run until its runner finds that it lost its lease.
_STATE = (
    "COALESCE((SELECT CASE WHEN j.finished_at IS NOT NULL AND substr(j.reason, 1, 7) = 'forced:' "
    f"AND j.lease_until > {{now}} THEN '{State.RUNNING.value}' ELSE j.state END "
    "FROM jobs_job j WHERE j.id = jobs_slot.job_id), '')"
)
_flows: defaultdict[str, Flow] = defaultdict(lambda: Flow())
_unfinished: list[str] = []  # the queues of which the last release here has not looked at all that is open


def release(limit: int) -> list[Job]:
    """Mark up to ``limit`` jobs as reserved, in the order in which they may go; return them.

    Any number of processes may do it at once: one of them does, and the others return nothing.
    """
    with transaction.atomic(using=lifecycle.alias()):
        return Release(limit).run() if _locked() else []


def changes(ahead: float) -> tuple[bool, bool, bool, bool]:
    """What is to be known before a release, in one look that locks nothing.

    Whether something has changed that lets a job go; whether jobs wait, and whether others are on their way which they
    may wait for; whether time will let some go within so many seconds.
    """
    now, soon = lifecycle.clock_sql(), lifecycle.clock_sql(timedelta(seconds=ahead))
    by_time = (
        "EXISTS(SELECT 1 FROM jobs_share WHERE NOT is_open AND open_at <= {0}) "
        "OR EXISTS(SELECT 1 FROM jobs_bucket WHERE wake_at <= {0}) "
        "OR EXISTS(SELECT 1 FROM jobs_circuit WHERE wake_at <= {0})"
    )
    row = _one(
        "SELECT EXISTS(SELECT 1 FROM jobs_arrival) OR EXISTS(SELECT 1 FROM jobs_slot "
        f"WHERE {_STATE.format(now=now)} NOT IN {_IN_FLIGHT}) OR {chunks.CHANGED} OR {by_time.format(now)}, "
        "EXISTS(SELECT 1 FROM jobs_share WHERE is_open) OR EXISTS(SELECT 1 FROM jobs_lane WHERE NOT (waits_on = '')), "
        f"EXISTS(SELECT 1 FROM jobs_slot), {by_time.format(soon)}"
    )
    return bool(row[0]), bool(row[1]), bool(row[2]), bool(row[3])


def unfinished() -> bool:
    """Whether the last release of this process has not looked at all that is open."""
    return bool(_unfinished)


def reopen(waits_on: str = "") -> None:
    """Look again at the lanes that are closed for this reason, or for any: what closed them has changed."""
    rows = Lane.objects.using(lifecycle.alias()).exclude(waits_on="")
    ids = [row.pk for row in (rows.filter(waits_on=waits_on) if waits_on else rows).only("pk")]
    _open_lanes(ids)


def mend(limit: int = 1000) -> int:
    """Take in jobs that wait in a lane of which nothing is known; return how many lanes. It should find none.

    Forget the tokens of keys that have all they can have.
    """
    found = _all(
        f"SELECT MIN(CAST(id AS varchar(36))) FROM jobs_job WHERE {_WAITS} AND due_at IS NOT NULL "
        "AND NOT EXISTS (SELECT 1 FROM jobs_lane l WHERE l.id = jobs_job.lane) "
        f"GROUP BY lane LIMIT {int(limit)}"
    )
    ids = [UUID(str(row[0])) for row in found]
    Arrival.objects.using(lifecycle.alias()).bulk_create([Arrival(job_id=job_id) for job_id in ids])
    full = BucketRow.objects.using(lifecycle.alias()).filter(wake_at=None, full_at__lt=lifecycle.database_now())
    full.delete()
    circuits.forget()
    return len(ids)


# --- One release ------------------------------------------------------------------------------------


@dataclass(order=True, slots=True)
class _Lane:
    """A lane, while its jobs are chosen: of two that came at the same moment, the one whose job was made first."""

    head: Any
    first: str
    id: str = field(compare=False)
    task: str = field(compare=False)
    binds: tuple[Bind, ...] = field(compare=False)
    jobs: deque[tuple[Any, UUID]] = field(compare=False, default_factory=deque)
    chosen: list[UUID] = field(compare=False, default_factory=list)
    all_read: bool = field(compare=False, default=False)
    closed: Closed | Gathering | str | None = field(compare=False, default=None)
    gathers: Bind | None = field(compare=False, default=None)
    together: list[UUID] = field(compare=False, default_factory=list)

    def next(self) -> list[UUID]:
        """Take its first job; of jobs that gather, those that go together."""
        if self.gathers is None:
            return [self.jobs.popleft()[1]]
        self.jobs.clear()
        return self.together


@dataclass(order=True, slots=True)
class _Share:
    """A share, while its lanes are served: the one with the lowest turn comes first."""

    turn: float
    since: Any
    first: str
    id: int = field(compare=False)
    tenant: str = field(compare=False)
    weight: float = field(compare=False)
    lanes: list[_Lane] = field(compare=False, default_factory=list)
    seen: dict[str, _Lane] = field(compare=False, default_factory=dict)
    all_read: bool = field(compare=False, default=False)


def _lane(
    head: Any, lane_id: str, task: str, binds: tuple[Bind, ...], gathers: Bind | None, job_id: Any
) -> _Lane:  # fmt: skip
    """A lane as it was read, with its first job."""
    jobs = deque([(head, UUID(str(job_id)))] if job_id is not None else [])
    return _Lane(head, str(job_id or ""), lane_id, task, binds, jobs, all_read=job_id is None, gathers=gathers)


@dataclass(slots=True)
class Flow:
    """How fast the workers of a queue take jobs, as this process saw it: they are sent no more than for a moment."""

    ahead: int = 1
    pace: float = 0.0  # jobs in a second
    left: int = 0  # that nobody had begun after the last release
    seen_at: float | None = None

    def further(self, reserved: int, now: float) -> int:
        """How many jobs the broker may hold beyond the hands of the workers, of which so many are there."""
        if self.seen_at is not None:
            passed = max(now - self.seen_at, 1e-3)
            weight = 1 - math.exp(-passed / MOMENT)
            self.pace += weight * (max(0, self.left - reserved) / passed - self.pace)
            if not reserved:
                self.ahead *= 2
            elif reserved >= self.ahead:
                self.ahead //= 2
            self.ahead = max(1, min(self.ahead, AHEAD, 1 + int(self.pace * MOMENT)))
        self.seen_at, self.left = now, reserved
        return self.ahead


class Release:
    """One release, inside of its transaction."""

    def __init__(self, limit: int) -> None:
        self.limit, self.now = limit, lifecycle.database_now()
        self.at = lifecycle.prepared("due_at", self.now)
        self.said = standing.said_now()
        self.allowance = Allowance(self.now, self.in_force)
        self.chosen: dict[UUID, _Lane] = {}
        self.overdue: set[UUID] = set()
        self.flooded: set[str] = set()
        self.looked_at: list[_Share] = []
        self.to_wake: dict[str, Bind] = {}
        self.paused: set[tuple[str, str]] = set()
        self.chunks: list[list[UUID]] = []

    def run(self) -> list[Job]:
        """Choose, and write what was chosen."""
        _unfinished.clear()
        if standing.enforce(self.said):
            _unfinished.append("limits that were set")
        freed = self._give_up_slots()
        self._take_in(freed)
        self._wake(freed)
        self._open_shares()
        self.paused = set(Pause.objects.using(lifecycle.alias()).values_list("kind", "name"))
        queues = [queue for queue in self._queues() if (Pause.Kind.QUEUE.value, queue) not in self.paused]
        if queues:
            self._take_back_overtaken()
            rooms = self._rooms(queues)
            for queue in queues:
                self._choose(queue, min(rooms[queue], self.limit - len(self.chosen)))
        return self._write()

    # --- What has changed since the last one ---

    def _give_up_slots(self) -> list[tuple[UUID, str]]:
        """Slots of jobs that have ended, or wait again."""
        apart = [(job_id, "") for job_id in chunks.tidy()]
        rows = _all(
            f"DELETE FROM jobs_slot WHERE {_STATE.format(now=lifecycle.clock_sql())} NOT IN {_IN_FLIGHT} "
            "RETURNING job_id, key"
        )
        return [*apart, *((UUID(str(job_id)), key) for job_id, key in rows)]

    def _take_in(self, freed: Sequence[tuple[UUID, str]]) -> None:
        """Open the lanes of the jobs that have come, or come back; of a crowd, as many as can be in a moment."""
        _open_lanes_of([lifecycle.prepared("id", job_id) for job_id, key in freed if not key])
        until, came = time.monotonic() + TAKING_IN, ARRIVALS
        while came == ARRIVALS and time.monotonic() < until:
            rows = _all(
                f"DELETE FROM jobs_arrival WHERE id IN (SELECT id FROM jobs_arrival ORDER BY id LIMIT {ARRIVALS}) "
                "RETURNING job_id"
            )
            came = len(rows)
            _open_lanes_of([row[0] for row in rows])

    def _wake(self, freed: Sequence[tuple[UUID, str]]) -> None:
        """Open lanes that wait for a key which has something left again: no more than may go, and a few."""
        for key, many in Counter(key for _, key in freed if key).items():
            if circuit := circuits.probed(key):
                self._open_those_of(f"{Kind.CIRCUIT.value} {circuit}", 2 * many + 8)
            else:
                self._open_those_of(f"{Kind.SLOTS.value} {key}", 2 * many + 8)
        self._wake_circuits()
        due = BucketRow.objects.using(lifecycle.alias()).filter(wake_at__lte=self.now)
        for key in list(due.values_list("key", flat=True)):
            name = f"{Kind.TOKENS.value} {key}"
            first = Lane.objects.using(lifecycle.alias()).filter(waits_on=name).select_related("share").first()
            bind = first and next((b for b in self._binds_of(first) if b.name == name), None)
            if not bind:
                BucketRow.objects.using(lifecycle.alias()).filter(key=key).update(wake_at=None)
                continue
            self.learn([bind])
            self.to_wake[key] = bind
            self._open_those_of(name, int(self.allowance.left(bind)) + 1)

    def _wake_circuits(self) -> None:
        """Open the lanes of circuits that are closed again; of those that are half-open, as many as may be probes."""
        for key, probes in circuits.to_wake(self.now):
            waits_on = f"{Kind.CIRCUIT.value} {key}"
            few = probes is not None and self._open_those_of(waits_on, 2 * probes + 8, due=True)
            # Where no job is due, its lane is open from when one is.
            if few or self._open_those_of(waits_on, ALL_AT_ONCE) < ALL_AT_ONCE:
                circuits.woken(key, self.now)

    def _open_those_of(self, waits_on: str, many: int, *, due: bool = False) -> int:
        rows = Lane.objects.using(lifecycle.alias()).filter(waits_on=waits_on)
        rows = rows.filter(head_at__lte=self.now) if due else rows
        ids = list(rows.order_by("priority", "turn", "head_at").values_list("pk", flat=True)[:many])
        _open_lanes(ids)
        return len(ids)

    def _open_shares(self) -> None:
        """Open shares whose time has come, at the lowest turn of those that are open: nobody saves turns up."""
        rows = Share.objects.using(lifecycle.alias())
        due = rows.filter(is_open=False, open_at__lte=self.now)
        for queue, priority in set(due.values_list("queue", "priority")):
            peers = rows.filter(queue=queue, priority=priority, is_open=True).order_by("turn")
            lowest = peers.values_list("turn", flat=True).first()
            due.filter(queue=queue, priority=priority).update(is_open=True, turn=Greatest("turn", Value(lowest or 0.0)))

    def _take_back_overtaken(self) -> None:
        """Take back what has lain in the broker for too long behind more urgent jobs: it goes again, before them.

        Its message is refused then, or taken for the new one.
        """
        late = lifecycle.prepared("due_at", self.now - timedelta(seconds=settings().AGEING))
        rows = _all(
            "SELECT j.id FROM jobs_slot s JOIN jobs_job j ON j.id = s.job_id WHERE s.key = '' "
            f"AND j.state = '{State.RESERVED.value}' AND j.sent_at < %s AND EXISTS (SELECT 1 FROM jobs_slot t "
            "JOIN jobs_job k ON k.id = t.job_id WHERE t.key = '' AND k.queue = j.queue AND k.priority < j.priority)",
            [late],
        )
        for part in _parts([row[0] for row in rows]):
            marks = ", ".join(["%s"] * len(part))
            lifecycle.move_all(
                [State.RESERVED], State.PENDING, f"id IN ({marks})", part, "overtaken in the broker", sends=0
            )

    # --- Choosing ---

    def _queues(self) -> Iterable[str]:
        """The queues with an open share; one look for each, however many shares it has."""
        last: str | None = None
        while True:
            rows = Share.objects.using(lifecycle.alias()).filter(is_open=True).order_by("queue")
            last = (rows if last is None else rows.filter(queue__gt=last)).values_list("queue", flat=True).first()
            if last is None:
                return
            yield last

    def _rooms(self, queues: Sequence[str]) -> dict[str, int]:
        """How many jobs the workers of each queue can soon take."""
        alive = self.now - timedelta(seconds=settings().LEASE)
        hands: Counter[str] = Counter()
        for worker in Worker.objects.using(lifecycle.alias()).filter(seen_at__gt=alive):
            for queue in worker.queues:
                hands[queue] += max(0, worker.concurrency - worker.stuck)
        flying: Counter[tuple[str, str]] = Counter()
        for queue, state, many in _all(
            "SELECT j.queue, j.state, COUNT(*) FROM jobs_slot s JOIN jobs_job j ON j.id = s.job_id "
            "WHERE s.key = '' GROUP BY j.queue, j.state"
        ):
            flying[queue, state] = many
        return {
            queue: hands[queue] + _flows[queue].further(flying[queue, "reserved"], time.monotonic())
            - flying[queue, "reserved"] - flying[queue, "running"]
            for queue in queues
        }  # fmt: skip

    def _choose(self, queue: str, room: int) -> None:
        """Fill the room of a queue, as far as a limit of the whole queue allows."""
        whole = standing.binds(self.said, queue)
        self.learn(whole)
        room = min([room, *(int(self.allowance.left(bind) + 1e-9) for bind in whole)])
        if room <= 0:
            return
        lines = {p.value: _Line(self, queue, p.value, room) for p in Priority}
        if lines[Priority.NORMAL].next() and floods.lies_before(queue):
            self.flooded.add(queue)
        age = _Age(self, queue, lines)
        left = room
        while left > 0 and len(self.chosen) < self.limit:
            aged = age.turn()
            line = aged or next((line for line in lines.values() if line.next()), None)
            job_id = line.take() if line else None
            if line is None:
                break
            if job_id is not None:
                left -= 1
                age.note(line, aged is not None)
                if aged is not None:
                    self.overdue.add(job_id)
        if left > 0 and any(line.more for line in lines.values()):
            _unfinished.append(queue)
        age.write()

    def binds(self, bound: str, queue: str, task: str, tenant: str) -> tuple[Bind, ...]:
        """The keys of a job: those that its task declares, and those of its whole queue, task and tenant."""
        return (*limits.binds(bound), *standing.binds(self.said, queue, task, tenant))

    def _binds_of(self, lane: Lane) -> tuple[Bind, ...]:
        return self.binds(lane.bound, lane.share.queue, lane.task, lane.share.tenant)

    def weight(self, tenant: str) -> float:
        """How many turns a tenant has for one of another."""
        said = self.said.get((Allotment.Kind.WEIGHT, tenant))
        return said.amount if said else 1.0

    def admit(self, lane: _Lane) -> bool:
        """Take what the next job of a lane needs, all or nothing; close the lane where a key has none left."""
        if (Pause.Kind.TASK.value, lane.task) in self.paused:
            lane.closed = PAUSED
            return False
        if lane.gathers is not None and not self._gathered(lane, lane.gathers):
            return False
        self.learn(lane.binds)
        lane.closed = self.allowance.refusal(lane.binds)
        if lane.closed is not None:
            return False
        self.allowance.take(lane.binds)
        return True

    def _gathered(self, lane: _Lane, bind: Bind) -> bool:
        """Whether jobs of a lane go together now; else it is closed until they may."""
        found = chunks.ready(lane.id, chunks.numbers(lane.task, bind), set(lane.chosen), self.now)
        if isinstance(found, list):
            lane.together = found
            return True
        lane.closed = found
        return False

    def learn(self, binds: Iterable[Bind]) -> None:
        """Read how much of these keys is used."""
        unknown = self.allowance.unknown(binds)
        slots = sorted(bind.key for bind in unknown if bind.kind is Kind.SLOTS)
        for part in _parts(slots):
            self.allowance.used |= dict.fromkeys(part, 0)
            marks = ", ".join(["%s"] * len(part))
            used = _all(f"SELECT key, COUNT(*) FROM jobs_slot WHERE key IN ({marks}) GROUP BY key", part)
            self.allowance.used |= {key: int(many) for key, many in used}
        for part in _parts(sorted({bind.key for bind in unknown if bind.kind is Kind.CIRCUIT})):
            self.allowance.circuits |= circuits.passages(part, self.now)
        tokens = {bind.key: bind for bind in unknown if bind.kind is Kind.TOKENS}
        for part in _parts(sorted(tokens)):
            rows = BucketRow.objects.using(lifecycle.alias()).in_bulk(part)
            for key in part:
                row = rows.get(key)
                full = self.in_force(tokens[key]).burst
                self.allowance.buckets[key] = Bucket(row.tokens if row else full, row.filled_at if row else self.now)

    def in_force(self, bind: Bind) -> Numbers:
        """What a key allows today: as an operator said, else as the code does, else as it did when it was made."""
        for name in (bind.key, bind.rule):
            said = self.said.get((bind.kind.value, name))
            if said is not None:
                return Numbers(said.amount, said.burst)
        return in_code().get((bind.kind, bind.rule), bind.numbers)

    def learn_all(self, lanes: Iterable[_Lane]) -> None:
        """Read the keys of many lanes at once."""
        self.learn([bind for lane in lanes for bind in lane.binds])

    # --- Writing ---

    def _write(self) -> list[Job]:
        jobs = chunks.form(self.chunks, lifecycle.reserve(list(self.chosen))) if self.chosen else []
        slots = [
            Slot(job_id=job.pk, key=key) for job in jobs for key in ("", *self._slots_of(self.chosen[job.pk].binds))
        ]
        Slot.objects.using(lifecycle.alias()).bulk_create(slots, ignore_conflicts=True, batch_size=SLICE)
        self._write_lanes()
        self._write_buckets()
        for job in jobs:
            _flows[job.queue].left += 1
            job.overdue = job.pk in self.overdue  # type: ignore[attr-defined]
            job.sooner = job.queue in self.flooded and job.priority == Priority.NORMAL  # type: ignore[attr-defined]
        return jobs

    def _slots_of(self, binds: Iterable[Bind]) -> Iterable[str]:
        """The keys under which a job counts."""
        for bind in binds:
            if bind.kind is Kind.SLOTS:
                yield bind.key
            elif bind.kind is Kind.CIRCUIT:
                yield circuits.slot(bind.key, probe=self.allowance.circuits[bind.key].guarded)

    def _write_lanes(self) -> None:
        lanes = [(share, lane) for share in self.looked_at for lane in share.seen.values()]
        _many("UPDATE jobs_share SET turn = %s WHERE id = %s", [(share.turn, share.id) for share in self.looked_at])
        closed = [(share, lane, lane.closed) for share, lane in lanes if lane.closed is not None]
        _renew_lanes([lane.id for _, lane in lanes if lane.closed is None])
        _renew_heads([lane.id for _, lane, _ in closed if lane.chosen])
        _many(
            "UPDATE jobs_lane SET waits_on = %s, open_at = %s, turn = %s WHERE id = %s",
            [
                (_reason(closed_by), lifecycle.prepared("due_at", self._recheck(closed_by)), share.turn, lane.id)
                for share, lane, closed_by in closed
            ],
        )  # fmt: skip
        for _, _, closed_by in closed:
            if isinstance(closed_by, Closed) and closed_by.by.kind is Kind.TOKENS and closed_by.until is not None:
                self.to_wake[closed_by.by.key] = closed_by.by
        _renew_shares([share.id for share in self.looked_at])

    def _recheck(self, closed_by: Closed | Gathering | str) -> datetime:
        """When a closed lane is looked at, even if nobody opened it."""
        if isinstance(closed_by, Gathering):
            return closed_by.until
        if isinstance(closed_by, Closed) and closed_by.by.kind is Kind.CIRCUIT:
            since: datetime = closed_by.until or self.now
            return since + PARKED
        again: datetime = self.now + RECHECK
        return again

    def _write_buckets(self) -> None:
        rows = []
        for key in sorted(self.allowance.taken_from | set(self.to_wake)):
            bucket, bind = self.allowance.buckets[key], self.to_wake.get(key)
            refusal = self.allowance.refusal([bind]) if bind else None
            wake_at = (refusal.until if refusal else self.now) if bind else None
            full_at = self.now + timedelta(seconds=self.allowance.fills_in(key))
            rows.append(BucketRow(
                key=key, tokens=bucket.tokens, filled_at=bucket.filled_at, wake_at=wake_at, full_at=full_at
            ))  # fmt: skip
        for some, names in (
            ([row for row in rows if row.wake_at is not None], ["tokens", "filled_at", "full_at", "wake_at"]),
            ([row for row in rows if row.wake_at is None], ["tokens", "filled_at", "full_at"]),
        ):
            BucketRow.objects.using(lifecycle.alias()).bulk_create(
                some, update_conflicts=True, unique_fields=["key"], update_fields=names, batch_size=SLICE
            )


class _Line:
    """The open shares of a queue and priority, by turn."""

    def __init__(self, release: Release, queue: str, priority: int, room: int) -> None:
        self.release, self.queue, self.priority, self.room = release, queue, priority, room
        self.more = False  # whether shares are open beyond those that were read
        self._heap: list[_Share] | None = None

    def next(self) -> bool:
        """Whether a job may be there to be taken."""
        if self._heap is None:
            self._heap = self._read()
        return bool(self._heap)

    def take(self) -> UUID | None:
        """The next job of the share whose turn it is; None where that has none that may go."""
        if not self.next():
            return None
        assert self._heap is not None
        share = self._heap[0]
        lane = self._lane(share)
        if lane is None:
            heapq.heappop(self._heap)
            return None
        if not self.release.admit(lane):
            heapq.heappop(share.lanes)
            return None
        job_ids = lane.next()
        lane.chosen += job_ids
        if lane.jobs:
            lane.head, lane.first = lane.jobs[0][0], str(lane.jobs[0][1])
            heapq.heapreplace(share.lanes, lane)
        self.release.chosen |= dict.fromkeys(job_ids, lane)
        if lane.gathers is not None:
            self.release.chunks.append(job_ids)
        share.turn += 1.0 / share.weight
        heapq.heapreplace(self._heap, share)
        return job_ids[0]

    def _lane(self, share: _Share) -> _Lane | None:
        """The lane of a share whose first job is the oldest, with that job."""
        while True:
            if not share.all_read and (not share.lanes or share.lanes[0].chosen):
                self._read_lanes(share)
            if not share.lanes:
                return None
            lane = share.lanes[0]
            if lane.jobs:
                return lane
            if lane.all_read or not self._read_jobs(lane):
                heapq.heappop(share.lanes)
            else:
                heapq.heapify(share.lanes)

    def _read(self) -> list[_Share]:
        """The first shares, each with its first lane, and the first job of that."""
        at, most = self.release.at, min(LOOKS, self.room + 20)
        rows = _all(
            "SELECT s.id, s.turn, s.open_at, s.tenant, l.id, l.head_at, l.task, l.bound, j.id FROM "
            "(SELECT * FROM jobs_share WHERE is_open AND queue = %s AND priority = %s "
            f"ORDER BY turn, open_at LIMIT {most}) s "
            "LEFT JOIN jobs_lane l ON l.id = (SELECT id FROM jobs_lane WHERE share_id = s.id AND open_at <= %s "
            "ORDER BY open_at LIMIT 1) "
            f"LEFT JOIN jobs_job j ON j.id = ({_first_jobs('l.id')} LIMIT 1) ORDER BY s.turn, s.open_at",
            [self.queue, self.priority, at, at],
        )
        shares, self.more = [], len(rows) == most
        for share_id, turn, since, tenant, lane_id, head, task, bound, job_id in rows:
            first = str(job_id or "")
            share = _Share(turn, since, first, share_id, tenant, self.release.weight(tenant))
            if lane_id is not None:
                binds = self.release.binds(bound, self.queue, task, tenant)
                lane = _lane(head, lane_id, task, binds, limits.gathers(bound), job_id)
                share.lanes, share.seen = [lane], {lane_id: lane}
            shares.append(share)
        self.release.looked_at += shares
        self.release.learn_all(lane for share in shares for lane in share.lanes)
        heapq.heapify(shares)
        return shares

    def _read_lanes(self, share: _Share) -> None:
        """Further lanes of a share."""
        marks = ", ".join(["%s"] * len(share.seen))
        others = f"AND l.id NOT IN ({marks})" if share.seen else ""
        rows = _all(
            f"SELECT l.id, l.head_at, l.task, l.bound, ({_first_jobs('l.id')} LIMIT 1) FROM jobs_lane l "
            f"WHERE l.share_id = %s AND l.open_at <= %s {others} ORDER BY l.open_at LIMIT {SLICE}",
            [self.release.at, share.id, self.release.at, *share.seen],
        )
        share.all_read = len(rows) < SLICE or len(share.seen) > SLICE
        for lane_id, head, task, bound, job_id in rows:
            binds = self.release.binds(bound, self.queue, task, share.tenant)
            share.seen[lane_id] = lane = _lane(head, lane_id, task, binds, limits.gathers(bound), job_id)
            heapq.heappush(share.lanes, lane)
        self.release.learn_all(share.lanes)

    def _read_jobs(self, lane: _Lane) -> bool:
        """Further jobs of a lane; False when there are none."""
        others = f"AND id NOT IN ({', '.join(['%s'] * len(lane.chosen))})" if lane.chosen else ""
        chosen = [lifecycle.prepared("id", job_id) for job_id in lane.chosen]
        rows = _all(
            f"{_first_jobs('%s', others, 'id, due_at')} LIMIT {min(SLICE, self.room)}",
            [lane.id, self.release.at, *chosen],
        )
        lane.jobs.extend((due_at, UUID(str(job_id))) for job_id, due_at in rows)
        lane.all_read = not rows
        if rows:
            lane.head, lane.first = rows[0][1], str(rows[0][0])
        return bool(rows)


class _Age:
    """One in ``ONE_IN`` releases of a queue, for the line below whose first share has waited for too long."""

    def __init__(self, release: Release, queue: str, lines: dict[int, _Line]) -> None:
        self.key, self.release, self.lines = f"\x1fage of {queue}", release, lines  # no key of a task
        late = release.now - timedelta(seconds=settings().AGEING)
        rows = Share.objects.using(lifecycle.alias()).filter(queue=queue, is_open=True)
        self.oldest: list[tuple[datetime, int]] = []
        for priority in lines:
            since = rows.filter(priority=priority).order_by("open_at").values_list("open_at", flat=True).first()
            if since is not None and since <= late:
                self.oldest.append((since, priority))
        self.oldest.sort()
        self.before = self.saved = 0.0
        if self.oldest:
            row = BucketRow.objects.using(lifecycle.alias()).filter(pk=self.key).first()
            self.before = self.saved = row.tokens if row else 0.0

    def turn(self) -> _Line | None:
        """The line whose turn it is out of its order, None while none is."""
        if self.saved < ONE_IN - 1:
            return None
        top = next((p for p, line in self.lines.items() if line.next()), None)
        return next(
            (self.lines[p] for _, p in self.oldest if top is not None and p > top and self.lines[p].next()), None
        )

    def note(self, line: _Line, aged: bool) -> None:
        """A job of this line goes."""
        if aged:
            self.saved = 0.0
        elif any(priority > line.priority for _, priority in self.oldest):
            self.saved = min(self.saved + 1, ONE_IN - 1)

    def write(self) -> None:
        """Keep the count for the next release."""
        if self.saved != self.before:
            BucketRow.objects.using(lifecycle.alias()).update_or_create(
                key=self.key, defaults={"tokens": self.saved, "filled_at": self.release.now}
            )


# --- The rows -----------------------------------------------------------------------------------------


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


def _first_jobs(lane: str, others: str = "", columns: str = "id") -> str:
    return (
        f"SELECT {columns} FROM jobs_job WHERE lane = {lane} AND {_WAITS} AND due_at <= %s "
        f"AND cancel_requested_at IS NULL {others} ORDER BY due_at, id"
    )


def _reason(closed_by: Closed | Gathering | str) -> str:
    if isinstance(closed_by, Gathering):
        return chunks.GATHERS
    return closed_by if isinstance(closed_by, str) else closed_by.by.name


def _open_lanes_of(job_ids: Sequence[Any]) -> None:
    """See to it that the lanes of these jobs are known, with their shares."""
    for part in _parts(job_ids):
        # By their ids, whatever PostgreSQL believes of how many wait.
        these = (
            "WITH j AS MATERIALIZED (SELECT lane, queue, priority, tenant, task, bound, state, finished_at "
            f"FROM jobs_job WHERE id IN ({', '.join(['%s'] * len(part))})) "
        )
        _run(
            f"{these} INSERT INTO jobs_share (queue, priority, tenant, turn, is_open) "
            f"SELECT DISTINCT j.queue, j.priority, j.tenant, 0.0, {_FALSE[lifecycle.database().vendor]} FROM j "
            f"WHERE {_WAITS} ON CONFLICT DO NOTHING", part,
        )  # fmt: skip
        # The first job of each lane by the index, never by one look at all of the backlog.
        head = f"(SELECT MIN(k.due_at) FROM jobs_job k WHERE k.lane = j.lane AND {_WAITS})"
        rows = _all(
            f"{these} INSERT INTO jobs_lane (id, share_id, task, bound, priority, waits_on, turn, head_at, open_at) "
            "SELECT x.lane, s.id, x.task, x.bound, x.priority, '', 0, x.head, x.head FROM (SELECT DISTINCT "
            f"j.lane, j.queue, j.priority, j.tenant, j.task, j.bound, {head} AS head FROM j WHERE {_WAITS}) x "
            "JOIN jobs_share s ON s.queue = x.queue AND s.priority = x.priority AND s.tenant = x.tenant "
            "WHERE x.head IS NOT NULL ON CONFLICT (id) DO UPDATE SET head_at = excluded.head_at, "
            f"open_at = CASE WHEN jobs_lane.waits_on IN ('', '{chunks.GATHERS}') THEN excluded.open_at "
            "ELSE jobs_lane.open_at END RETURNING share_id", part,
        )  # fmt: skip
        _renew_shares([row[0] for row in rows])


_FALSE = {"postgresql": "false", "sqlite": "0"}


def _open_lanes(ids: Sequence[str]) -> None:
    for part in _parts(ids):
        marks = ", ".join(["%s"] * len(part))
        rows = _all(
            f"UPDATE jobs_lane SET waits_on = '', open_at = head_at WHERE id IN ({marks}) RETURNING share_id", part
        )
        _renew_shares([row[0] for row in rows])


def _renew_lanes(ids: Sequence[str]) -> None:
    """Lanes are open from when their first job is due; one without jobs is no more."""
    for part in _parts(ids):
        marks = ", ".join(["%s"] * len(part))
        _run(f"DELETE FROM jobs_lane WHERE id IN ({marks}) AND {_HEAD} IS NULL", part)
        _run(f"UPDATE jobs_lane SET head_at = {_HEAD}, open_at = {_HEAD}, waits_on = '' WHERE id IN ({marks})", part)


def _renew_heads(ids: Sequence[str]) -> None:
    for part in _parts(ids):
        marks = ", ".join(["%s"] * len(part))
        _run(f"UPDATE jobs_lane SET head_at = COALESCE({_HEAD}, head_at) WHERE id IN ({marks})", part)


# For each row by the index, never by one look at all jobs: PostgreSQL knows little of how many jobs wait just now.
_HEAD = f"(SELECT MIN(j.due_at) FROM jobs_job j WHERE j.lane = jobs_lane.id AND {_WAITS})"


def _renew_shares(ids: Sequence[int]) -> None:
    """Shares are open from when one of their lanes is; one without lanes is no more."""
    first = "(SELECT MIN(l.open_at) FROM jobs_lane l WHERE l.share_id = jobs_share.id)"
    for part in _parts(sorted(set(ids))):
        marks = ", ".join(["%s"] * len(part))
        # A subquery for each row, which the planner cannot turn into one look at all of the backlog.
        _run(f"DELETE FROM jobs_share WHERE id IN ({marks}) AND {first} IS NULL", part)
        _run(
            f"UPDATE jobs_share SET open_at = {first}, is_open = (is_open AND {first} <= {lifecycle.clock_sql()}) "
            f"WHERE id IN ({marks})", part,
        )  # fmt: skip


def _locked() -> bool:
    """Whether this transaction is the one that releases; on SQLite, one transaction writes at a time."""
    if lifecycle.database().vendor != "postgresql":
        return True
    return bool(_one("SELECT pg_try_advisory_xact_lock(%s)", [LOCK])[0])


def _parts(whole: Sequence[Any]) -> Iterable[list[Any]]:
    for start in range(0, len(whole), SLICE):
        yield list(whole[start : start + SLICE])


def _one(sql: str, parameters: Sequence[Any] = ()) -> Any:
    return _all(sql, parameters)[0]


def _all(sql: str, parameters: Sequence[Any] = ()) -> list[Any]:
    with lifecycle.database().cursor() as cursor:
        cursor.execute(sql, list(parameters))
        return list(cursor.fetchall())


def _run(sql: str, parameters: Sequence[Any] = ()) -> None:
    with lifecycle.database().cursor() as cursor:
        cursor.execute(sql, list(parameters))


def _many(sql: str, rows: Sequence[Sequence[Any]]) -> None:
    if rows:
        with lifecycle.database().cursor() as cursor:
            cursor.executemany(sql, list(rows))
