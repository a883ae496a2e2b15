"""Limits that operators set for a whole queue, task or tenant, whatever its tasks declare: they bind every job of it.

A plain job of such a queue or task is put in line: who enqueues knows of the limit within a second, a claim at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jobs import chunks, lifecycle, limits
from jobs.lifecycle import Column
from jobs.limits import Bind, Kind, Numbers
from jobs.models import Allotment, Job, Slot
from jobs.states import WAITING, State

SCOPES = ("queue", "task", "tenant")
COUNTED = {Kind.SLOTS.value: Kind.SLOTS, Kind.TOKENS.value: Kind.TOKENS}
SLICE = 5000  # jobs that one release puts in line, of each sort
# Whether there is any: asked before a release.
ANY = "EXISTS(SELECT 1 FROM jobs_allotment a WHERE a.kind <> 'weight' AND ({}))".format(
    " OR ".join(f"substr(a.name, 1, {len(scope) + 1}) = '{scope} '" for scope in SCOPES)
)

_UNCOUNTED = (
    "id IN (SELECT s.job_id FROM jobs_slot s WHERE s.key = '' AND NOT EXISTS "
    "(SELECT 1 FROM jobs_slot t WHERE t.job_id = s.job_id AND t.key = %s))"
)

Said = Mapping[tuple[str, str], Allotment]


def name(scope: str, of: str) -> str:
    """The key of a limit of a whole queue, task or tenant.

    >>> name("queue", "mail")
    'queue mail'
    """
    return f"{scope} {of}"


def scope_of(key: str) -> tuple[str, str] | None:
    """What a key is the limit of, where it is one of a whole queue, task or tenant.

    >>> scope_of("queue mail"), scope_of("gateway")
    (('queue', 'mail'), None)
    """
    scope, _, of = key.partition(" ")
    return (scope, of) if scope in SCOPES and of else None


def binds(said: Said, queue: str, task: str = "", tenant: str = "") -> tuple[Bind, ...]:
    """What binds all jobs of this queue, task and tenant."""
    found = []
    for scope, of in (("queue", queue), ("task", task), ("tenant", tenant)):
        for kind, known in COUNTED.items():
            told = said.get((kind, name(scope, of))) if of else None
            if told is not None:
                found.append(Bind(known, told.name, told.name, Numbers(told.amount, told.burst)))
    return tuple(found)


def said_now() -> dict[tuple[str, str], Allotment]:
    """What operators said, by kind and name."""
    return {(row.kind, row.name): row for row in Allotment.objects.using(lifecycle.alias())}


def of_job(job: Job) -> tuple[Bind, ...]:
    """What binds a job beside what its row says."""
    return binds(said_now(), job.queue, job.task, job.tenant)


def named(waits_on: str) -> Bind | None:
    """The key on which a lane waits, where it is one of a whole queue, task or tenant."""
    kind, _, key = waits_on.partition(" ")
    if kind not in COUNTED or scope_of(key) is None:
        return None
    return Bind(COUNTED[kind], key, key, Numbers(1.0, 1.0))


def enforce(said: Said) -> bool:
    """Put in line, take back and count what was under way when a limit was set; whether there is more to do."""
    more = False
    for kind, key in said:
        scope = scope_of(key) if kind in COUNTED else None
        if scope is None:
            continue
        if scope[0] != "tenant":
            more |= _put_in_line(*scope)
        if kind == Kind.SLOTS.value:
            _take_back(key, *scope)
            _count(key, *scope)
    return more


def take_back(scope: str, of: str, reason: str) -> int:
    """Make all jobs of it pending that have not begun; they keep their places."""
    return lifecycle.move_all(
        [State.RESERVED], State.PENDING, f"finished_at IS NULL AND {scope} = %s", [of], reason,
        due_at=Column("due_at"), sends=0,
    )  # fmt: skip


def _put_in_line(scope: str, of: str) -> bool:
    rows = Job.objects.using(lifecycle.alias()).filter(
        finished_at__isnull=True, state__in=WAITING, lane="", **{scope: of}
    )
    sorts = rows.order_by().values_list("queue", "priority", "tenant", "task", "bound").distinct()
    more = False
    for queue, priority, tenant, task, bound in list(sorts):
        alike: dict[str, Any] = {"queue": queue, "priority": priority, "tenant": tenant, "task": task, "bound": bound}
        lane = limits.lane(queue, priority, tenant, task, bound)
        more |= lifecycle.put_in_lane(lane, alike, SLICE) == SLICE
    return more


def _take_back(key: str, scope: str, of: str) -> None:
    """What was released by somebody who did not know of the limit yet."""
    lifecycle.move_all(
        [State.RESERVED], State.PENDING, f"{scope} = %s AND {_UNCOUNTED}", [of, key], "its limit was set",
        due_at=Column("due_at"), sends=0,
    )  # fmt: skip


def _count(key: str, scope: str, of: str) -> None:
    running = Job.objects.using(lifecycle.alias()).filter(
        finished_at__isnull=True, lease_until__isnull=False, state=State.RUNNING, **{scope: of}
    )
    counted = Slot.objects.using(lifecycle.alias()).filter(key=key).values("job_id")
    uncounted = running.exclude(pk__in=counted).exclude(pk__in=chunks.without_slots())
    slots = [Slot(job_id=job_id, key=key) for job_id in uncounted.values_list("pk", flat=True)]
    Slot.objects.using(lifecycle.alias()).bulk_create(slots, ignore_conflicts=True)
