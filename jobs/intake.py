"""The way in: a call becomes a job, follows the job that has its key, or is buried where nobody can be told."""

from __future__ import annotations

import json
import warnings
from contextlib import suppress
from copy import copy
from datetime import timedelta
from typing import Any
from uuid import UUID

from django.db import connections, transaction

from jobs import bursts, canvas, drafts, lifecycle, outbox, payload, publisher, successors
from jobs.errors import JobsError
from jobs.insertion import AWAITED
from jobs.lifecycle import NOW, Clock
from jobs.models import Job
from jobs.payload import Payload
from jobs.signals import job_failed
from jobs.states import State

# Clearly later than ``evidence.AT_ONCE``.
UNKNOWN = timedelta(seconds=4)

_BURIED_OPTIONS = {
    "task_id",
    "root_id",
    "parent_id",
    "group_id",
    "group_index",
    "chord",
    "correlation_id",
    "tenant",
    "schedule",
}


_TEXTS = {"correlation_id", "tenant", "schedule"}


def enqueue(name: str, task: Any, args: Any, kwargs: Any, options: dict[str, Any]) -> UUID:
    """Record a call as a job and send it after the commit; return the id of the job that now stands for it.

    Raises a ``JobsError`` for what is wrong with the call; then nothing is left behind.
    """
    warn_of_foreign_transaction()
    says = drafts.declaration(name, task)
    try:
        late = successors.dispatching()
        job = drafts.draft(name, task, args, kwargs, options, publisher.in_use().app.timezone, handed_on=late)
        job.queue = outbox.queue_of(job.queue, name, task, options)
        outbox.check_sendable(options, name)
        job.canvas = canvas.kept(options, name, held=outbox.holding())
    except JobsError as error:
        if not successors.dispatching():
            raise
        return bury(name, args, kwargs, options, error)
    if outbox.holding():
        job.key = job.window = None  # it takes its key when its turn comes, or it could wait for those who wait for it
    if "task_id" in options:
        job.followed = AWAITED  # type: ignore[assignment]
    owner = _recorded(job, says)
    if owner == job.pk or not ("task_id" in options or (job.window and job.canvas)):
        return owner
    # Somebody already waits for this very id (a canvas froze it), so it is kept and settles with the owner.
    follow(job, owner)
    return job.pk


def _recorded(job: Job, says: drafts.Declaration, *, sent: bool = False) -> UUID:
    """Record a draft; return its id, or that of the job which stands for it."""
    if job.window is not None:
        return bursts.join([job])[job.pk]
    return outbox.record(job, says.key_scope, sent=sent)


def adopt(
    name: str, task: Any, args: Any, kwargs: Any, options: dict[str, Any], *, wait: timedelta | None = None,
    why: str = "",
) -> None:  # fmt: skip
    """Record a job for a message that is in the broker already: reserved, and not sent again.

    With ``wait`` its message is to be forgotten: it is sent by us, that much later at the earliest.
    """
    try:
        late = wait is not None
        job = drafts.draft(name, task, args, kwargs, options, publisher.in_use().app.timezone, handed_on=late)
        job.queue = job.queue or publisher.in_use().app.conf.task_default_queue
        job.canvas = canvas.kept(options, name)
    except JobsError as error:
        bury(name, args, kwargs, options, error)
        return
    if job.window is None and outbox.line_up(job) and wait is None and job.state == State.RESERVED:
        wait, why = timedelta(0), outbox.IN_LINE  # its message is refused: it goes when its limits allow
    if wait is not None:
        job.sends = 1
        if job.state == State.RESERVED:
            job.state, job.reason, job.due_at = State.PENDING, why, Clock(wait)  # type: ignore[assignment]
    elif job.state == State.RESERVED:
        # So that it is found if its message is lost just now. When that was sent, nobody knows: not when it was
        # created, or what was sent before it was would seem to have been overtaken.
        job.sent_at, job.sends = Clock(UNKNOWN), 1  # type: ignore[assignment]
    owner = _recorded(job, drafts.declaration(name, task), sent=True)
    if owner != job.pk:
        follow(job, owner)


def follow(job: Job, owner: UUID) -> None:
    """Insert a job like this draft that settles as ``owner`` does."""
    job = copy(job)  # the draft itself may be tried again
    job.key, job.state, job.due_at, job.waits_for_id = None, State.PENDING, None, None
    with transaction.atomic(using=lifecycle.alias()):
        if lifecycle.insert(job):
            kept = lifecycle.seen(job.pk)
            assert kept is not None
            successors.follow(kept, owner)


def bury(name: str, args: Any, kwargs: Any, options: dict[str, Any], error: JobsError) -> UUID:
    """Keep a call that nobody can be told about as a failed job with its dead letter."""
    wanted = {k: v for k, v in options.items() if k in _BURIED_OPTIONS}
    try:
        job = drafts.draft(name, None, (), {}, wanted, publisher.in_use().app.timezone)
    except JobsError:  # one of these may be what is wrong
        wanted = {k: v for k, v in wanted.items() if k not in _TEXTS}
        job = drafts.draft(name, None, (), {}, wanted, publisher.in_use().app.timezone)
    job.payload = _as_far_as_json(args, kwargs)
    job.queue = publisher.in_use().app.conf.task_default_queue
    with suppress(JobsError):  # what is wrong may be the canvas itself
        job.canvas = canvas.kept(options, name)
    fail(job, "could not be enqueued", error)
    return job.pk


def _as_far_as_json(args: Any, kwargs: Any) -> str:
    """A payload for a letter: of what is not JSON, the text in which it would be printed."""
    try:
        return payload.encode(Payload(tuple(args or ()), dict(kwargs or {})))
    except (JobsError, TypeError, ValueError):
        return json.dumps({"args": [payload.shorten(args, 10_000)], "kwargs": payload.shorten(kwargs, 10_000)})


def fail(job: Job, reason: str, error: JobsError) -> bool:
    """Insert a draft as failed, with its dead letter; False when its id is taken."""
    job.state, job.reason, job.finished_at = State.FAILED, reason, NOW  # type: ignore[assignment]
    job.error_type, job.error_message = f"{type(error).__module__}.{type(error).__qualname__}", str(error)
    with transaction.atomic(using=lifecycle.alias()):
        if not lifecycle.insert(job):
            return False
        kept = Job.objects.using(lifecycle.alias()).get(pk=job.pk)
        job_failed.send(sender=Job, job=kept)
        successors.settle(kept)
    return True


def warn_of_foreign_transaction() -> None:
    """Say so when the caller's transaction is not the one that the job commits with."""
    home = lifecycle.alias()
    others = [c.alias for c in connections.all(initialized_only=True) if c.in_atomic_block and c.alias != home]
    if others and not connections[home].in_atomic_block:
        warnings.warn(
            f"A job is enqueued inside a transaction of {others[0]!r}, but jobs live in {home!r}: "
            "it is kept even if that transaction rolls back.",
            RuntimeWarning,
            stacklevel=4,
        )
