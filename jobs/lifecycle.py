"""The one door for state: guarded moves in plain SQL. Whoever comes late changes nothing and is told so."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db import connections, models, router, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models.base import ModelState
from django.db.models.expressions import Col
from django.utils import timezone

from jobs import clock, insertion, outage, signals
from jobs.clock import NOW as NOW
from jobs.clock import Clock as Clock
from jobs.conf import current
from jobs.errors import MoveRefused
from jobs.models import Arrival, Attempt, Job
from jobs.statements import Statement
from jobs.states import FINAL, MOVES, WAITING, State


@dataclass(frozen=True, slots=True)
class Plus:
    """The column's own value, plus ``amount``."""

    amount: int


@dataclass(frozen=True, slots=True)
class Column:
    """The time that a column of the same row holds; by the clock, where it holds none."""

    name: str


@dataclass(frozen=True, slots=True)
class Completion:
    """That an attempt of a job completed it: what guards the move, and the result as JSON."""

    job_id: UUID
    attempt: int
    token: UUID
    result: str | None
    worker: str = ""
    pid: int | None = None
    started_at: datetime | None = None

    @classmethod
    def of(cls, job: Job, result: str | None) -> Completion:
        """That the attempt which holds this job completed it."""
        assert job.token is not None
        return cls(job.pk, job.attempt, job.token, result, job.worker, job.pid, job.started_at)

    def claimed(self) -> Job:
        """The job as its attempt claimed it, as far as that is known."""
        return Job(
            id=self.job_id, state=State.RUNNING, attempt=self.attempt, token=self.token, worker=self.worker,
            pid=self.pid, started_at=self.started_at,
        )  # fmt: skip


logger = logging.getLogger("jobs.lifecycle")

_NO_ERROR = {"error_type": "", "error_message": "", "traceback": ""}
_FAT = {"result", "error_message", "traceback", "bound"}
# What a job's message is made of, what guards its next move, and by what it is in order.
_SENDING = {
    "id", "task", "payload", "queue", "priority", "state", "delivery", "correlation_id", "parent_id", "root_id",
    "group_id", "group_index", "time_limit", "soft_time_limit", "due_at", "attempt", "sends", "losses", "bound",
}  # fmt: skip
SLICE = 1000  # ids that one statement names
BOUND, PROBE = "\x1fbound ", "\x1fprobe "  # what the keys of slots begin with that are those of circuits
LOCK_PATIENCE = 2.0  # seconds that an act on one job of many waits for a row that somebody locked


def alias() -> str:
    """The database that jobs live in."""
    return str(router.db_for_write(Job))


def database() -> BaseDatabaseWrapper:
    """The connection to the database that jobs live in."""
    return connections[alias()]


def insert(job: Job) -> bool:
    """Add a job's row; False when its id or its key is taken.

    Fields that hold a ``Clock`` are read off the database's clock.
    """
    connection = database()
    text, parameters = insertion.one(job, connection)
    with connection.cursor() as cursor:
        _inserting(text).run(connection, cursor, parameters)
        return bool(cursor.rowcount == 1)


@lru_cache(maxsize=512)
def _inserting(text: str) -> Statement:
    return Statement("insert", text)


def note_arrivals(jobs: Iterable[Job]) -> None:
    """Say that these jobs wait in their lanes, in the caller's transaction: of each lane, its first does."""
    first: dict[str, Job] = {}
    for job in jobs:
        if job.lane and job.due_at is not None:
            first.setdefault(job.lane, job)
    if first:
        Arrival.objects.using(alias()).bulk_create([Arrival(job_id=job.pk) for job in first.values()])


def insert_many(jobs: Sequence[Job]) -> int:
    """Add the rows of jobs in one statement and in this order, but for those whose id or key is taken; how many."""
    return _execute(*insertion.many(jobs, database()))


def inserted(jobs: Sequence[Job]) -> set[UUID]:
    """The ids of those jobs that have a row."""
    marks = ", ".join(["%s"] * len(jobs))
    with database().cursor() as cursor:
        cursor.execute(f"SELECT id FROM {_table()} WHERE id IN ({marks})", [_id(job.pk) for job in jobs])
        return {UUID(str(row[0])) for row in cursor.fetchall()}


def claim(
    job_id: UUID, *, token: UUID, worker: str, pid: int, lease: timedelta, breakers: bool = False
) -> Job | None:  # fmt: skip
    """Start the next attempt of a reserved job, if nothing speaks against it: return the row as it now is.

    With ``breakers``, its task has some, and no circuit of the job may be open.
    The commit of a first attempt does not wait for PostgreSQL's disk; see ``claim_again``.
    """
    connection = database()
    statement = _claiming(connection.vendor, lease, _durably() or connection.in_atomic_block, breakers)
    with connection.cursor() as cursor:
        statement.run(connection, cursor, [_id(token), worker, pid, _id(job_id)])
        row = cursor.fetchone()
    return None if row is None else as_job(row)


def claiming(lease: timedelta) -> Statement:
    """What ``claim`` says to PostgreSQL of a job that was never lost, for somebody else than who runs it.

    Its parameters are a token, the worker's name, a process id, a job's id.
    """
    return _claiming("postgresql", lease, _durably(), breakers=False, lost=False)


def _durably() -> bool:
    """Whether all claims wait for the disk."""
    # With one loss at most, a start that is forgotten would be one too many.
    return current().DURABLE_CLAIMS or current().MAX_LOSSES < 2


# Only the first start of a job may be forgotten, and only if a second one is allowed: what takes a whole machine down
# is sent again, and counts from then on. That of a job with limits must not be: who takes it back would free its slots.
_ASYNCHRONOUSLY = (
    "AND set_config('synchronous_commit', CASE WHEN attempt = 0 AND sends <= 1 AND max_attempts > 1 AND bound = '' "
    "THEN 'off' ELSE current_setting('synchronous_commit') END, true) <> '' "
)


@lru_cache(maxsize=8)
def _claiming(vendor: str, lease: timedelta, durably: bool, breakers: bool, lost: bool = True) -> Statement:
    """For each database and length of a lease; the vendor is that of the jobs' database. ``lost`` jobs too, or not."""
    return Statement(
        "claim",
        f"UPDATE {_table()} SET state = '{State.RUNNING.value}', reason = '', attempt = attempt + 1, token = %s, "
        f"worker = %s, pid = %s, started_at = {_clock()}, lease_until = {_clock(lease)}, sends = 0 "
        f"WHERE id = %s AND state = '{State.RESERVED.value}' "
        f"AND (expires_at IS NULL OR expires_at > {_clock()}) AND {not_paused()} AND {_in_no_line()} "
        f"{f'AND {not_parked()} ' if breakers else ''}{'' if lost else 'AND losses = 0 '}"
        f"{'' if durably or vendor != 'postgresql' else _ASYNCHRONOUSLY}"
        f"RETURNING {', '.join(_quoted(field.column) for field in _slim())}",
    )


def claim_again(job: Job) -> Job | None:
    """Take a claim again that the database forgot as it crashed: return the row as it now is.

    It is as it was before, or was moved back since by whoever took it for a job that nobody runs: by a pause, say. None
    when somebody else has claimed it meanwhile, or it has ended: then the attempt has lost it.
    """
    changes = {
        "state": State.RUNNING, "reason": "", "attempt": job.attempt, "token": job.token, "worker": job.worker,
        "pid": job.pid, "started_at": job.started_at, "sends": 0,
        "lease_until": Clock(timedelta(seconds=current().LEASE)),
    }  # fmt: skip
    guard, seen = _guard(job)  # the heartbeat may have done it just now
    forgotten = "id = %s AND state IN (%s, %s) AND attempt = %s"
    before = [_id(job.pk), State.RESERVED.value, State.PENDING.value, job.attempt - 1]
    rows = _update(changes, f"({forgotten}) OR ({guard})", [*before, *seen], returning=True)
    if not rows:
        return None
    logger.warning("Job %s: the database had forgotten that attempt %d holds it.", job.pk, job.attempt)
    taken: Job = rows[0]
    return taken


@lru_cache(maxsize=8)
def claiming_many(lease: timedelta) -> Statement:
    """Start the first attempt of reserved jobs that were never lost, and answer with their rows (PostgreSQL).

    The parameters are the worker's name, a process id, a list of the jobs' ids and one of tokens. Left out are rows
    that somebody has locked, and jobs that are allowed one attempt: one that a worker's death takes from it before it
    began could not begin any more.
    """
    # A query of its own with FOR UPDATE runs once, whatever the plan; it locks in order and waits for nobody.
    chosen = (
        f"WITH free AS MATERIALIZED (SELECT {_table()}.id, given.token "
        f"FROM unnest(%s::uuid[], %s::uuid[]) AS given(id, token) JOIN {_table()} ON {_table()}.id = given.id "
        f"WHERE state = '{State.RESERVED.value}' AND attempt = 0 AND losses = 0 AND max_attempts > 1 "
        f"AND cancel_requested_at IS NULL AND (expires_at IS NULL OR expires_at > {_clock()}) AND {not_paused()} "
        f"AND {_in_no_line()} "
        f"ORDER BY {_table()}.id FOR NO KEY UPDATE OF {_table()} SKIP LOCKED) SELECT id, token FROM free"
    )
    return Statement(
        "claim_many",
        f"UPDATE {_table()} SET state = '{State.RUNNING.value}', reason = '', attempt = attempt + 1, worker = %s, "
        f"pid = %s, token = chosen.token, started_at = {_clock()}, lease_until = {_clock(lease)}, sends = 0 "
        f"FROM ({chosen}) AS chosen WHERE {_table()}.id = chosen.id "
        f"RETURNING {', '.join(f'{_table()}.{_quoted(field.column)}' for field in _slim())}",
    )


def claim_chunk(leader_id: UUID, *, token: UUID, worker: str, pid: int, lease: timedelta) -> list[Job]:
    """Start the next attempt of those jobs of a chunk that are still reserved, all at once; return them in order.

    One that was released alone, by a release that knows nothing of chunks, is a chunk by itself.
    """
    members = (
        "SELECT job_id FROM jobs_chunkmember WHERE leader_id = %s UNION ALL SELECT {} WHERE NOT EXISTS "
        "(SELECT 1 FROM jobs_chunkmember WHERE job_id = %s)"
    ).format("%s::uuid" if database().vendor == "postgresql" else "%s")
    changes = {
        "state": State.RUNNING, "reason": "", "attempt": Plus(1), "token": token, "worker": worker, "pid": pid,
        "started_at": NOW, "lease_until": Clock(lease), "sends": 0,
    }  # fmt: skip
    where = (
        f"id IN ({members}) AND state = '{State.RESERVED.value}' AND cancel_requested_at IS NULL "
        f"AND (expires_at IS NULL OR expires_at > {_clock()}) AND {not_paused()}"
    )
    return _in_order(_update(changes, where, [_id(leader_id)] * 3, returning=True))


def held_together(leader_id: UUID, token: UUID) -> list[Job]:
    """The jobs of a chunk that run under this token, in order."""
    members = "SELECT job_id FROM jobs_chunkmember WHERE leader_id = %s UNION ALL SELECT %s".replace(
        "SELECT %s", "SELECT %s::uuid" if database().vendor == "postgresql" else "SELECT %s"
    )
    names = ", ".join(_quoted(field.column) for field in _slim())
    with database().cursor() as cursor:
        cursor.execute(
            f"SELECT {names} FROM {_table()} WHERE id IN ({members}) AND state = '{State.RUNNING.value}' "
            "AND token = %s", [_id(leader_id), _id(leader_id), _id(token)],
        )  # fmt: skip
        return _in_order(as_job(row) for row in cursor.fetchall())


def _in_order(jobs: Iterable[Job]) -> list[Job]:
    return sorted(jobs, key=lambda job: (job.due_at or job.created_at, job.pk))


def renew(jobs: Sequence[Job], lease: timedelta) -> int:
    """Renew the leases of jobs that run under one token; return how many still do."""
    marks = ", ".join(["%s"] * len(jobs))
    where = f"id IN ({marks}) AND state = '{State.RUNNING.value}' AND token = %s"
    return int(_update({"lease_until": Clock(lease)}, where, [*(_id(job.pk) for job in jobs), _id(jobs[0].token)]))


def id_in(row: Sequence[Any]) -> UUID:
    """The id of the job whose slim columns these are."""
    found: UUID = row[_slim_names().index("id")]
    return found


def move(job: Job, target: State, reason: str = "", **changes: Any) -> Job:
    """Move a job from the state in which it was seen to ``target``; return it as it now is.

    The guard is what was seen: state, attempt and, of a running job, the token of its attempt.
    Raises ``MoveRefused`` when the row is no longer so: somebody else moved it.
    """
    if target not in MOVES[State(job.state)]:
        raise MoveRefused(f"A {job.state} job cannot become {target.value}.")
    changes = {"state": target, "reason": reason[:255], **changes}
    if target in FINAL:
        changes["finished_at"] = NOW
    guard, seen = _guard(job)
    rows = _update(changes, guard, seen, returning=True)
    if not rows:
        raise MoveRefused(f"Job {job.pk} is no longer {job.state} in attempt {job.attempt}.")
    moved: Job = rows[0]
    if moved.lane and moved.state in WAITING and job.state in WAITING:
        note_arrivals([moved])  # one that was released is seen by the next release, which counts it
    return moved


def complete(job: Job, result: str | None, **changes: Any) -> bool:
    """Record a job as completed in one statement, if nothing hangs on it and it is still ours."""
    if changes:
        changes |= {"state": State.COMPLETED, "reason": "", "finished_at": NOW, "result": result, **_NO_ERROR}
        guard, seen = _guard(job)
        return bool(_update(changes, f"{guard} AND NOT followed", seen))
    return _completed(Completion.of(job, result))


@lru_cache(maxsize=8)
def _completing(vendor: str) -> Statement:
    """For each database; the vendor is that of the jobs' database."""
    return Statement(
        "complete",
        f"UPDATE {_table()} SET {_completion()}, result = %s "
        f"WHERE id = %s AND state = '{State.RUNNING.value}' AND attempt = %s AND token = %s AND NOT followed",
    )


def _completion() -> str:
    """What becomes of each job that completes."""
    no_error = ", ".join(f"{column} = ''" for column in _NO_ERROR)
    return f"state = '{State.COMPLETED.value}', reason = '', finished_at = {_clock()}, {no_error}"


def complete_many(completions: Sequence[Completion]) -> set[UUID]:
    """Record jobs as completed in one statement, those on which nothing hangs and that are still ours; return them."""
    connection = database()
    if connection.vendor != "postgresql":
        with transaction.atomic(using=alias()):
            return {one.job_id for one in completions if _completed(one)}
    with connection.cursor() as cursor:
        completing_many().run(connection, cursor, completions_given(completions))
        return {row[0] for row in cursor.fetchall()}


def completions_given(completions: Sequence[Completion]) -> list[Any]:
    """The parameters of ``completing_many``, in the order in which their rows are to be locked."""
    completions = sorted(completions, key=lambda one: one.job_id)
    return [
        [one.job_id for one in completions], [one.attempt for one in completions],
        [one.token for one in completions], [one.result for one in completions],
    ]  # fmt: skip


def _completed(completion: Completion) -> bool:
    connection = database()
    given = [completion.result, _id(completion.job_id), completion.attempt, _id(completion.token)]
    with connection.cursor() as cursor:
        _completing(connection.vendor).run(connection, cursor, given)
        return bool(cursor.rowcount)


@lru_cache(maxsize=1)
def completing_many() -> Statement:
    """Record jobs as completed, and answer with their ids (PostgreSQL); see ``complete_many``.

    A row that somebody keeps locked must not hold up the others for long.
    """
    return Statement(
        "complete_many",
        f"UPDATE {_table()} SET {_completion()}, result = given.result "
        f"FROM unnest(%s::uuid[], %s::int[], %s::uuid[], %s::text[]) AS given(id, attempt, token, result), "
        f"(SELECT set_config('lock_timeout', '{LOCK_PATIENCE * 1000:.0f}', true)) AS patience "
        f"WHERE {_table()}.id = given.id AND {_table()}.state = '{State.RUNNING.value}' "
        f"AND {_table()}.attempt = given.attempt AND {_table()}.token = given.token AND NOT {_table()}.followed "
        f"RETURNING {_table()}.id",
    )


def amend(job: Job, **changes: Any) -> bool:
    """Change what is not state (lease, progress, a request to cancel), under the same guard as a move."""
    assert "state" not in changes
    guard, seen = _guard(job)
    return bool(_update(changes, guard, seen))


def hold(job: Job) -> bool:
    """Whether an attempt still holds its job; nobody can take it over before the transaction around this ends."""
    guard, seen = _guard(job)
    connection = database()
    lock = connection.ops.for_update_sql(no_key=True) if connection.features.has_select_for_no_key_update else ""
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT 1 FROM {_table()} WHERE {guard} {lock}", seen)
        return cursor.fetchone() is not None


def move_all(
    seen: Iterable[State], target: State, where: str, parameters: Sequence[Any], reason: str, **changes: Any
) -> int:
    """Move all jobs in the states ``seen`` for which the SQL ``where`` holds; return how many."""
    seen = list(seen)
    assert all(target in MOVES[state] for state in seen)
    changes = {"state": target, "reason": reason[:255], **changes}
    marks = ", ".join(["%s"] * len(seen))
    return int(_update(changes, f"state IN ({marks}) AND ({where})", [*(s.value for s in seen), *parameters]))


def move_slice(
    seen: State, target: State, where: str, parameters: Sequence[Any], reason: str, limit: int, **changes: Any
) -> int:
    """Move up to ``limit`` unfinished jobs in the state ``seen`` for which the SQL ``where`` holds; return how many."""
    chosen = f"SELECT id FROM {_table()} WHERE finished_at IS NULL AND state = %s AND ({where}) LIMIT {int(limit)}"
    return move_all([seen], target, _one_of(chosen), [seen.value, *parameters], reason, **changes)


def mark_sent(jobs: Sequence[Job]) -> None:
    """Note that reserved jobs are only now on their way to the broker."""
    for start in range(0, len(jobs), SLICE):
        ids = [_id(job.pk) for job in jobs[start : start + SLICE]]
        where = f"state = %s AND id IN ({', '.join(['%s'] * len(ids))})"
        _update({"sent_at": NOW}, where, [State.RESERVED.value, *ids])


def reserve_due(limit: int) -> list[Job]:
    """Mark up to ``limit`` due jobs that nothing constrains as reserved, most urgent first; return them.

    They come with what sending them takes. Any number of processes may do it at once: each takes other jobs.
    """
    return _by_urgency(_reserve(_due_directly(limit, _in_no_line()), []))


def reserve_due_unless(others: str, limit: int) -> list[Job] | None:
    """The same, but None where this SQL holds, which speaks of others: asked in one statement where that can be.

    It has to hold where any queue or task has a limit that was set for all of its jobs.
    """
    if database().vendor == "sqlite":  # whose UPDATE stands in no query; the way to it is short
        with database().cursor() as cursor:
            cursor.execute(f"SELECT {others}", [])
            return None if cursor.fetchone()[0] else reserve_due(limit)
    names, converters = _sending(database().vendor)
    columns = ", ".join(f"taken.{name}" for name in names)
    sql = (
        f"WITH line AS MATERIALIZED (SELECT {others} AS busy), "
        f"taken AS ({_reserving(_due_directly(limit, 'NOT (SELECT busy FROM line)'), names)}) "
        f"SELECT line.busy, {columns} FROM line LEFT JOIN taken ON true"
    )
    with database().cursor() as cursor:
        cursor.execute(sql, [])
        rows = cursor.fetchall()
    if rows[0][0]:
        return None
    return _by_urgency(_partly_loaded(names, converters, row[1:]) for row in rows if row[1] is not None)


def _due_directly(limit: int, unlimited: str) -> str:
    return (
        f"SELECT id FROM {_table()} WHERE finished_at IS NULL AND due_at <= {_clock()} AND state IN ({_waiting()}) "
        f"AND lane = '' AND cancel_requested_at IS NULL AND {not_paused()} AND {unlimited} "
        f"ORDER BY priority, due_at LIMIT {int(limit)}"
    )


def _by_urgency(jobs: Iterable[Job]) -> list[Job]:
    return sorted(jobs, key=lambda job: (job.priority, job.due_at))


def reserve(ids: Sequence[UUID]) -> list[Job]:
    """Mark those of these jobs as reserved that still wait and are due, in this order; return them, as above."""
    marks = ", ".join(["%s"] * len(ids))
    due = (
        f"SELECT id FROM {_table()} WHERE finished_at IS NULL AND due_at <= {_clock()} AND state IN ({_waiting()}) "
        f"AND cancel_requested_at IS NULL AND {not_paused()} AND id IN ({marks})"
    )
    places = {job_id: place for place, job_id in enumerate(ids)}
    return sorted(_reserve(due, [_id(job_id) for job_id in ids]), key=lambda job: places[job.pk])


def _reserve(due: str, parameters: Sequence[Any]) -> list[Job]:
    names, converters = _sending(database().vendor)
    with database().cursor() as cursor:
        cursor.execute(_reserving(due, names), list(parameters))
        return [_partly_loaded(names, converters, row) for row in cursor.fetchall()]


def _reserving(due: str, names: Sequence[str]) -> str:
    return (
        f"UPDATE {_table()} SET state = '{State.RESERVED.value}', reason = '', sent_at = {_clock()}, sends = sends + 1 "
        f"WHERE state IN ({_waiting()}) AND {_one_of(due)} RETURNING {', '.join(names)}"
    )


def _waiting() -> str:
    return ", ".join(f"'{state.value}'" for state in sorted(WAITING))


@lru_cache(maxsize=4)
def _sending(vendor: str) -> tuple[list[str], list[tuple[str, Any, Any]]]:
    """The columns that sending a job takes, and what the database's values of them become."""
    fields = [field for field in Job._meta.concrete_fields if field.name in _SENDING]
    return (
        [str(field.column) for field in fields],
        [(field.attname, *how) for field in fields for how in _converters(vendor, field)],
    )


def _partly_loaded(names: Sequence[str], converters: Sequence[tuple[str, Any, Any]], row: Sequence[Any]) -> Job:
    """A job with some of its columns; as Django's ``from_db``, without a look at each of the others."""
    job = Job.__new__(Job)
    job._state = ModelState()
    job._state.db, job._state.adding = alias(), False
    job.__dict__.update(zip(names, row, strict=True))
    for name, converter, expression in converters:
        job.__dict__[name] = converter(job.__dict__[name], expression, database())
    return job


def _one_of(chosen: str) -> str:
    """SQL that holds for the rows that a query chose, but for those that somebody else has locked."""
    if database().features.has_select_for_update_skip_locked:
        # As an array, or PostgreSQL may run the subquery once per row, and each run skips what the last one locked.
        return f"id = ANY(ARRAY({chosen} FOR UPDATE SKIP LOCKED))"
    return f"id IN ({chosen})"


def put_in_lane(lane: str, alike: dict[str, Any], limit: int) -> int:
    """Put up to ``limit`` plain jobs that wait and are alike in these columns in a lane, and say that they wait there.

    Return how many.
    """
    where = " AND ".join(f"{_quoted(name)} = %s" for name in alike)
    some = (
        f"SELECT id FROM {_table()} WHERE finished_at IS NULL AND state IN ({_waiting()}) AND lane = '' "
        f"AND {where} ORDER BY due_at LIMIT {int(limit)}"
    )
    put = _execute(
        f"UPDATE {_table()} SET lane = %s WHERE lane = '' AND state IN ({_waiting()}) AND {_one_of(some)}",
        [lane, *alike.values()],
    )
    # Of those that are in it now: any other one may have begun meanwhile.
    first = (
        f"SELECT id FROM {_table()} WHERE finished_at IS NULL AND state IN ({_waiting()}) AND NOT (lane = '') "
        "AND lane = %s AND due_at IS NOT NULL ORDER BY due_at LIMIT 1"
    )
    _execute(f"INSERT INTO {Arrival._meta.db_table} (job_id) {first}", [lane])
    return put


def _in_no_line() -> str:
    """SQL that holds for a plain job whose queue and task have no limit that was set for all of their jobs."""
    return (
        "(NOT (lane = '') OR NOT EXISTS (SELECT 1 FROM jobs_allotment a WHERE a.kind IN ('slots', 'tokens') "
        f"AND a.name IN ('queue ' || {_table()}.queue, 'task ' || {_table()}.task)))"
    )


def not_paused() -> str:
    """SQL that holds for a job whose queue and task are not paused."""
    return (
        f"NOT EXISTS (SELECT 1 FROM jobs_pause p WHERE (p.kind = 'queue' AND p.name = {_table()}.queue) "
        f"OR (p.kind = 'task' AND p.name = {_table()}.task))"
    )


def not_parked() -> str:
    """SQL that holds for a released job that no open circuit keeps from starting; a half-open one lets its probes."""
    return (
        f"NOT EXISTS (SELECT 1 FROM jobs_slot s JOIN jobs_circuit c ON c.key = substr(s.key, {len(BOUND) + 1}) "
        f"WHERE s.job_id = {_table()}.id AND substr(s.key, 1, {len(BOUND)}) IN ('{BOUND}', '{PROBE}') "
        f"AND (c.open_until > {_clock()} "
        f"OR (c.open_until IS NOT NULL AND substr(s.key, 1, {len(BOUND)}) <> '{PROBE}')))"
    )


def paused(job: Job) -> bool:
    """Whether the queue or the task of a job is paused."""
    with database().cursor() as cursor:
        cursor.execute(f"SELECT 1 FROM {_table()} WHERE id = %s AND NOT {not_paused()}", [_id(job.pk)])
        return cursor.fetchone() is not None


def announce(event: str, job: Job, **details: Any) -> None:
    """Tell those who only watch, after the commit; a listener that raises disturbs nobody."""
    if signals.lifecycle.has_listeners(Job):
        details |= {"event": event, "job_id": job.pk, "task": job.task, "job": job}
        send = functools.partial(signals.lifecycle.send_robust, Job, **details)
        transaction.on_commit(lambda: send() and None, using=alias(), robust=True)


def tried(job: Job, act: Callable[[], Any]) -> bool:
    """Do an act on one job of many; False when the job has moved, is locked, or the act failed: the others go on.

    Raises what says that the database itself is away or busy: the other jobs would fare no better.
    """
    try:
        with without_waiting_long():
            act()
    except MoveRefused:
        return False
    except Exception as error:
        if outage.locked(error):
            logger.debug("Job %s is locked by somebody; it is tried again later.", job.pk)
            return False
        if outage.passing(error):
            raise
        logger.exception("Job %s could not be moved on; it is tried again later.", job.pk)
        return False
    return True


@contextmanager
def without_waiting_long() -> Iterator[None]:
    """Give up on a row that another transaction keeps locked: that of a client which hangs, say."""
    connection = database()
    if connection.vendor != "postgresql" or connection.in_atomic_block:
        yield
        return
    with transaction.atomic(using=alias()):
        wait_for_locks_at_most(LOCK_PATIENCE)
        yield


def wait_for_locks_at_most(seconds: float) -> None:
    """Give up on locked rows after so long, in this transaction; SQLite has a time-out of its own."""
    connection = database()
    if connection.vendor == "postgresql":
        # For this transaction alone: behind PgBouncer, the session is also that of other people.
        with connection.cursor() as cursor:
            cursor.execute(f"SET LOCAL lock_timeout = {seconds * 1000:.0f}")


def seen(job_id: UUID) -> Job | None:
    """The job as it is now, without its fat columns."""
    return Job.objects.using(alias()).defer(*_FAT).filter(pk=job_id).first()


def record_attempt(job: Job, **fields: Any) -> None:
    """Keep the record of an attempt that ended without completing the job; a second record is ignored."""
    attempt = Attempt(
        job_id=job.pk, number=job.attempt, worker=job.worker, pid=job.pid, started_at=job.started_at,
        finished_at=database_now(), **fields,
    )  # fmt: skip
    Attempt.objects.using(alias()).bulk_create([attempt], ignore_conflicts=True)


def database_now() -> Any:
    """The time by the database's clock."""
    field = Job._meta.get_field("created_at")
    with database().cursor() as cursor:
        cursor.execute(f"SELECT {_clock()}", [])
        return _converted(field, cursor.fetchone()[0])


def as_clock(when: datetime) -> datetime:
    """A time with a zone as the database's clock is read: without one where ``USE_TZ`` is off."""
    if settings.USE_TZ or timezone.is_naive(when):
        return when
    # SQLite's clock is that of UTC; PostgreSQL's is read in the project's zone.
    return timezone.make_naive(when, UTC if database().vendor == "sqlite" else timezone.get_default_timezone())


def clock_sql(delta: timedelta = timedelta(0)) -> str:
    """SQL for the database's clock plus ``delta``."""
    return _clock(delta)


def _guard(job: Job) -> tuple[str, list[Any]]:
    guard, seen = (
        "id = %s AND state = %s AND attempt = %s",
        [_id(job.pk), State(job.state).value, job.attempt],
    )
    if job.state == State.RUNNING:
        return f"{guard} AND token = %s", [*seen, _id(job.token)]
    return guard, seen


def _update(changes: dict[str, Any], where: str, parameters: Sequence[Any], *, returning: bool = False) -> Any:
    """Run one UPDATE; return the rows as jobs, or how many there were."""
    sets: list[str] = []
    values: list[Any] = []
    for name, value in changes.items():
        field: Any = Job._meta.get_field(name)
        sql, given = _compiled(field, value)
        sets.append(f"{_quoted(field.column)} = {sql}")
        values += given
    sql = f"UPDATE {_table()} SET {', '.join(sets)} WHERE {where}"
    if not returning:
        return _execute(sql, [*values, *parameters])
    sql += f" RETURNING {', '.join(_quoted(field.column) for field in _slim())}"
    with database().cursor() as cursor:
        cursor.execute(sql, [*values, *parameters])
        return [as_job(row) for row in cursor.fetchall()]


def _execute(sql: str, parameters: Sequence[Any]) -> int:
    with database().cursor() as cursor:
        cursor.execute(sql, list(parameters))
        return int(cursor.rowcount)


def _compiled(field: models.Field[Any, Any], value: Any) -> tuple[str, list[Any]]:
    """A value as SQL and its parameters, as the field and the database want it."""
    if isinstance(value, Clock):
        return _clock(value.delta), []
    if isinstance(value, Column):
        return f"COALESCE({_quoted(value.name)}, {_clock()})", []
    if isinstance(value, Plus):
        return f"{_quoted(field.column)} + ({value.amount:d})", []
    return "%s", [field.get_db_prep_save(value, database())]


def _clock(delta: timedelta = timedelta(0)) -> str:
    return clock.sql(database().vendor, delta)


def as_job(row: Sequence[Any]) -> Job:
    """A row of the slim columns as a job."""
    return _partly_loaded(_slim_names(), _slim_converters(database().vendor), row)


@lru_cache(maxsize=1)
def _slim_names() -> list[str]:
    return [field.attname for field in _slim()]


@lru_cache(maxsize=4)
def _slim_converters(vendor: str) -> list[tuple[str, Any, Any]]:
    """Which of the slim columns are to be converted, and how."""
    return [(field.attname, *how) for field in _slim() for how in _converters(vendor, field)]


def _converted(field: Any, value: Any) -> Any:
    connection = database()
    for converter, expression in _converters(connection.vendor, field):
        value = converter(value, expression, connection)
    return value


@lru_cache(maxsize=256)
def _converters(vendor: str, field: Any) -> list[tuple[Any, Any]]:
    connection = database()
    column = Col("job", field)
    return [(c, column) for c in (*connection.ops.get_db_converters(column), *column.get_db_converters(connection))]


@lru_cache(maxsize=1)
def _slim() -> list[models.Field[Any, Any]]:
    return [f for f in Job._meta.concrete_fields if f.name not in _FAT]


def prepared(column: str, value: Any) -> Any:
    """A value as a parameter of SQL, as the column and the database want it."""
    field: Any = Job._meta.get_field(column)
    return field.get_db_prep_value(value, database())


def _id(value: UUID | None) -> Any:
    return prepared("id", value) if value else None


def _table() -> str:
    return Job._meta.db_table


def _quoted(name: Any) -> str:
    return str(database().ops.quote_name(name))
