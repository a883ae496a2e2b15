"""What a body has finished, kept for its next attempt: named steps with their results, and cursors.

Each is committed by itself, behind a fence: an attempt that was overtaken keeps nothing, and its writes roll back.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar, get_type_hints

from django.db import transaction
from django.db.models import DateTimeField
from django.db.models.expressions import RawSQL
from pydantic import TypeAdapter

from jobs import lifecycle, outage, payload
from jobs.conf import current as settings
from jobs.errors import CheckpointError, LeaseLost, PayloadError
from jobs.models import Checkpoint, Job

T = TypeVar("T")

STEP, CURSOR = Checkpoint.Kind.STEP, Checkpoint.Kind.CURSOR
NAME_LENGTH = 200

_database = outage.Outage(logging.getLogger("jobs.checkpoints"), "A step waits for it.")


@dataclass(slots=True)
class Checkpoints:
    """The checkpoints of one attempt; without a job (a direct call, eager mode) they last as long as the call.

    ``ask`` raises when the body is to stop.
    """

    job: Job | None
    ask: Callable[[], None]
    known: dict[str, Checkpoint] | None = None
    used: dict[str, str] = field(default_factory=dict)

    def step(self, name: str, act: partial[Any]) -> Any:
        """Do an act once: its result is kept, and given back instead of doing it again."""
        self._begin(name, STEP)
        if (kept := self._kept(name, STEP)) is not None:
            return _restored(kept.value, act.func)
        value = _encoded(name, self._result(name, act))
        self._patiently(lambda: self._write_alone(name, STEP, value))
        return _restored(value, act.func)

    def atomic_step(self, name: str, act: partial[Any]) -> Any:
        """Do an act once, whose writes to the database of the jobs commit together with its result."""
        self._begin(name, STEP)
        if (kept := self._kept(name, STEP)) is not None:
            return _restored(kept.value, act.func)
        with self._committing(name, STEP) as commit:
            value = _encoded(name, self._result(name, act))
            commit(value)
        return _restored(value, act.func)

    def cursor(self, name: str, start: T) -> T:
        """Where the last advance left off; ``start`` before the first."""
        self._use(name, CURSOR)
        kept = self._kept(name, CURSOR)
        value: T = start if kept is None else payload.from_json(kept.value)
        return value

    @contextmanager
    def advance(self, name: str, to: Any) -> Iterator[None]:
        """Move a cursor in one transaction with the writes of the block."""
        value = _encoded(name, to)
        self._use(name, CURSOR)
        self.ask()
        self._kept(name, CURSOR)
        with self._committing(name, CURSOR) as commit:
            yield
            commit(value)

    def _begin(self, name: str, kind: str) -> None:
        """Refuse the second step of one name in an attempt: it would be given the result of the first."""
        if self.used.get(name) == kind:
            raise CheckpointError(
                f"The step {name!r} was done in this attempt already, and would be given its result. "
                'Two steps need two names; in a loop, put into the name what differs: f"charge {order_id}".'
            )
        self._use(name, kind)
        self.ask()

    def _result(self, name: str, act: partial[Any]) -> Any:
        """What an act returns; where it fails there is no result, and the body may try again in this attempt."""
        try:
            return act()
        except BaseException:
            self.used.pop(name, None)
            raise

    def _use(self, name: str, kind: str) -> None:
        _check_name(name)
        if self.used.get(name, kind) != kind:
            raise CheckpointError(f"{name!r} is the name of a {self.used[name]} here; name the {kind} otherwise.")
        if self.job is not None:
            _refuse_in_transaction(name)
        self.used[name] = kind

    def _kept(self, name: str, kind: str) -> Checkpoint | None:
        """What is kept under a name, once it is known that more may be."""
        known = self._known()
        kept = known.get(name)
        if kept is not None and kept.kind != kind:
            raise CheckpointError(f"An earlier attempt kept a {kept.kind} called {name!r}; name the {kind} otherwise.")
        if kept is None and len(known) >= settings().MAX_CHECKPOINTS:
            raise CheckpointError(
                f"This job has {len(known):,} checkpoints, which is the most (JOBS['MAX_CHECKPOINTS']). "
                "Use a cursor, which is one checkpoint however often it moves, or a job for each part."
            )
        return kept

    def _known(self) -> dict[str, Checkpoint]:
        if self.known is None:
            job = self.job
            self.known = {} if job is None else self._patiently(lambda: {kept.name: kept for kept in of_job(job)})
        return self.known

    @contextmanager
    def _committing(self, name: str, kind: str) -> Iterator[Callable[[str], None]]:
        """One transaction, whose last act must be to write the checkpoint."""
        written: list[Checkpoint] = []
        try:
            with transaction.atomic(using=lifecycle.alias()):
                yield lambda value: written.append(self._write(name, kind, value))
        except BaseException:
            self.known = None if self.job is not None else self.known  # whether it was committed, only the rows know
            raise
        self._known()[name] = written[0]

    def _write_alone(self, name: str, kind: str, value: str) -> None:
        with self._committing(name, kind) as commit:
            commit(value)

    def _write(self, name: str, kind: str, value: str) -> Checkpoint:
        """Write a checkpoint of the attempt that holds the job.

        Last in its transaction: it locks the job's row, for which the heartbeat would have to wait.
        """
        kept = Checkpoint(job=self.job, name=name, kind=kind, value=value, attempt=self.job.attempt if self.job else 0)
        if self.job is None:
            return kept
        if not lifecycle.hold(self.job) and lifecycle.claim_again(self.job) is None:
            raise LeaseLost("somebody else holds the job now")
        kept.written_at = _clock()
        changed = ["kind", "value", "attempt", "written_at"]
        Checkpoint.objects.using(lifecycle.alias()).bulk_create(
            [kept], update_conflicts=True, unique_fields=["job", "name"], update_fields=changed
        )
        return kept

    def _patiently(self, act: Callable[[], T]) -> T:
        """Do an act, waiting for the database until the body is told to stop: what a step did must not be forgotten."""
        return outage.patiently(lifecycle.database(), act, _database, between=self.ask)


def of_job(job: Job) -> list[Checkpoint]:
    """The checkpoints of a job, oldest first."""
    return list(Checkpoint.objects.using(lifecycle.alias()).filter(job_id=job.pk))


def inherit(heir: Job, original: Job) -> None:
    """Let a job begin where another one, which has ended, left off."""
    copies = [
        Checkpoint(job_id=heir.pk, name=kept.name, kind=kept.kind, value=kept.value, written_at=kept.written_at)
        for kept in of_job(original)
    ]
    Checkpoint.objects.using(lifecycle.alias()).bulk_create(copies, ignore_conflicts=True)


def forget(job: Job) -> None:
    """Let a job begin anew: what it has finished was asked for by another payload."""
    Checkpoint.objects.using(lifecycle.alias()).filter(job_id=job.pk).delete()


def _check_name(name: Any) -> None:
    if not isinstance(name, str) or not name.strip() or len(name) > NAME_LENGTH or not name.isprintable():
        raise CheckpointError(
            f"A checkpoint needs a name of 1 to {NAME_LENGTH} printable characters, not {payload.shorten(name, 60)!r}. "
            "It must be the same in every attempt."
        )


def _refuse_in_transaction(name: str) -> None:
    """A checkpoint in a transaction of the body's own would be forgotten with it, and hold the job's row until then."""
    blocks = lifecycle.database().atomic_blocks
    # As Django's own ``durable=True`` looks at it: the transaction around a test case does not count.
    if blocks and not getattr(blocks[-1], "_from_testcase", False):
        raise CheckpointError(
            f"The checkpoint {name!r} must commit by itself, but a transaction is open here: the body's own "
            "transaction.atomic(), or that of a TransactionalTask, which is done as a whole or not at all. Leave "
            "the block first (advance() and atomic_step() open one), or make the task an IdempotentTask."
        )


def _encoded(name: str, value: Any) -> str:
    """A value as JSON text, bounded."""
    size = int(settings().CHECKPOINT_LIMIT)
    text = _as_json(name, value)
    if len(text.encode()) > size:
        raise CheckpointError(
            f"The value of the checkpoint {name!r} has {len(text.encode()):,} bytes; the limit is {size:,} "
            "(JOBS['CHECKPOINT_LIMIT']). Store the content and keep a reference to it (an id, a path)."
        )
    return text


def _as_json(name: str, value: Any) -> str:
    try:
        return payload.to_json(value)
    except PayloadError:
        pass
    try:
        return payload.to_json(TypeAdapter(type(value)).dump_python(value, mode="json"))
    except Exception as error:
        raise CheckpointError(
            f"The value of the checkpoint {name!r} is not JSON: {payload.shorten(value, 80)}. "
            "Return plain values, or the id of a record."
        ) from error


def _restored(text: str, function: Any) -> Any:
    """A kept value as the function says that it returns it; as plain JSON where it does not say, or does not fit."""
    value = payload.from_json(text)
    try:
        returns = get_type_hints(function, include_extras=True).get("return", Any)
        restored = TypeAdapter(returns).validate_python(value)
    except Exception:
        return value
    return value if isinstance(restored, Iterator) else restored  # pydantic's iterators can be read once only


def _clock() -> Any:
    return RawSQL(lifecycle.clock_sql(), [], output_field=DateTimeField())  # noqa: S611 - our own SQL, no values
