"""Letting finished jobs go, in small slices, by age. Never one with an open dead letter.

A slice takes the same time wherever it is in the history: a pass goes along an index, and never looks at a job twice.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db import IntegrityError, models, transaction
from django.db.models import Q

from jobs import lifecycle, outage, tally
from jobs.audit import record_act
from jobs.conf import current as settings
from jobs.errors import Refused
from jobs.models import FanIn, Job
from jobs.states import FINAL, State

logger = logging.getLogger("jobs.retention")

SLICE = 500
BY_DEFAULT = (State.COMPLETED, State.CANCELLED)
A_TURN = 0.25  # seconds after which the conductor's other chores have their turn
REST = 60.0  # seconds between two passes of the conductor
FOR_EVER = 100 * 365 * 24 * 3600.0  # seconds
LOCK_PATIENCE = 1.0  # seconds that a slice waits for a row that somebody locked
TRIES = 3  # then the slice is left for the next pass
NARROWER = 8  # by how much a slice shrinks that the database refuses to let go, until it is the one job that is kept

Finished = tuple[UUID, datetime, UUID | None]


@dataclass(slots=True)
class Pass:
    """One walk along the finished jobs of a state that ended before a moment, oldest first."""

    state: State
    before: datetime
    at: tuple[datetime, UUID] | None = None
    size: int = SLICE
    careful: bool = False
    refused: int = 0
    """Jobs that the database keeps: rows refer to them that Django knows nothing of, or does nothing about."""
    _open: dict[UUID, bool] = field(default_factory=dict)

    def ahead(self, size: int) -> list[Finished]:
        """The next jobs; they are behind us from now on."""
        rows = Job.objects.using(lifecycle.alias()).filter(
            state=self.state, finished_at__isnull=False, finished_at__lt=self.before
        )
        if self.at is not None:
            ended, job_id = self.at
            # Not "equal": of a whole second, SQLite has the digits that Django leaves out.
            behind = {"finished_at__lt": ended + timedelta(microseconds=1), "pk__lte": job_id}
            rows = rows.filter(finished_at__gte=ended).exclude(**behind)
        found: list[Any] = list(rows.order_by("finished_at", "pk").values_list("pk", "finished_at", "fanin_id")[:size])
        if found:
            self.at = found[-1][1], found[-1][0]
        return found

    def free(self, jobs: list[Finished]) -> list[UUID]:
        """Those of the jobs that nothing keeps: no row of another app, and no chord that has not ended."""
        kept = _kept([job_id for job_id, _, _ in jobs])
        return [job_id for job_id, _, chord in jobs if job_id not in kept and not (chord and self._is_open(chord))]

    def went(self, refused: int) -> None:
        """A slice is behind us, but for those that are kept."""
        self.refused += refused
        self.size = min(SLICE, 2 * self.size)

    def look_closer(self, was: tuple[datetime, UUID] | None) -> None:
        """The database refused to let a slice go: try again with less, until it is one job, which is kept."""
        if self.careful and self.size == 1:
            self.went(1)
            return
        self.size = max(1, self.size // NARROWER) if self.careful else self.size
        self.careful, self.at = True, was

    def _is_open(self, chord: UUID) -> bool:
        if chord not in self._open:
            self._open[chord] = _is_open(chord)
        return self._open[chord]


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
    for state in wanted:
        walk = Pass(state, before)
        while (limit is None or pruned < limit) and (
            (gone := _slice(walk, SLICE if limit is None else min(SLICE, limit - pruned))) is not None
        ):
            pruned += gone
            if progress is not None and gone:
                progress(pruned)
        _tell(walk)
    return pruned


def prunable(older_than: timedelta, states: Iterable[str] = BY_DEFAULT, most: int | None = None) -> int:
    """How many jobs ``prune`` would delete; it walks along them, and stops where it has found ``most``."""
    wanted = _checked(older_than, states)
    before, found = lifecycle.database_now() - older_than, 0
    for state in wanted:
        walk = Pass(state, before)
        while jobs := walk.ahead(10 * SLICE):
            found += len(walk.free(jobs))
            if most is not None and found >= most:
                return most
    return found


@dataclass(slots=True)
class Retention:
    """Pruning by itself, as the settings ``KEEP_…`` say: a turn now and then, so that nothing else has to wait."""

    passes: list[Pass] = field(default_factory=list)
    resting_until: float = 0.0
    told: dict[State, int] = field(default_factory=dict)

    def tick(self) -> int:
        """Prune for a turn; return how many jobs went."""
        if not self.passes and not self._begin():
            return 0
        pruned, enough = 0, time.monotonic() + A_TURN
        while self.passes:
            gone = _slice(self.passes[0], SLICE)
            if gone is None:
                self._end(self.passes.pop(0))
            pruned += gone or 0
            if time.monotonic() > enough:
                break
        return pruned

    def _end(self, walk: Pass) -> None:
        """Say what is kept, when it is not what was said after the last pass."""
        if self.told.get(walk.state, 0) != walk.refused:
            self.told[walk.state] = walk.refused
            _tell(walk)

    def _begin(self) -> bool:
        now, keep = time.monotonic(), kept_for()
        if now < self.resting_until or not keep:
            return False
        self.resting_until = now + REST
        at = lifecycle.database_now()
        self.passes = [Pass(state, at - age) for state, age in keep.items()]
        return True


def _tell(walk: Pass) -> None:
    if walk.refused:
        logger.warning(
            "%s %s jobs are kept although they are old enough: rows of another table refer to them, so the database "
            "lets none go. Delete those rows first, or declare the foreign key with on_delete=SET_NULL or CASCADE.",
            f"{walk.refused:,}", walk.state.value,
        )  # fmt: skip


def kept_for() -> dict[State, timedelta]:
    """For how long finished jobs are kept, as the settings say; states that are missing are kept for ever."""
    given = settings()
    keep = {
        State.COMPLETED: given.KEEP_COMPLETED, State.CANCELLED: given.KEEP_CANCELLED, State.FAILED: given.KEEP_FAILED,
    }  # fmt: skip
    return {state: timedelta(seconds=seconds) for state, seconds in keep.items() if seconds < FOR_EVER}


def _slice(walk: Pass, size: int) -> int | None:
    """Let the next jobs of a pass go, as far as nothing keeps them; return how many, None at the end."""
    was, size = walk.at, min(size, walk.size)
    for _ in range(TRIES):
        try:
            with transaction.atomic(using=lifecycle.alias()):
                lifecycle.wait_for_locks_at_most(LOCK_PATIENCE)
                jobs = walk.ahead(size)
                free = walk.free(jobs)
                referred = _referred_to(free) if walk.careful else set()
                ids = _locked([job_id for job_id in free if job_id not in referred])
                if ids:
                    tally.note_pruned(ids)
                    _let_go(ids)
            walk.went(len(referred))
            return len(ids) if jobs else None
        except IntegrityError as error:
            logger.debug("Not all jobs from %s on can go: %s", was, error)
            walk.look_closer(was)
            return 0
        except Exception as error:
            if not outage.locked(error):
                raise
            logger.debug("Jobs up to %s are held by somebody.", walk.at)
            held, walk.at = walk.at, was
    walk.at = held  # they are pruned in a later pass
    return 0


def _locked(ids: list[UUID]) -> list[UUID]:
    """Those of the jobs that nobody else has locked; now we have."""
    if not ids or not lifecycle.database().features.has_select_for_update_skip_locked:
        return ids
    rows = Job.objects.using(lifecycle.alias()).filter(pk__in=ids).order_by()
    return list(rows.select_for_update(skip_locked=True).values_list("pk", flat=True))


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


def _is_open(chord: UUID) -> bool:
    """Whether a chord has not ended, or failed and the replay of a member can still complete it."""
    fanin = FanIn.objects.using(lifecycle.alias()).filter(pk=chord).first()
    if fanin is not None and fanin.remaining:
        return True
    concerned = Q(fanin_id=chord)
    if fanin is not None and fanin.failed:
        # The end of a chain that broke never came, and has no letter of its own: that of the body stands for it.
        concerned |= Q(waits_for_id=chord)
    members = Job.objects.using(lifecycle.alias()).filter(concerned).values("pk")
    return any(rows.exists() for rows in _keepers(members))


def _kept(ids: list[UUID]) -> set[UUID]:
    """Those of the jobs that other apps protect: all that they refer to, or what their ``protected_jobs`` says."""
    return {job_id for rows in _keepers(ids) for job_id in rows}


def _keepers(jobs: Any) -> Iterator[models.QuerySet[Any, Any]]:
    for relation in _relations():
        if relation.on_delete in (models.PROTECT, models.RESTRICT):
            model, name = relation.related_model, relation.field.attname
            rows = model._base_manager.using(lifecycle.alias())
            rows = model.protected_jobs(rows) if hasattr(model, "protected_jobs") else rows
            yield rows.filter(**{f"{name}__in": jobs}).values_list(name, flat=True)


def _relations() -> list[Any]:
    """What refers to jobs, also where the way back has no name."""
    found = Job._meta.get_fields(include_hidden=True)
    return [field for field in found if field.auto_created and not field.concrete and hasattr(field, "on_delete")]


def _referred_to(ids: list[UUID]) -> set[UUID]:
    """Those of the jobs that a row refers to about which Django does nothing: the database may keep them."""
    found: set[UUID] = set()
    for relation in _relations():
        if relation.on_delete is models.DO_NOTHING and relation.field.db_constraint:
            rows, name = relation.related_model._base_manager.using(lifecycle.alias()), relation.field.attname
            found.update(rows.filter(**{f"{name}__in": ids}).values_list(name, flat=True))
    return found


def _let_go(ids: list[UUID]) -> None:
    """Delete jobs as Django does, which honours the ``on_delete`` of whoever refers to them.

    What would protect them although it belongs to them, as a closed letter does, says ``deleted_with_jobs``.
    """
    for relation in _relations():
        if getattr(relation.related_model, "deleted_with_jobs", False):
            rows = relation.related_model._base_manager.using(lifecycle.alias())
            _delete(rows.filter(**{f"{relation.field.name}__in": ids}))
    jobs = Job.objects.using(lifecycle.alias())
    # Also those of bodies: of a chord whose only member was the end of a chain that broke, there is nothing else.
    found = jobs.filter(pk__in=ids).values_list("fanin_id", "waits_for_id")
    chords = {chord for both in found for chord in both if chord is not None}
    _delete(jobs.filter(pk__in=ids))
    if chords:
        left = jobs.filter(fanin_id__in=chords).values("fanin_id")
        FanIn.objects.using(lifecycle.alias()).filter(pk__in=chords).exclude(pk__in=left).delete()
    if lifecycle.database().vendor == "postgresql":
        lifecycle.database().check_constraints()  # now, not when a transaction commits that has more in it


def _delete(rows: models.QuerySet[Any]) -> None:
    rows.only("pk").delete()  # payloads, results and tracebacks need not be read for that
