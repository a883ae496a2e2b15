"""The circuits of breakers: what failed under their keys, counted in the transactions that record it.

Only jobs whose tasks declare breakers come here. A job is known by its slots: each circuit that binds it has one, which
also says whether it is a probe.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID

from django.db import Error, transaction
from django.db.models import Count, F

from jobs import breaker, lifecycle, limits, outage
from jobs.breaker import Breaker, Passage, Phase, Standing
from jobs.failures import Failure
from jobs.lifecycle import BOUND, PROBE
from jobs.models import Circuit, Job, Slot
from jobs.states import State

logger = logging.getLogger("jobs.circuits")

PARKED = "its circuit is open"
MOST = 10_000  # circuits that are listed
TAKEN_BACK = 10_000  # jobs that are taken back from the broker at once
WOKEN = 100  # circuits whose jobs one release looks at again
KEPT = timedelta(days=7)  # for which a closed circuit is remembered after its last change

_FIELDS = ("failed_at", "opened_at", "open_until", "openings", "probes", "succeeded")


def slot(key: str, *, probe: bool = False) -> str:
    """The key of the slot of a job that a circuit binds."""
    return (PROBE if probe else BOUND) + key


def probed(slot_key: str) -> str:
    """The circuit whose probe has this slot; nothing for other slots."""
    return slot_key.removeprefix(PROBE) if slot_key.startswith(PROBE) else ""


def standing(row: Circuit) -> Standing:
    """How a circuit stands, as its row keeps it."""
    values = {name: getattr(row, name) for name in _FIELDS}
    return Standing(**values | {"failed_at": tuple(row.failed_at)})


def phase(row: Circuit, now: datetime | None = None) -> Phase:
    """Closed, open or half-open."""
    return standing(row).phase(now or lifecycle.database_now())


def passages(keys: Sequence[str], now: datetime) -> dict[str, Passage]:
    """What these circuits let through."""
    rows = {row.key: row for row in _rows().filter(key__in=keys, open_until__isnull=False)}
    probes = Slot.objects.using(lifecycle.alias()).filter(key__in=[slot(key, probe=True) for key in rows])
    flying = dict(probes.order_by().values_list("key").annotate(Count("pk"))) if rows else {}
    return {key: Passage() for key in keys} | {
        key: breaker.passage(standing(row), now, flying.get(slot(key, probe=True), 0)) for key, row in rows.items()
    }


def all_circuits() -> list[Circuit]:
    """The circuits of which something is known: those that are open first."""
    return list(_rows().order_by(F("open_until").desc(nulls_last=True), "key")[:MOST])


# --- What becomes of an attempt ------------------------------------------------------------------------


def parks(job_id: UUID) -> bool:
    """Whether a circuit keeps a reserved job from starting now."""
    with lifecycle.database().cursor() as cursor:
        cursor.execute(f"SELECT 1 FROM jobs_job WHERE id = %s AND NOT {lifecycle.not_parked()}", [_id(job_id)])
        return cursor.fetchone() is not None


def await_success(job_id: UUID) -> bool:
    """Whether a circuit of this job is to be told when it completes: most often none is."""
    return bool(_waiting(job_id))


def note_success(job_id: UUID) -> None:
    """Tell the circuits of a job that it has completed, in the transaction that says so."""
    for key, probe in _waiting(job_id):
        _change(key, partial(_completed, probe))


def _completed(probe: bool, row: Circuit, now: datetime) -> Standing:
    return breaker.completed(standing(row), now, in_a_row=row.in_a_row, probe=probe)


def note_failure(job: Job, breakers: Iterable[Breaker], failure: Failure, error: BaseException | None) -> None:
    """Tell the circuits of a job that an attempt of it failed, in the transaction that records it."""
    counting = {limits.rule_of(job.task, one): one for one in breakers if one.counts(failure, error)}
    if not counting:
        return
    probes = {key for key, probe in _slots(job.pk) if probe}
    for bind in sorted(limits.binds(job.bound)):
        if bind.kind is limits.Kind.CIRCUIT and bind.rule in counting:
            _failed(bind.key, bind.rule, counting[bind.rule], job, error, probe=bind.key in probes)


def _failed(
    key: str, rule: str, declared: Breaker, job: Job, error: BaseException | None, *, probe: bool
) -> None:  # fmt: skip
    """Count one failure under one key."""
    told = {
        "rule": rule[:255], "in_a_row": declared.in_a_row, "threshold": declared.failures, "task": job.task,
        "job_id": job.pk, "error": type(error).__name__[:255] if error is not None else "",
    }  # fmt: skip
    _change(key, lambda row, now: breaker.failed(standing(row), declared, now, probe=probe), told)


def _change(key: str, follow: Callable[[Circuit, datetime], Standing], told: dict[str, Any] | None = None) -> None:
    """Move a circuit on, once nobody else does. Whoever keeps its row locked for long must not hold up the outcome."""
    try:
        with transaction.atomic(using=lifecycle.alias()):
            lifecycle.wait_for_locks_at_most(lifecycle.LOCK_PATIENCE)
            if told is not None:
                new = Circuit(key=key, changed_at=lifecycle.database_now(), **told)
                _rows().bulk_create([new], ignore_conflicts=True)
            row = _rows().select_for_update().filter(key=key).first()
            if row is not None:
                _write(row, follow(row, now := lifecycle.database_now()), now, told or {})
    except Error as failure:
        if not outage.locked(failure):
            raise
        logger.warning("An outcome was not told to the circuit %s: somebody keeps it locked.", key)


def _write(row: Circuit, after: Standing, now: datetime, told: dict[str, Any]) -> None:
    before = standing(row)
    if after == before:
        return
    changes: dict[str, Any] = {name: getattr(after, name) for name in _FIELDS} | told
    changes |= {"failed_at": list(after.failed_at), "changed_at": now}
    if after.open_until != before.open_until:
        changes["wake_at"] = after.open_until or now
    _rows().filter(pk=row.pk).update(**changes)
    if after.open_until is not None and after.open_until != before.open_until:
        _park(row.key)
        logger.warning(
            "The circuit %s is open until %s: %d failures, the last of job %s.", row.key, after.open_until,
            len(after.failed_at), told.get("job_id"),
        )  # fmt: skip
    elif after.open_until is None and before.open_until is not None:
        logger.info("The circuit %s is closed again.", row.key)


def _park(key: str) -> None:
    """Take back what is in the broker. What runs by now as a probe is none of the next time."""
    held = "id IN (SELECT job_id FROM jobs_slot WHERE key IN (%s, %s))"
    lifecycle.move_slice(
        State.RESERVED, State.PENDING, held, [slot(key), slot(key, probe=True)], PARKED, TAKEN_BACK, sends=0
    )
    Slot.objects.using(lifecycle.alias()).filter(key=slot(key, probe=True)).update(key=slot(key))


def _waiting(job_id: UUID) -> list[tuple[str, bool]]:
    """The circuits of a job that change when it completes, and whether it is a probe of them."""
    known = dict(_slots(job_id))
    if not known:
        return []
    rows = _rows().filter(key__in=known)
    # In the order in which failures lock them, whatever the database takes for the order of texts.
    return sorted((row.key, known[row.key]) for row in rows if _hears_of_success(row, probe=known[row.key]))


def _hears_of_success(row: Circuit, *, probe: bool) -> bool:
    if row.open_until is not None:
        return probe
    return bool(row.in_a_row and row.failed_at)


def _slots(job_id: UUID) -> list[tuple[str, bool]]:
    keys = Slot.objects.using(lifecycle.alias()).filter(job_id=job_id).values_list("key", flat=True)
    return [(key[len(BOUND) :], key.startswith(PROBE)) for key in keys if key.startswith((BOUND, PROBE))]


# --- What people and time do ---------------------------------------------------------------------------


def reset(key: str) -> Circuit | None:
    """Close a circuit, and forget what failed; None where nothing is known of it."""
    with transaction.atomic(using=lifecycle.alias()):
        row: Circuit | None = _rows().select_for_update().filter(key=key).first()
        if row is not None:
            now = lifecycle.database_now()
            _rows().filter(pk=row.pk).update(
                failed_at=[], opened_at=None, open_until=None, openings=0, succeeded=0, wake_at=now, changed_at=now
            )
    return row


def to_wake(now: datetime) -> list[tuple[str, int | None]]:
    """The circuits whose jobs are to be looked at again, and how many may go; None for all."""
    rows = _rows().filter(wake_at__lte=now).order_by("wake_at")[:WOKEN]
    return [(row.key, None if row.open_until is None else row.probes) for row in rows]


def woken(key: str, now: datetime) -> None:
    """All that waited for this circuit is looked at again."""
    _rows().filter(key=key, wake_at__lte=now).update(wake_at=None)


def forget() -> None:
    """Forget circuits that have been closed for long."""
    old = lifecycle.database_now() - KEPT
    _rows().filter(open_until=None, wake_at=None, changed_at__lt=old).delete()


def _rows() -> Any:
    return Circuit.objects.using(lifecycle.alias())


def _id(job_id: UUID) -> Any:
    return lifecycle.prepared("id", job_id)
