"""Keys that hold longer than their job: one row per task and key, taken under the database's constraint."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

from jobs import lifecycle
from jobs.idempotency import KeyScope, Sliding
from jobs.models import Job, Key

# Unless somebody holds it for longer than until now.
_TAKE_OVER = (
    "ON CONFLICT (task, key) DO UPDATE SET job_id = excluded.job_id, expires_at = excluded.expires_at "
    f"WHERE {Key._meta.db_table}.expires_at <="
)


def _table() -> str:
    return Key._meta.db_table


def take(task: str, key: str, job_id: UUID, scope: KeyScope) -> UUID:
    """Hold ``key`` for ``job_id``; return whose it is: ours, or the job that had it first."""
    connection = lifecycle.database()
    mine = lifecycle.prepared("id", job_id)
    until = _until(scope)
    sql = (
        f"INSERT INTO {_table()} (task, key, job_id, expires_at) VALUES (%s, %s, %s, {until}) "
        f"{_TAKE_OVER} {lifecycle.clock_sql()}"
    )
    with connection.cursor() as cursor:
        cursor.execute(sql, [task, key, mine])
        if cursor.rowcount == 1:
            return job_id
    _called_again(task, [key], scope)
    return Key.objects.using(connection.alias).get(task=task, key=key).job_id


def take_many(jobs: Sequence[Job], scope: KeyScope) -> dict[str, UUID]:
    """Hold the keys of jobs of one task, each of which has another, in this order; return whose each key is."""
    connection, task = lifecycle.database(), jobs[0].task
    postgresql = connection.vendor == "postgresql"
    source = "unnest(%s::text[], %s::uuid[]) AS u(key, job)" if postgresql else "json_each(%s) AS u"
    key, job = ("u.key", "u.job") if postgresql else ("json_extract(u.value, '$[0]')", "json_extract(u.value, '$[1]')")
    until = _until(scope)
    sql = (
        f"INSERT INTO {_table()} (task, key, job_id, expires_at) SELECT %s, {key}, {job}, {until} "
        f"FROM {source} WHERE true {_TAKE_OVER} {lifecycle.clock_sql()}"
    )
    keys, ids = [str(job.key) for job in jobs], [lifecycle.prepared("id", job.pk) for job in jobs]
    given = [keys, ids] if postgresql else [json.dumps(list(zip(keys, ids, strict=True)))]
    with connection.cursor() as cursor:
        cursor.execute(sql, [task, *given])
        if cursor.rowcount == len(jobs):
            return {str(job.key): job.pk for job in jobs}
    _called_again(task, keys, scope)
    held = Key.objects.using(connection.alias).filter(task=task, key__in=keys)
    return dict(held.values_list("key", "job_id"))


def _until(scope: KeyScope) -> str:
    """Until when a key holds that is taken now, as SQL."""
    period = scope.period if isinstance(scope, Sliding) else scope
    return lifecycle.clock_sql(period) if isinstance(period, timedelta) else "NULL"


def _called_again(task: str, keys: Sequence[str], scope: KeyScope) -> None:
    """Of a sliding period, each call makes it begin anew. Whoever could not take a key has its row locked already."""
    if isinstance(scope, Sliding):
        marks = ", ".join(["%s"] * len(keys))
        sql = f"UPDATE {_table()} SET expires_at = {_until(scope)} WHERE task = %s AND key IN ({marks})"
        with lifecycle.database().cursor() as cursor:
            cursor.execute(sql, [task, *keys])


def release(job_id: UUID) -> None:
    """Let go of the keys that a job holds."""
    Key.objects.using(lifecycle.alias()).filter(job_id=job_id).delete()


def hand_over(task: str, key: str, owner: UUID) -> None:
    """Say that a held key is ``owner``'s: a job that outlived the period for which its key held."""
    Key.objects.using(lifecycle.alias()).filter(task=task, key=key).update(job_id=owner)
