"""Keys that hold longer than their job: one row per task and key, taken under the database's constraint."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

from jobs import lifecycle
from jobs.idempotency import KeyScope
from jobs.models import Key


def take(task: str, key: str, job_id: UUID, scope: KeyScope) -> UUID:
    """Hold ``key`` for ``job_id``; return whose it is: ours, or the job that had it first."""
    connection = lifecycle.database()
    table, mine = Key._meta.db_table, Key._meta.get_field("job_id").get_db_prep_value(job_id, connection)
    until = lifecycle.clock_sql(scope) if isinstance(scope, timedelta) else "NULL"
    sql = (
        f"INSERT INTO {table} (task, key, job_id, expires_at) VALUES (%s, %s, %s, {until}) "
        "ON CONFLICT (task, key) DO UPDATE SET job_id = excluded.job_id, expires_at = excluded.expires_at "
        f"WHERE {table}.expires_at <= {lifecycle.clock_sql()}"
    )
    with connection.cursor() as cursor:
        cursor.execute(sql, [task, key, mine])
        if cursor.rowcount == 1:
            return job_id
    return Key.objects.using(connection.alias).get(task=task, key=key).job_id


def release(job_id: UUID) -> None:
    """Let go of the keys that a job holds."""
    Key.objects.using(lifecycle.alias()).filter(job_id=job_id).delete()


def hand_over(task: str, key: str, owner: UUID) -> None:
    """Say that a held key is ``owner``'s: a job that outlived the period for which its key held."""
    Key.objects.using(lifecycle.alias()).filter(task=task, key=key).update(job_id=owner)
