"""A history that looks like a real one: skewed tasks, queues and tenants, some failures, two thousand unfinished jobs.

Ten thousand jobs fill a page of each list as ten million do: else the longer history would be charged for the rows that
it has to show. So one job in twenty has failed, and half of the letters are open.

Rows are made inside the database, slice by slice: ids and times are in order, as they are where jobs come one by one.
"""

from __future__ import annotations

from collections.abc import Callable

from django.db import connection

DAYS = 90
UNFINISHED = 2_000
SLICE = 250_000

TASKS = (
    "tests.sample.tasks.add", "tests.sample.tasks.note", "tests.sample.tasks.Charge", "tests.sample.tasks.boom",
    "shop.tasks.send_receipt", "shop.tasks.render_invoice", "shop.tasks.resize_image", "shop.tasks.sync_stock",
    "crm.tasks.update_contact", "crm.tasks.score_lead", "reports.tasks.nightly_summary", "reports.tasks.export_year",
)  # fmt: skip
QUEUES = ("default", "mail", "media", "payments", "reports")

Told = Callable[[int, int], None]

# A shape is all of a job but its id, its times and its state; u and v are even draws, and powers of them are skewed.
SHAPES = 5_000
_SHAPES = """
CREATE TEMPORARY TABLE shape AS
SELECT number, (%(tasks)s::text[])[1 + floor({tasks} * u * u)] AS task,
    (%(queues)s::text[])[1 + floor({queues} * v * v * v)] AS queue,
    CASE WHEN u < 0.02 THEN 0 WHEN u < 0.1 THEN 10 WHEN v > 0.9 THEN 30 ELSE 20 END AS priority,
    CASE WHEN w < 0.5 THEN 'tenant-' || floor(200 * power(u * v, 3)) ELSE '' END AS tenant,
    CASE WHEN x < 0.06 THEN jsonb_build_array('import-' || floor(10 * u)) ELSE '[]' END AS tags,
    '{{"args":[' || number || ',"' || md5(number::text) || '"],"kwargs":{{"customer":' || floor(90000 * x)
        || ',"note":"' || md5(x::text) || md5(v::text) || md5(w::text) || '"}}}}' AS payload,
    x < 0.3 AS keyed, w < 0.3 AS asked, w BETWEEN 0.3 AND 0.35 AS child, w BETWEEN 0.35 AND 0.375 AS grouped, y
FROM (
    SELECT number, random() AS u, random() AS v, random() AS w, random() AS x, random() AS y
    FROM generate_series(0, {shapes} - 1) AS number
) AS drawn
"""
_JOBS = """
INSERT INTO jobs_job (
    id, task, payload, version, queue, priority, state, reason, key, tenant, tags, metadata, correlation_id, parent_id,
    root_id, group_id, schedule, followed, canvas, delivery, created_at, due_at, sent_at, started_at, finished_at,
    attempt, max_attempts, sends, snoozes, losses, time_limit, token, worker, pid, lease_until, cancel_reason, result,
    error_type, error_message, traceback
)
SELECT id, task, payload, 1, queue, priority, state,
    CASE state WHEN 'failed' THEN 'no attempts left' WHEN 'cancelled' THEN 'expired' ELSE '' END,
    CASE WHEN keyed THEN 'order:' || n END, tenant, tags, '{{}}',
    CASE WHEN asked THEN 'req-' || md5((n / 30)::text) ELSE id::text END,
    CASE WHEN child THEN id END, id, CASE WHEN grouped THEN md5('g' || n / 400)::uuid END,
    CASE WHEN task LIKE 'reports%%' THEN 'every night' ELSE '' END, false, '', '',
    at, CASE WHEN state IN ('pending', 'retrying') THEN at + interval '30 days' ELSE at END,
    CASE WHEN state <> 'pending' THEN at + interval '1 ms' END,
    CASE WHEN begun THEN at + interval '5 ms' END,
    CASE WHEN finished THEN at + interval '20 ms' + y * interval '2 s' END,
    CASE WHEN state = 'failed' THEN 3 WHEN begun THEN 1 ELSE 0 END, 3, 1, 0, 0, 300, CASE WHEN begun THEN id END,
    CASE WHEN begun THEN 'celery@worker-' || n %% 8 ELSE '' END, CASE WHEN begun THEN 4711 END,
    CASE WHEN finished THEN at + interval '20 s' WHEN begun THEN clock_timestamp() + interval '1 day' END, '',
    CASE state WHEN 'completed' THEN '{{"ok":true,"row":' || n || '}}' END,
    CASE state WHEN 'failed' THEN 'requests.exceptions.ConnectionError' ELSE '' END,
    CASE state WHEN 'failed' THEN 'HTTPSConnectionPool(host=''gateway'', port=443): refused ' || id ELSE '' END,
    CASE state WHEN 'failed' THEN repeat('  File "/app/shop/tasks.py", line ' || n %% 900 || ', in run' || chr(10), 30)
        ELSE '' END
FROM (
    SELECT *, state IN ('running', 'completed', 'failed', 'cancelled') AS begun, (
            lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || '7' || substr(md5(n::text), 1, 3)
            || '8' || substr(md5(n::text), 4, 15)
        )::uuid AS id
    FROM (
        SELECT n, n <= %(finished)s AS finished, CASE
                WHEN n <= %(finished)s
                    THEN CASE WHEN n %% 20 = 17 THEN 'failed' WHEN n %% 100 = 71 THEN 'cancelled' ELSE 'completed' END
                WHEN n %% 20 < 14 THEN 'pending' WHEN n %% 20 < 18 THEN 'retrying' WHEN n %% 20 = 18 THEN 'reserved'
                ELSE 'running' END AS state,
            now() - interval '10 minutes' - (%(rows)s - n) * (interval '{days} days' / %(rows)s) AS at
        FROM generate_series(%(first)s::bigint, %(last)s::bigint) AS n
    ) AS numbered JOIN shape ON shape.number = (numbered.n * 7919) %% {shapes}
) AS job
"""

_ATTEMPTS = """
INSERT INTO jobs_attempt (
    job_id, number, worker, pid, started_at, finished_at, outcome, error_type, error_message, traceback, decision,
    reason, delay)
SELECT id, number, worker, pid, started_at, finished_at, 'failed', error_type, error_message, traceback,
    CASE WHEN number = 3 THEN 'failed' ELSE 'retrying' END, 'transient', 1
FROM jobs_job, generate_series(1, 3) AS number WHERE state = 'failed'
"""

_LETTERS = """
INSERT INTO dlq_deadletter (
    job_id, task, queue, tenant, payload, version, headers, reason, error_type, error_message, traceback, attempts,
    fingerprint, status, created_at, closed_at, closed_by, closing_reason)
SELECT id, task, queue, tenant, payload, 1, '{}', reason, error_type, error_message, traceback, '[]',
    md5(task || get_byte(uuid_send(id), 14) % 2), status, finished_at,
    CASE WHEN status <> 'open' THEN finished_at END, 'ann', ''
FROM (
    SELECT *, CASE get_byte(uuid_send(id), 15) % 6 WHEN 3 THEN 'replayed' WHEN 4 THEN 'discarded' WHEN 5 THEN 'resolved'
        ELSE 'open' END AS status
    FROM jobs_job WHERE state = 'failed'
) AS failed
"""


def fill(rows: int, told: Told = lambda done, rows: None) -> None:
    """Replace what there is by a history of so many jobs."""
    with connection.cursor() as cursor:
        cursor.execute("TRUNCATE jobs_job CASCADE")
        indexes = _put_away(cursor)
        cursor.execute("DROP TABLE IF EXISTS shape")
        cursor.execute("SELECT setseed(0.4)")
        cursor.execute(
            _SHAPES.format(tasks=len(TASKS), queues=len(QUEUES), shapes=SHAPES),
            {"tasks": list(TASKS), "queues": list(QUEUES)},
        )
        made = 0
        while made < rows:
            last = min(made + SLICE, rows)
            cursor.execute(
                _JOBS.format(days=DAYS, shapes=SHAPES),
                {"rows": rows, "first": made + 1, "last": last, "finished": rows - UNFINISHED},
            )  # fmt: skip
            made = last
            told(made, rows)
        cursor.execute(_ATTEMPTS)
        cursor.execute(_LETTERS)
        for definition in indexes:
            cursor.execute(definition)
    settle()


def settle() -> None:
    """Let the database do at once what autovacuum does in time."""
    with connection.cursor() as cursor:
        for table in ("jobs_job", "jobs_attempt", "dlq_deadletter"):
            cursor.execute(f"VACUUM (ANALYZE) {table}")
        cursor.execute("CHECKPOINT")


def _put_away(cursor: object) -> list[str]:
    """Drop the indexes of jobs that no constraint needs; return how to make them again, which is faster at the end."""
    cursor.execute(  # type: ignore[attr-defined]
        "SELECT indexname, indexdef FROM pg_indexes WHERE tablename = 'jobs_job' AND indexname NOT LIKE '%_pkey'"
    )
    found = cursor.fetchall()  # type: ignore[attr-defined]
    for name, _ in found:
        cursor.execute(f'DROP INDEX "{name}"')  # type: ignore[attr-defined]
    return [definition for _, definition in found]
