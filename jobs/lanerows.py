"""The rows of lanes and shares: opened when jobs come, renewed when some have gone, forgotten when none is left."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from jobs import chunks, lifecycle, sql
from jobs.states import WAITING

WAITS = "finished_at IS NULL AND NOT (lane = '') AND state IN ({})".format(
    ", ".join(f"'{s.value}'" for s in sorted(WAITING))
)


def first_jobs(lane: str, others: str = "", columns: str = "id") -> str:
    """SQL for the jobs of a lane that are due, in their order; the time is its parameter."""
    return (
        f"SELECT {columns} FROM jobs_job WHERE lane = {lane} AND {WAITS} AND due_at <= %s "
        f"AND cancel_requested_at IS NULL {others} ORDER BY due_at, id"
    )


def open_lanes_of(job_ids: Sequence[Any]) -> None:
    """See to it that the lanes of these jobs are known, with their shares."""
    for part in sql.parts(job_ids):
        # By their ids, whatever PostgreSQL believes of how many wait.
        these = (
            "WITH j AS MATERIALIZED (SELECT lane, queue, priority, tenant, task, bound, state, finished_at "
            f"FROM jobs_job WHERE id IN ({', '.join(['%s'] * len(part))})) "
        )
        sql.run(
            f"{these} INSERT INTO jobs_share (queue, priority, tenant, turn, is_open) "
            f"SELECT DISTINCT j.queue, j.priority, j.tenant, 0.0, {_FALSE[lifecycle.database().vendor]} FROM j "
            f"WHERE {WAITS} ON CONFLICT DO NOTHING", part,
        )  # fmt: skip
        # The first job of each lane by the index, never by one look at all of the backlog.
        head = f"(SELECT MIN(k.due_at) FROM jobs_job k WHERE k.lane = j.lane AND {WAITS})"
        rows = sql.rows(
            f"{these} INSERT INTO jobs_lane (id, share_id, task, bound, priority, waits_on, turn, head_at, open_at) "
            "SELECT x.lane, s.id, x.task, x.bound, x.priority, '', 0, x.head, x.head FROM (SELECT DISTINCT "
            f"j.lane, j.queue, j.priority, j.tenant, j.task, j.bound, {head} AS head FROM j WHERE {WAITS}) x "
            "JOIN jobs_share s ON s.queue = x.queue AND s.priority = x.priority AND s.tenant = x.tenant "
            "WHERE x.head IS NOT NULL ON CONFLICT (id) DO UPDATE SET head_at = excluded.head_at, "
            f"open_at = CASE WHEN jobs_lane.waits_on IN ('', '{chunks.GATHERS}') THEN excluded.open_at "
            "ELSE jobs_lane.open_at END RETURNING share_id", part,
        )  # fmt: skip
        renew_shares([row[0] for row in rows])


_FALSE = {"postgresql": "false", "sqlite": "0"}


def open_lanes(ids: Sequence[str]) -> None:
    """Look at these lanes again, from when their first jobs are due."""
    for part in sql.parts(ids):
        marks = ", ".join(["%s"] * len(part))
        rows = sql.rows(
            f"UPDATE jobs_lane SET waits_on = '', open_at = head_at WHERE id IN ({marks}) RETURNING share_id", part
        )
        renew_shares([row[0] for row in rows])


def close_lanes(ids: Sequence[str], waits_on: str, until: datetime, turn: float) -> None:
    """These lanes wait for something, and are looked at again at a moment at the latest."""
    for part in sql.parts(ids):
        marks = ", ".join(["%s"] * len(part))
        told = [waits_on, lifecycle.prepared("due_at", until), turn]
        sql.run(f"UPDATE jobs_lane SET waits_on = %s, open_at = %s, turn = %s WHERE id IN ({marks})", [*told, *part])


def renew_lanes(ids: Sequence[str]) -> None:
    """Lanes are open from when their first job is due; one without jobs is no more."""
    for part in sql.parts(ids):
        marks = ", ".join(["%s"] * len(part))
        sql.run(f"DELETE FROM jobs_lane WHERE id IN ({marks}) AND {_HEAD} IS NULL", part)
        sql.run(f"UPDATE jobs_lane SET head_at = {_HEAD}, open_at = {_HEAD}, waits_on = '' WHERE id IN ({marks})", part)


def renew_heads(ids: Sequence[str]) -> None:
    """Closed lanes know their first jobs too."""
    for part in sql.parts(ids):
        marks = ", ".join(["%s"] * len(part))
        sql.run(f"UPDATE jobs_lane SET head_at = COALESCE({_HEAD}, head_at) WHERE id IN ({marks})", part)


# For each row by the index, never by one look at all jobs: PostgreSQL knows little of how many jobs wait just now.
_HEAD = f"(SELECT MIN(j.due_at) FROM jobs_job j WHERE j.lane = jobs_lane.id AND {WAITS})"


def renew_shares(ids: Sequence[int]) -> None:
    """Shares are open from when one of their lanes is; one without lanes is no more."""
    first = "(SELECT MIN(l.open_at) FROM jobs_lane l WHERE l.share_id = jobs_share.id)"
    for part in sql.parts(sorted(set(ids))):
        marks = ", ".join(["%s"] * len(part))
        # A subquery for each row, which the planner cannot turn into one look at all of the backlog.
        sql.run(f"DELETE FROM jobs_share WHERE id IN ({marks}) AND {first} IS NULL", part)
        sql.run(
            f"UPDATE jobs_share SET open_at = {first}, is_open = (is_open AND {first} <= {lifecycle.clock_sql()}) "
            f"WHERE id IN ({marks})", part,
        )  # fmt: skip
