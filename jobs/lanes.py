"""Who goes next, of the jobs that something constrains: one place decides it, for one release at a time.

How it chooses, what it counts and what a crash leaves behind stands in docs/explanation/order.md.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from uuid import UUID
from zlib import crc32

from django.db import transaction
from django.db.models import Max, QuerySet, Value
from django.db.models.functions import Greatest

from jobs import allowed, chunks, circuits, floods, lanerows, lifecycle, limits, sql, standing
from jobs.allowance import Allowance, Bucket, Closed
from jobs.chunks import Gathering
from jobs.conf import current as settings
from jobs.flow import Flow
from jobs.limits import Bind, Kind, Numbers
from jobs.line import Age, InLane, InShare, Line
from jobs.models import Allotment, Arrival, Job, Lane, Pause, Share, Slot, Worker
from jobs.models import Bucket as BucketRow
from jobs.states import Priority, State

LOCK = 7_212_340_512_845_001  # of PostgreSQL's advisory locks, for the length of a transaction
ARRIVALS = 1000  # that one release takes in at once
COUNTING = 0.2  # seconds in which one release looks at lanes that gather
TAKING_IN = 0.2  # seconds in which it takes in more of them
PARKED = timedelta(seconds=60)  # the same of one that waits for a circuit, which tells
ALL_AT_ONCE = 1000  # lanes that are opened in one release when a circuit closes
RECHECK = timedelta(seconds=5)  # after which a closed lane is looked at, even if nobody opened it
FEW = 100  # of those that wait for the same thing; of the others, each lane is looked at
LATE = timedelta(minutes=5)  # after that time
OPENED = 1000  # shares whose time has come that one release opens
PAUSED = "pause"

_IN_FLIGHT = f"('{State.RESERVED.value}', '{State.RUNNING.value}')"
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
    row = sql.one(
        "SELECT EXISTS(SELECT 1 FROM jobs_arrival) OR EXISTS(SELECT 1 FROM jobs_slot "
        f"WHERE NOT ({counts()})) OR {chunks.CHANGED} OR {by_time.format(now)}, "
        "EXISTS(SELECT 1 FROM jobs_share WHERE is_open) OR EXISTS(SELECT 1 FROM jobs_lane WHERE NOT (waits_on = '')), "
        f"EXISTS(SELECT 1 FROM jobs_slot), {by_time.format(soon)}"
    )
    return bool(row[0]), bool(row[1]), bool(row[2]), bool(row[3])


def counts() -> str:
    """SQL that holds for a slot that counts: its job is under way, or was ended by force and may run on for a while."""
    return f"{_STATE.format(now=lifecycle.clock_sql())} IN {_IN_FLIGHT}"


def unfinished() -> bool:
    """Whether the last release of this process has not looked at all that is open."""
    return bool(_unfinished)


def keep_still() -> None:
    """Wait for the release that runs, and let none begin before the transaction around this ends.

    Who opens lanes at the same time as a release takes their rows in another order: one of the two would be undone.
    """
    if lifecycle.database().vendor == "postgresql":
        sql.rows("SELECT pg_advisory_xact_lock(%s)", [LOCK])


def reopen(waits_on: str = "") -> None:
    """Look again at the lanes that are closed for this reason, or for any: what closed them has changed."""
    rows = Lane.objects.using(lifecycle.alias()).exclude(waits_on="")
    ids = [row.pk for row in (rows.filter(waits_on=waits_on) if waits_on else rows).only("pk")]
    lanerows.open_lanes(ids)


def mend(limit: int = 1000) -> int:
    """Take in jobs that wait in a lane of which nothing is known, or not that it has them; return how many lanes.

    It should find none.

    Forget the tokens of keys that have all they can have.
    """
    found = sql.rows(
        f"SELECT MIN(CAST(id AS varchar(36))) FROM jobs_job WHERE {lanerows.WAITS} AND due_at IS NOT NULL "
        "AND NOT EXISTS (SELECT 1 FROM jobs_lane l WHERE l.id = jobs_job.lane AND l.head_at <= jobs_job.due_at) "
        f"GROUP BY lane LIMIT {int(limit)}"
    )
    ids = [UUID(str(row[0])) for row in found]
    Arrival.objects.using(lifecycle.alias()).bulk_create([Arrival(job_id=job_id) for job_id in ids])
    full = BucketRow.objects.using(lifecycle.alias()).filter(wake_at=None, full_at__lt=lifecycle.database_now())
    full.delete()
    circuits.forget()
    return len(ids)


# --- One release ------------------------------------------------------------------------------------


class Release:
    """One release, inside of its transaction."""

    def __init__(self, limit: int) -> None:
        self.limit, self.now = limit, lifecycle.database_now()
        if not self.now.microsecond:
            # SQLite compares times as text, and Django writes a whole second shorter: before all of that second.
            self.now += timedelta(microseconds=1)
        self.at = lifecycle.prepared("due_at", self.now)
        self.said = standing.said_now()
        self.allowance = Allowance(self.now, self.in_force)
        self.chosen: dict[UUID, InLane] = {}
        self.overdue: set[UUID] = set()
        self.flooded: set[str] = set()
        self.looked_at: list[InShare] = []
        self.to_wake: dict[str, Bind] = {}
        self.paused: set[tuple[str, str]] = set()
        self.chunks: list[list[UUID]] = []
        self.counting_until: float | None = None

    def run(self) -> list[Job]:
        """Choose, and write what was chosen."""
        _unfinished.clear()
        if standing.enforce(self.said):
            _unfinished.append("limits that were set")
        freed = self._give_up_slots()
        self._take_in(freed)
        self.paused = set(Pause.objects.using(lifecycle.alias()).values_list("kind", "name"))
        self._wake(freed)
        self._open_shares()
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
        rows = sql.rows(f"DELETE FROM jobs_slot WHERE NOT ({counts()}) RETURNING job_id, key")
        return [*apart, *((UUID(str(job_id)), key) for job_id, key in rows)]

    def _take_in(self, freed: Sequence[tuple[UUID, str]]) -> None:
        """Open the lanes of the jobs that have come, or come back; of a crowd, as many as can be in a moment."""
        lanerows.open_lanes_of([lifecycle.prepared("id", job_id) for job_id, key in freed if not key])
        until, came = time.monotonic() + TAKING_IN, ARRIVALS
        while came == ARRIVALS and time.monotonic() < until:
            rows = sql.rows(
                f"DELETE FROM jobs_arrival WHERE id IN (SELECT id FROM jobs_arrival ORDER BY id LIMIT {ARRIVALS}) "
                "RETURNING job_id"
            )
            came = len(rows)
            lanerows.open_lanes_of([row[0] for row in rows])

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
        # What is paused would only be in the way of the others; it is looked at again when it is resumed.
        for kind, column in ((Pause.Kind.QUEUE, "share__queue"), (Pause.Kind.TASK, "task")):
            if names := [name for paused, name in self.paused if paused == kind]:
                rows = rows.exclude(**{f"{column}__in": names})
        ids = list(rows.order_by("priority", "turn", "head_at").values_list("pk", flat=True)[:many])
        lanerows.open_lanes(ids)
        return len(ids)

    def _open_shares(self) -> None:
        """Open shares whose time has come, at the lowest turn of those that are open: nobody saves turns up."""
        rows = Share.objects.using(lifecycle.alias())
        due = rows.filter(is_open=False, open_at__lte=self.now).order_by("open_at")
        lines: defaultdict[tuple[str, int], list[int]] = defaultdict(list)
        for pk, queue, priority in due.values_list("pk", "queue", "priority")[:OPENED]:
            lines[queue, priority].append(pk)
        for (queue, priority), ids in lines.items():
            lowest = self._turn_of(rows.filter(queue=queue, priority=priority))
            for part in sql.parts(ids):
                rows.filter(pk__in=part).update(is_open=True, turn=Greatest("turn", Value(lowest)))

    def _turn_of(self, peers: QuerySet[Share]) -> float:
        """The lowest turn of the open shares of a line; where all wait for a limit, that of whoever went last."""
        lowest = peers.filter(is_open=True).order_by("turn").values_list("turn", flat=True).first()
        if lowest is not None:
            return lowest
        weighed = [name for kind, name in self.said if kind == Allotment.Kind.WEIGHT]
        highest = peers.exclude(tenant__in=weighed).aggregate(turn=Max("turn"))["turn"] or 0.0
        others = peers.filter(tenant__in=weighed).values_list("tenant", "turn")
        return max(0.0, highest - 1.0, *(turn - 1.0 / self.weight(tenant) for tenant, turn in others))

    def _take_back_overtaken(self) -> None:
        """Take back what has lain in the broker for too long behind more urgent jobs: it goes again, before them.

        Its message is refused then, or taken for the new one.
        """
        late = lifecycle.prepared("due_at", self.now - timedelta(seconds=settings().AGEING))
        rows = sql.rows(
            "SELECT j.id FROM jobs_slot s JOIN jobs_job j ON j.id = s.job_id WHERE s.key = '' "
            f"AND j.state = '{State.RESERVED.value}' AND j.sent_at < %s AND EXISTS (SELECT 1 FROM jobs_slot t "
            "JOIN jobs_job k ON k.id = t.job_id WHERE t.key = '' AND k.queue = j.queue AND k.priority < j.priority)",
            [late],
        )
        for part in sql.parts([row[0] for row in rows]):
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
        for queue, state, many in sql.rows(
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
        if room > 0:
            self._fill(queue, room)
        # A rate of the whole queue closes no lane: that its next token has come is to be known all the same.
        self.to_wake |= {b.key: b for b in whole if b.kind is Kind.TOKENS and self.allowance.refusal([b])}

    def _fill(self, queue: str, room: int) -> None:
        lines = {p.value: Line(self, queue, p.value, room) for p in Priority}
        if lines[Priority.NORMAL].next() and floods.lies_before(queue):
            self.flooded.add(queue)
        age = Age(self, queue, lines)
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

    def admit(self, lane: InLane) -> bool:
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

    def _gathered(self, lane: InLane, bind: Bind) -> bool:
        """Whether jobs of a lane go together now; else it is closed until they may, or left to the next release."""
        if self.counting_until is None:
            self.counting_until = time.monotonic() + COUNTING
        elif time.monotonic() > self.counting_until:
            return False
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
        for part in sql.parts(slots):
            self.allowance.used |= dict.fromkeys(part, 0)
            marks = ", ".join(["%s"] * len(part))
            used = sql.rows(f"SELECT key, COUNT(*) FROM jobs_slot WHERE key IN ({marks}) GROUP BY key", part)
            self.allowance.used |= {key: int(many) for key, many in used}
        for part in sql.parts(sorted({bind.key for bind in unknown if bind.kind is Kind.CIRCUIT})):
            self.allowance.circuits |= circuits.passages(part, self.now)
        tokens = {bind.key: bind for bind in unknown if bind.kind is Kind.TOKENS}
        for part in sql.parts(sorted(tokens)):
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
        return allowed.in_code().get((bind.kind, bind.rule), bind.numbers)

    def learn_all(self, lanes: Iterable[InLane]) -> None:
        """Read the keys of many lanes at once."""
        self.learn([bind for lane in lanes for bind in lane.binds])

    # --- Writing ---

    def _write(self) -> list[Job]:
        jobs = chunks.form(self.chunks, lifecycle.reserve(list(self.chosen))) if self.chosen else []
        slots = [
            Slot(job_id=job.pk, key=key) for job in jobs for key in ("", *self._slots_of(self.chosen[job.pk].binds))
        ]
        Slot.objects.using(lifecycle.alias()).bulk_create(slots, ignore_conflicts=True, batch_size=sql.SLICE)
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
        turns = [(share.turn, share.id) for share in self.looked_at if share.turn != share.before]
        sql.many("UPDATE jobs_share SET turn = %s WHERE id = %s", turns)
        closed = [(share, lane, lane.closed) for share, lane in lanes if lane.closed is not None]
        lanerows.renew_lanes([lane.id for _, lane in lanes if lane.closed is None])
        lanerows.renew_heads([lane.id for _, lane, _ in closed if lane.chosen])
        crowds = _crowds({_reason(closed_by) for _, _, closed_by in closed if not isinstance(closed_by, Gathering)})
        alike: defaultdict[tuple[str, datetime, float], list[str]] = defaultdict(list)
        for share, lane, closed_by in closed:
            reason = _reason(closed_by)
            alike[reason, self._recheck(closed_by, lane.id, crowds[reason]), share.turn].append(lane.id)
        for (reason, again, turn), ids in alike.items():
            lanerows.close_lanes(ids, reason, again, turn)
        for _, _, closed_by in closed:
            if isinstance(closed_by, Closed) and closed_by.by.kind is Kind.TOKENS and closed_by.until is not None:
                self.to_wake[closed_by.by.key] = closed_by.by
        lanerows.renew_shares([share.id for share in self.looked_at])

    def _recheck(self, closed_by: Closed | Gathering | str, lane: str, crowd: int) -> datetime:
        """When a closed lane is looked at, even if nobody opened it: of a crowd that waits for the same, a few soon."""
        if isinstance(closed_by, Gathering):
            return closed_by.until
        if isinstance(closed_by, Closed) and closed_by.by.kind is Kind.CIRCUIT:
            since: datetime = closed_by.until or self.now
            return since + PARKED
        again: datetime = self.now + (LATE if crc32(lane.encode()) % (1 + crowd // FEW) else RECHECK)
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
                some, update_conflicts=True, unique_fields=["key"], update_fields=names, batch_size=sql.SLICE
            )


def _reason(closed_by: Closed | Gathering | str) -> str:
    if isinstance(closed_by, Gathering):
        return chunks.GATHERS
    return closed_by if isinstance(closed_by, str) else closed_by.by.name


def _crowds(reasons: Iterable[str]) -> Counter[str]:
    """How many lanes wait for each of these already, counted as far as it matters."""
    most = FEW * int(LATE / RECHECK)
    one = f"SELECT 1 FROM jobs_lane l WHERE l.waits_on = n.name AND NOT (l.waits_on = '') LIMIT {most}"
    found: Counter[str] = Counter()
    for part in sql.parts(sorted(reasons)):
        names = ", ".join(["(%s)"] * len(part))
        counted = f"WITH n (name) AS (VALUES {names}) SELECT name, (SELECT COUNT(*) FROM ({one}) alike) FROM n"
        found |= Counter(dict(sql.rows(counted, part)))
    return found


def _locked() -> bool:
    """Whether this transaction is the one that releases; on SQLite, one transaction writes at a time."""
    if lifecycle.database().vendor != "postgresql":
        return True
    return bool(sql.one("SELECT pg_try_advisory_xact_lock(%s)", [LOCK])[0])
