"""What people, programs and workers do, each through the code that they would run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any
from uuid import UUID

from django.contrib.auth import get_user_model
from django.db import connection, transaction
from django.test import Client
from django.urls import reverse

from dlq import stats as letter_stats
from dlq.models import DeadLetter
from jobs import attempt, bulk, control, lanes, lifecycle, rescue, retention, stats, tally
from jobs.admin.health import warnings
from jobs.explain import explain, explain_queue
from jobs.models import Job
from jobs.reconcile import Reconciler
from jobs.states import State
from tests.sample.tasks import add, alone, note
from tests.scale.history import QUEUES, TASKS

WARM, TIMES = 3, 9
DUE = 500
TENANTS = 100
CHANGING = ("enqueue", "claim")  # what comes after them needs what they leave


@dataclass(frozen=True, slots=True)
class Cost:
    """What an operation takes, in milliseconds: on the clock, and of processors (this process and its server's)."""

    wall: float
    cpu: float


def _worked() -> float:
    """Seconds that this process and the server's process behind its connection have computed so far."""
    with connection.cursor():
        pid = connection.connection.info.backend_pid
    return time.process_time() + int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


@dataclass(frozen=True, slots=True)
class Operation:
    """Something whose cost must not grow: its name, and the act."""

    name: str
    act: Callable[[], Any]
    times: int = TIMES

    def cost(self) -> Cost:
        """The medians of several runs, warm."""
        took = []
        for _ in range(WARM + self.times):
            began, worked = time.perf_counter(), _worked()
            self.act()
            took.append((time.perf_counter() - began, _worked() - worked))
        wall, cpu = (median(column) * 1000 for column in zip(*took[WARM:], strict=True))
        return Cost(wall, cpu)


def operations() -> list[Operation]:
    """All of them, on the history that there is."""
    _make_some_due()
    return [*_hot(), *_chores(), *_lists(), *_letters(), *_numbers(), *_waiting(), *_pruning()]


def _make_some_due() -> None:
    waiting = Job.objects.filter(state=State.PENDING, finished_at__isnull=True).order_by("created_at")
    Job.objects.filter(pk__in=list(waiting.values_list("pk", flat=True)[:DUE])).update(
        due_at=lifecycle.database_now() - timedelta(minutes=1)
    )


# --- The route of a job


def _hot() -> Iterator[Operation]:
    reserved: list[UUID] = []
    running: list[Job] = []
    yield Operation("enqueue", lambda: reserved.append(UUID(add.delay(1, 2).id)), 300)
    yield Operation("claim", lambda: running.append(attempt.claim(reserved.pop(), "scale")[0]), 250)
    yield Operation("finish", lambda: lifecycle.complete(running.pop(), '{"ok":true}'), 200)


def _undone(act: Callable[[], Any]) -> Callable[[], Any]:
    """An act that is taken back, so that it can be measured again."""

    def run() -> None:
        with transaction.atomic():
            act()
            transaction.set_rollback(True)

    return run


def _chores() -> Iterator[Operation]:
    reconciler = Reconciler()
    yield Operation("release: reserve 100 due jobs", _undone(lambda: lifecycle.reserve_due(100)))
    yield Operation("rescue", rescue.rescue)
    yield Operation("force_cancel", rescue.force_cancel)
    yield Operation("expire", control.expire)
    yield Operation("reconcile", reconciler.tick)
    tally.fold(lifecycle.database_now() - timedelta(minutes=2))
    yield Operation("tally", tally.tick)


# --- The admin


def _lists() -> Iterator[Operation]:
    client = _chief()
    jobs = reverse("admin:jobs_job_changelist")

    def page(**query: Any) -> Callable[[], Any]:
        return lambda: _seen(client.get(jobs, query))

    yield Operation("admin: first page", page())
    yield Operation("admin: page 150", page(p=150))
    for state in ("unfinished", *State.values):
        yield Operation(f"admin: state={state}", page(state=state))
    for task in (TASKS[0], TASKS[6], TASKS[-1]):
        yield Operation(f"admin: task={task.rsplit('.', 1)[-1]}", page(task=task))
    for queue in (QUEUES[0], QUEUES[-1]):
        yield Operation(f"admin: queue={queue}", page(queue=queue))
    yield Operation("admin: tenant", page(tenant="tenant-7"))
    yield Operation("admin: priority=critical", page(priority=0))
    yield Operation("admin: last 24 hours", page(within="24h"))
    yield Operation("admin: failed of a task", page(state="failed", task=TASKS[0]))
    yield Operation("admin: completed of a queue", page(state="completed", queue=QUEUES[-1]))
    old = Job.objects.filter(finished_at__isnull=False, key__isnull=False).order_by("created_at")[50]
    asked = Job.objects.filter(finished_at__isnull=False, correlation_id__startswith="req-").order_by("created_at")[50]
    yield Operation("admin: search an id", page(q=str(old.pk)))
    yield Operation("admin: search the end of an id", page(q=str(old.pk)[-12:]))
    yield Operation("admin: search a key", page(q=old.key))
    yield Operation("admin: search a task", page(q="resize"))
    yield Operation("admin: search a correlation id", page(q=asked.correlation_id))
    yield Operation("admin: search nothing that there is", page(q="nobody knows this"))
    failed = Job.objects.filter(state=State.FAILED, finished_at__isnull=False).order_by("finished_at")[5]
    for name, job in (("completed", old), ("failed", failed)):
        at = reverse("admin:jobs_job_change", args=[job.pk])
        yield Operation(f"admin: page of a {name} job", lambda at=at: _seen(client.get(at)))


def _letters() -> Iterator[Operation]:
    client = _chief()
    letters = reverse("admin:dlq_deadletter_changelist")
    one = DeadLetter.objects.order_by("pk")[3]
    frequent = DeadLetter.objects.filter(task=TASKS[0]).order_by("pk")[0]

    def page(**query: Any) -> Callable[[], Any]:
        return lambda: _seen(client.get(letters, query))

    yield Operation("letters: open ones", page())
    yield Operation("letters: all", page(status="all"))
    yield Operation("letters: open of a task", page(task=TASKS[0]))
    yield Operation("letters: open of a tenant", page(tenant="tenant-0"))
    yield Operation("letters: of a fingerprint", page(fingerprint=frequent.fingerprint, status="all"))
    yield Operation("letters: search a job's id", page(q=str(one.job_id), status="all"))
    at = reverse("admin:dlq_deadletter_change", args=[one.pk])
    yield Operation("letters: page of one", lambda: _seen(client.get(at)))


def _chief() -> Client:
    client = Client()
    chief, _ = get_user_model().objects.get_or_create(
        username="chief", defaults={"is_staff": True, "is_superuser": True}
    )
    client.force_login(chief)
    return client


def _seen(response: Any) -> None:
    assert response.status_code == 200, response
    assert response.content


# --- Numbers, and the command line


def _numbers() -> Iterator[Operation]:
    yield Operation("jobs stats", stats.statistics)
    yield Operation("dlq stats", letter_stats.statistics)
    yield Operation("warnings of the pages", warnings)
    for name, filters in (
        ("", {}), ("--state failed", {"state": "failed"}), ("--state pending", {"state": "pending"}),
        ("--task resize_image", {"task": "resize_image"}), ("--queue reports", {"queue": "reports"}),
        ("--tenant", {"tenant": "tenant-7"}), ("--tag", {"tag": "import-7"}), ("--priority high", {"priority": "high"}),
        ("--state failed --task", {"state": "failed", "task": "add"}),
    ):  # fmt: skip
        yield Operation(f"jobs list {name}".rstrip(), lambda filters=filters: stats.find(**filters))
    key = Job.objects.filter(key__isnull=False).order_by("created_at")[9].key
    yield Operation("jobs list --key", lambda: stats.find(key=key))
    yield Operation("dlq list", letter_stats.find)
    yield Operation("dlq list --task", lambda: letter_stats.find(task="add"))


# --- What waits, and why


def _waiting() -> Iterator[Operation]:
    client = _chief()
    # Not in the queue of the jobs that are enqueued and claimed: where others wait, those would, too.
    queue = QUEUES[1]
    bulk.bulk([note.s("x").set(tenant=f"waiting-{number}", queue=queue) for number in range(TENANTS)])
    bulk.bulk(alone, [str(number) for number in range(TENANTS)], tenant="flood", queue=queue)
    lanes.release(1)
    last = Job.objects.filter(tenant="flood", finished_at__isnull=True).order_by("-created_at")[0]
    for name, model, query in (
        ("waiting lines", "share", {}), ("what a queue waits for", "share", {"queue": queue}),
        ("limits", "allotment", {}),
    ):  # fmt: skip
        at = reverse(f"admin:jobs_{model}_changelist")
        yield Operation(f"admin: {name}", lambda at=at, query=query: _seen(client.get(at, query)))
    page = reverse("admin:jobs_job_change", args=[last.pk])
    yield Operation("admin: page of a job that waits", lambda: _seen(client.get(page)))
    yield Operation("jobs explain", lambda: explain(last.pk))
    yield Operation("jobs explain --queue", lambda: explain_queue(queue))


def _pruning() -> Iterator[Operation]:
    walk = retention.Pass(State.COMPLETED, lifecycle.database_now() - timedelta(minutes=30))
    yield Operation("prune a slice of 500", lambda: retention._slice(walk, retention.SLICE), 5)


def sizes() -> list[tuple[str, int]]:
    """How large the table of jobs and each of its indexes is, in bytes."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT 'jobs_job', pg_table_size('jobs_job') UNION ALL SELECT indexrelname, pg_relation_size(indexrelid) "
            "FROM pg_stat_user_indexes WHERE relname = 'jobs_job' ORDER BY 2 DESC"
        )
        return [(str(name), int(size)) for name, size in cursor.fetchall()]
