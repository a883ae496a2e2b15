"""The line of a queue and priority: whose turn it is, and which of his jobs comes first; read as far as need be."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Protocol
from uuid import UUID

from jobs import lanerows, lifecycle, limits, sql
from jobs.allowance import Closed
from jobs.chunks import Gathering
from jobs.conf import current as settings
from jobs.limits import Bind
from jobs.models import Bucket as BucketRow
from jobs.models import Share

LOOKS = 500  # shares that one release looks at, of a queue and priority
AT_LEAST = 200  # of them, where those that it looked at first may not go
ONE_IN = 8  # releases of a queue that go to whoever waits below for too long


@dataclass(order=True, slots=True)
class InLane:
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
class InShare:
    """A share, while its lanes are served: the one with the lowest turn comes first."""

    turn: float
    since: Any
    first: str
    id: int = field(compare=False)
    tenant: str = field(compare=False)
    weight: float = field(compare=False)
    lanes: list[InLane] = field(compare=False, default_factory=list)
    seen: dict[str, InLane] = field(compare=False, default_factory=dict)
    all_read: bool = field(compare=False, default=False)
    before: float = field(compare=False, default=0.0)  # its turn, as it was read
    crowded: bool = field(compare=False, default=False)  # whether lanes are open beyond those that were read


def in_lane(
    head: Any, lane_id: str, task: str, binds: tuple[Bind, ...], gathers: Bind | None, job_id: Any
) -> InLane:  # fmt: skip
    """A lane as it was read, with its first job."""
    jobs = deque([(head, UUID(str(job_id)))] if job_id is not None else [])
    return InLane(head, str(job_id or ""), lane_id, task, binds, jobs, all_read=job_id is None, gathers=gathers)


class Chooser(Protocol):
    """The release for which lines are read."""

    now: Any
    at: Any
    chosen: dict[UUID, InLane]
    chunks: list[list[UUID]]
    looked_at: list[InShare]

    def binds(self, bound: str, queue: str, task: str, tenant: str) -> tuple[Bind, ...]:
        """The keys of a job."""

    def weight(self, tenant: str) -> float:
        """How many turns a tenant has for one of another."""

    def admit(self, lane: InLane) -> bool:
        """Take what the next job of a lane needs, all or nothing."""

    def learn_all(self, lanes: Iterable[InLane]) -> None:
        """Read the keys of many lanes at once."""


class Line:
    """The open shares of a queue and priority, by turn."""

    def __init__(self, release: Chooser, queue: str, priority: int, room: int) -> None:
        self.release, self.queue, self.priority, self.room = release, queue, priority, room
        self._further = False  # whether shares are open beyond those that were read
        self._left = False  # whether lanes were left to the next release
        self._crowded = False  # whether a share has more lanes than are read at once, and none of those may go
        self._heap: list[InShare] | None = None
        self._read_before: list[int] = []

    def next(self) -> bool:
        """Whether a job may be there to be taken."""
        if self._heap is None:
            self._heap = self._read(min(LOOKS, self.room + 20))
        while not self._heap and self._further and not self._left and len(self._read_before) < AT_LEAST:
            self._heap = self._read(AT_LEAST - len(self._read_before))
        return bool(self._heap)

    @property
    def more(self) -> bool:
        """Whether something is open at which nobody has looked."""
        return self._further or self._left or self._crowded

    def take(self) -> UUID | None:
        """The next job of the share whose turn it is; None where that has none that may go."""
        if not self.next():
            return None
        assert self._heap is not None
        share = self._heap[0]
        lane = self._lane(share)
        if lane is None:
            self._crowded = self._crowded or share.crowded
            heapq.heappop(self._heap)
            return None
        if not self.release.admit(lane):
            self._left = self._left or lane.closed is None
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

    def _lane(self, share: InShare) -> InLane | None:
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

    def _read(self, most: int) -> list[InShare]:
        """The first shares that were not read before, each with its first lane, and the first job of that."""
        at, before = self.release.at, self._read_before
        others = f"AND id NOT IN ({', '.join(['%s'] * len(before))}) " if before else ""
        rows = sql.rows(
            "SELECT s.id, s.turn, s.open_at, s.tenant, l.id, l.head_at, l.task, l.bound, j.id, (SELECT COUNT(*) FROM "
            "(SELECT 1 FROM jobs_lane o WHERE o.share_id = s.id AND o.open_at <= %s LIMIT 2) few) FROM "
            f"(SELECT * FROM jobs_share WHERE is_open AND queue = %s AND priority = %s {others}"
            f"ORDER BY turn, open_at LIMIT {most}) s "
            "LEFT JOIN jobs_lane l ON l.id = (SELECT id FROM jobs_lane WHERE share_id = s.id AND open_at <= %s "
            "ORDER BY open_at LIMIT 1) "
            f"LEFT JOIN jobs_job j ON j.id = ({lanerows.first_jobs('l.id')} LIMIT 1) ORDER BY s.turn, s.open_at",
            [at, self.queue, self.priority, *before, at, at],
        )
        shares, self._further = [], len(rows) == most
        for share_id, turn, since, tenant, lane_id, head, task, bound, job_id, lanes in rows:
            first = str(job_id or "")
            share = InShare(turn, since, first, share_id, tenant, self.release.weight(tenant), before=turn)
            share.all_read = lanes < 2
            if lane_id is not None:
                binds = self.release.binds(bound, self.queue, task, tenant)
                lane = in_lane(head, lane_id, task, binds, limits.gathers(bound), job_id)
                share.lanes, share.seen = [lane], {lane_id: lane}
            shares.append(share)
        self._read_before += [share.id for share in shares]
        self.release.looked_at += shares
        self.release.learn_all(lane for share in shares for lane in share.lanes)
        heapq.heapify(shares)
        return shares

    def _read_lanes(self, share: InShare) -> None:
        """Further lanes of a share."""
        marks = ", ".join(["%s"] * len(share.seen))
        others = f"AND l.id NOT IN ({marks})" if share.seen else ""
        rows = sql.rows(
            f"SELECT l.id, l.head_at, l.task, l.bound, ({lanerows.first_jobs('l.id')} LIMIT 1) FROM jobs_lane l "
            f"WHERE l.share_id = %s AND l.open_at <= %s {others} ORDER BY l.open_at LIMIT {sql.SLICE}",
            [self.release.at, share.id, self.release.at, *share.seen],
        )
        share.crowded = len(rows) == sql.SLICE
        share.all_read = not share.crowded or len(share.seen) > sql.SLICE
        for lane_id, head, task, bound, job_id in rows:
            binds = self.release.binds(bound, self.queue, task, share.tenant)
            share.seen[lane_id] = lane = in_lane(head, lane_id, task, binds, limits.gathers(bound), job_id)
            heapq.heappush(share.lanes, lane)
        self.release.learn_all(share.lanes)

    def _read_jobs(self, lane: InLane) -> bool:
        """Further jobs of a lane; False when there are none."""
        others = f"AND id NOT IN ({', '.join(['%s'] * len(lane.chosen))})" if lane.chosen else ""
        chosen = [lifecycle.prepared("id", job_id) for job_id in lane.chosen]
        rows = sql.rows(
            f"{lanerows.first_jobs('%s', others, 'id, due_at')} LIMIT {min(sql.SLICE, self.room)}",
            [lane.id, self.release.at, *chosen],
        )
        lane.jobs.extend((due_at, UUID(str(job_id))) for job_id, due_at in rows)
        lane.all_read = not rows
        if rows:
            lane.head, lane.first = rows[0][1], str(rows[0][0])
        return bool(rows)


class Age:
    """One in ``ONE_IN`` releases of a queue, for the line below whose first share has waited for too long."""

    def __init__(self, release: Chooser, queue: str, lines: dict[int, Line]) -> None:
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

    def turn(self) -> Line | None:
        """The line whose turn it is out of its order, None while none is."""
        if self.saved < ONE_IN - 1:
            return None
        top = next((p for p, line in self.lines.items() if line.next()), None)
        return next(
            (self.lines[p] for _, p in self.oldest if top is not None and p > top and self.lines[p].next()), None
        )

    def note(self, line: Line, aged: bool) -> None:
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
