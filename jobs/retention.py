"""Letting finished jobs go, in small slices, by age. Never one with an open dead letter."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any
from uuid import UUID

from django.db import models, transaction
from django.db.models import Q

from jobs import lifecycle
from jobs.audit import record_act
from jobs.errors import Refused
from jobs.models import FanIn, Job
from jobs.states import FINAL, State

SLICE = 500
BY_DEFAULT = (State.COMPLETED, State.CANCELLED)


def prune(
    older_than: timedelta, states: Iterable[str] = BY_DEFAULT, *, limit: int | None = None,
    progress: Callable[[int], None] | None = None, by: str = "", reason: str = "",
) -> int:  # fmt: skip
    """Delete jobs that finished longer ago than ``older_than``, with their attempts; return how many.

    Jobs with a dead letter are kept until it is closed, members of a chord until it has ended and its
    letters are closed.
    ``by`` is the person who asked for it, for the audit trail.
    Raises ``Refused`` without an age, or for states that are not final.
    """
    wanted = _checked(older_than, states)
    before = lifecycle.database_now() - older_than
    if by:
        record_act("prune", by, f"{', '.join(wanted)}, finished before {before:%Y-%m-%d %H:%M}", reason=reason)
    pruned = 0
    while limit is None or pruned < limit:
        size = SLICE if limit is None else min(SLICE, limit - pruned)
        ids = list(_prunable(wanted, before).values_list("pk", flat=True)[:size])
        if not ids:
            break
        with transaction.atomic(using=lifecycle.alias()):
            _let_go(ids)
        pruned += len(ids)
        if progress is not None:
            progress(pruned)
    return pruned


def prunable(older_than: timedelta, states: Iterable[str] = BY_DEFAULT) -> int:
    """How many jobs ``prune`` would delete. It counts rows: seconds at millions."""
    wanted = _checked(older_than, states)
    return _prunable(wanted, lifecycle.database_now() - older_than).count()


def _checked(older_than: timedelta, states: Iterable[str]) -> list[State]:
    if not isinstance(older_than, timedelta) or older_than <= timedelta(0):  # type: ignore[redundant-expr]
        raise Refused(
            "Prune needs an age: how long ago must a job have finished? For example older_than=timedelta(days=30)."
        )
    wanted = [State(state) for state in states]
    waiting = [state.value for state in wanted if state not in FINAL]
    if waiting or not wanted:
        raise Refused(
            f"Only finished jobs can be pruned (completed, cancelled, failed), not {', '.join(waiting) or 'none'}."
        )
    return wanted


def _prunable(states: list[State], before: object) -> models.QuerySet[Job]:
    jobs = Job.objects.using(lifecycle.alias()).filter(state__in=states, finished_at__lt=before)
    jobs = jobs.exclude(fanin_id__isnull=False, fanin_id__in=_open_chords())
    for kept in _kept():
        jobs = jobs.exclude(pk__in=kept)
    return jobs.order_by("finished_at")


def _open_chords() -> models.QuerySet[FanIn, Any]:
    """Chords that have not ended, and failed ones that the replay of a member can still complete."""
    held = Q(remaining__gt=0)
    members = Job.objects.using(lifecycle.alias()).filter(fanin_id__isnull=False)
    for kept in _kept():
        held |= Q(pk__in=members.filter(pk__in=kept).values("fanin_id"))
    return FanIn.objects.using(lifecycle.alias()).filter(held).values("pk")


def _kept() -> list[Any]:
    """Ids of jobs that other apps protect: all that they refer to, or what their ``protected_jobs`` says."""
    kept = []
    for relation in _relations():
        if relation.on_delete in (models.PROTECT, models.RESTRICT):
            model, name = relation.related_model, relation.field.attname
            rows = model._base_manager.using(lifecycle.alias())
            rows = model.protected_jobs(rows) if hasattr(model, "protected_jobs") else rows
            # One NULL inside NOT IN, and nothing would ever be pruned.
            kept.append(rows.filter(**{f"{name}__isnull": False}).values(name))
    return kept


def _relations() -> list[Any]:
    """What refers to jobs, also where the way back has no name."""
    found = Job._meta.get_fields(include_hidden=True)
    return [field for field in found if field.auto_created and not field.concrete and hasattr(field, "on_delete")]


def _let_go(ids: list[UUID]) -> None:
    """Delete jobs as Django does, which honours the ``on_delete`` of whoever refers to them.

    What would protect them although it belongs to them, as a closed letter does, says ``deleted_with_jobs``.
    """
    for relation in _relations():
        if getattr(relation.related_model, "deleted_with_jobs", False):
            rows = relation.related_model._base_manager.using(lifecycle.alias())
            _delete(rows.filter(**{f"{relation.field.name}__in": ids}))
    jobs = Job.objects.using(lifecycle.alias())
    found = jobs.filter(pk__in=ids, fanin_id__isnull=False).values_list("fanin_id", flat=True)
    chords = {fanin_id for fanin_id in found if fanin_id is not None}
    _delete(jobs.filter(pk__in=ids))
    if chords:
        left = jobs.filter(fanin_id__in=chords).values("fanin_id")
        FanIn.objects.using(lifecycle.alias()).filter(pk__in=chords).exclude(pk__in=left).delete()


def _delete(rows: models.QuerySet[Any]) -> None:
    rows.only("pk").delete()  # payloads, results and tracebacks need not be read for that
