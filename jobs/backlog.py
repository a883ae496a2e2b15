"""What waits in a queue: how many, whose, since when, and for what. Reads only, at a cost that has a bound.

Lanes are read, not jobs: the jobs of a lane wait for one thing. Of a lane, jobs are counted up to a bound.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from jobs import lifecycle
from jobs.models import Job
from jobs.states import WAITING, Priority

MOST = 10_000  # jobs that are counted of one lane, or of one kind; what has more is told as "more than"
FEW = 20  # jobs that are counted of each lane at first
DEEP = 20  # lanes that have more, which are counted further
LANES = 12_000  # lanes of a queue of which the jobs are counted
ALL_LANES = 50_000  # lanes of a queue that are looked at
LANES_SHOWN = 20  # lanes of one share

_STATES = ", ".join(f"'{state.value}'" for state in sorted(WAITING))
_IN_LINE = f"finished_at IS NULL AND NOT (lane = '') AND state IN ({_STATES})"


@dataclass(frozen=True, slots=True)
class Number:
    """A count that may have stopped at its bound (``more``), or be an estimate (``about``)."""

    of: int
    more: bool = False
    about: bool = False

    def __str__(self) -> str:
        return f"{'more than ' if self.more else 'about ' if self.about else ''}{self.of:,}"

    def __add__(self, other: Number) -> Number:
        return Number(self.of + other.of, self.more or other.more, self.about or other.about)

    def __bool__(self) -> bool:
        return self.of > 0


NONE = Number(0)


@dataclass(frozen=True, slots=True)
class InLane:
    """A lane as it waits."""

    id: str
    share: int
    queue: str
    priority: int
    tenant: str
    task: str
    bound: str
    waits_on: str
    head_at: datetime
    jobs: Number = NONE


@dataclass(slots=True)
class Wait:
    """The lanes of a queue that wait for one thing: a key, a pause; or, where ``on`` is empty, their turn."""

    on: str
    lanes: int = 0
    jobs: Number = NONE
    tenants: set[str] = field(default_factory=set)
    tasks: dict[str, Number] = field(default_factory=dict)
    first: InLane | None = None


def waits(queue: str) -> list[Wait]:
    """For what the due jobs of a queue wait, most jobs first; those that nothing constrains are not among them."""
    now = lifecycle.prepared("due_at", lifecycle.database_now())
    seen = lanes_of(_lanes_where("s.queue = %s AND l.head_at <= %s", LANES), [queue, now], due_only=True)
    found: dict[str, Wait] = {}
    for lane in seen:
        wait = found.setdefault(lane.waits_on, Wait(lane.waits_on))
        wait.lanes += 1
        wait.jobs += lane.jobs
        wait.tenants.add(lane.tenant)
        wait.tasks[lane.task] = wait.tasks.get(lane.task, NONE) + lane.jobs
        if wait.first is None or lane.head_at < wait.first.head_at:
            wait.first = lane
    if len(seen) == LANES:
        _estimate_the_rest(queue, now, found)
    return sorted(found.values(), key=lambda wait: (-wait.jobs.of, wait.on))


def _estimate_the_rest(queue: str, now: Any, found: dict[str, Wait]) -> None:
    """There are more lanes than were counted: take those that were for a sample."""
    rows = _all(
        "SELECT x.waits_on, COUNT(*) FROM (SELECT l.waits_on FROM jobs_share s JOIN jobs_lane l ON l.share_id = s.id "
        f"WHERE s.queue = %s AND l.head_at <= %s LIMIT {ALL_LANES}) x GROUP BY x.waits_on",
        [queue, now],
    )
    cut = sum(int(many) for _, many in rows) >= ALL_LANES
    for on, many in rows:
        wait = found.setdefault(on, Wait(on))
        per_lane = wait.jobs.of / wait.lanes if wait.lanes else 1.0
        wait.jobs = Number(round(per_lane * int(many)), more=wait.jobs.more or cut, about=int(many) > wait.lanes)
        wait.lanes = int(many)


def lanes_of_shares(shares: Sequence[int]) -> dict[int, list[InLane]]:
    """The first lanes of some shares, with how many jobs wait in each."""
    found: dict[int, list[InLane]] = {share: [] for share in shares}
    one = "SELECT * FROM (SELECT l.id FROM jobs_lane l WHERE l.share_id = %s ORDER BY l.open_at LIMIT {}) x{}"
    if shares:
        ids = " UNION ALL ".join(one.format(LANES_SHOWN, number) for number in range(len(shares)))
        for lane in lanes_of(_lanes_where(f"l.id IN ({ids})"), list(shares)):
            found[lane.share].append(lane)
    return found


def lanes_of_share(share: int, most: int) -> list[InLane]:
    """The lanes of one share, those first that are looked at next."""
    return lanes_of(_lanes_where("l.share_id = %s", most, order="ORDER BY l.open_at"), [share])


def _lanes_where(where: str, most: int = ALL_LANES, order: str = "") -> str:
    return (
        "SELECT l.id, l.share_id, s.queue, s.priority, s.tenant, l.task, l.bound, l.waits_on, l.head_at "
        f"FROM jobs_share s JOIN jobs_lane l ON l.share_id = s.id WHERE {where} {order} LIMIT {int(most)}"
    )


def lanes_of(sql: str, parameters: Sequence[Any], *, due_only: bool = False) -> list[InLane]:
    """The lanes that a query finds, with how many jobs wait in each: all up to ``FEW``, some up to ``MOST``."""
    due = f"AND j.due_at <= {lifecycle.clock_sql()}" if due_only else "AND j.due_at IS NOT NULL"
    rows = _all(
        f"SELECT y.*, ({_count('y.id', due, FEW)}) FROM ({sql}) y",
        parameters,
    )
    deep = [row[0] for row in rows if row[-1] > FEW][:DEEP]
    counted = {}
    if deep:
        marks = ", ".join(["%s"] * len(deep))
        counted = dict(
            _all(f"SELECT l.id, ({_count('l.id', due, MOST)}) FROM jobs_lane l WHERE l.id IN ({marks})", deep)
        )
    moment = _as_moment()
    found = []
    for name, share, queue, priority, tenant, task, bound, waits_on, head_at, first_few in rows:
        jobs = _number(counted.get(name, first_few), name in counted)
        place = (share, queue, priority, tenant, task, bound, waits_on)
        found.append(InLane(name, *place, moment(head_at), jobs))
    return found


def _count(lane: str, due: str, most: int) -> str:
    """SQL for how many jobs wait in a lane. For each by its index, whatever PostgreSQL believes of the backlog."""
    return (
        f"SELECT COUNT(*) FROM (SELECT 1 FROM jobs_job j WHERE j.lane = {lane} AND j.finished_at IS NULL "
        f"AND NOT (j.lane = '') AND j.state IN ({_STATES}) {due} ORDER BY j.due_at LIMIT {most + 1}) z"
    )


def _number(counted: int, deeply: bool) -> Number:
    most = MOST if deeply else FEW
    return Number(min(counted, most), more=counted > most)


def _as_moment() -> Callable[[Any], Any]:
    """What makes a time of what the database gives: SQLite's are texts."""
    column, database = Job._meta.get_field("due_at").get_col("jobs_job"), lifecycle.database()
    converters = [*database.ops.get_db_converters(column), *column.get_db_converters(database)]

    def moment(value: Any) -> Any:
        for convert in converters:
            value = convert(value, column, database)
        return value

    return moment


# --- What is in no lane -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Later:
    """Jobs of a queue that are due later: how many, and when the first is."""

    jobs: Number
    first_at: datetime | None


def later(queue: str) -> Later:
    """The jobs of a queue whose time has not come."""
    now, jobs, first = lifecycle.database_now(), NONE, list[datetime]()
    for priority in Priority:
        rows = _unfinished(queue, priority).filter(state__in=WAITING, due_at__gt=now).order_by("due_at")
        jobs += _bounded(rows)
        first += [at for at in rows.values_list("due_at", flat=True)[:1] if at is not None]
    return Later(jobs, min(first, default=None))


def for_others(queue: str) -> Number:
    """The jobs of a queue that wait for other jobs."""
    return _without_time(queue, follows_id__isnull=False) + _without_time(
        queue, follows_id__isnull=True, waits_for_id__isnull=False
    )


def gathering(queue: str) -> Number:
    """The jobs of a queue that gather the calls of a burst."""
    return _without_time(queue, follows_id__isnull=True, waits_for_id__isnull=True)


def _without_time(queue: str, **which: Any) -> Number:
    jobs = NONE
    for priority in Priority:
        jobs += _bounded(_unfinished(queue, priority).filter(due_at__isnull=True, state__in=WAITING, **which))
    return jobs


def direct(queue: str) -> list[tuple[str, str, Number]]:
    """Due jobs that nothing constrains, and that wait all the same: by task and reason."""
    now = lifecycle.database_now()
    rows = _unfinished(queue, Priority.NORMAL).filter(state__in=WAITING, due_at__lte=now).order_by("due_at")
    counted: dict[tuple[str, str], int] = {}
    read = list(rows.values_list("task", "reason", "lane")[: MOST + 1])
    for task, reason, lane in read:
        if not lane:
            counted[task, reason] = counted.get((task, reason), 0) + 1
    more = len(read) > MOST
    return [(task, reason, Number(many, more=more)) for (task, reason), many in counted.items()]


def oldest(queue: str) -> datetime | None:
    """Since when the first of the due jobs of a queue waits."""
    now, first = lifecycle.database_now(), list[datetime]()
    for priority in Priority:
        rows = _unfinished(queue, priority).filter(due_at__lte=now).order_by("due_at")
        # Those that are reserved or run are few, and lie in between.
        waiting = (at for at, state in rows.values_list("due_at", "state")[:MOST] if state in WAITING)
        first += [at for at in [next(waiting, None)] if at is not None]
    return min(first, default=None)


def _unfinished(queue: str, priority: Priority) -> Any:
    return Job.objects.using(lifecycle.alias()).filter(finished_at__isnull=True, queue=queue, priority=priority.value)


def _bounded(rows: Any) -> Number:
    counted = len(rows.values_list("pk", flat=True)[: MOST + 1])
    return Number(min(counted, MOST), more=counted > MOST)


def _all(sql: str, parameters: Iterable[Any] = ()) -> list[Any]:
    with lifecycle.database().cursor() as cursor:
        cursor.execute(sql, list(parameters))
        return list(cursor.fetchall())
