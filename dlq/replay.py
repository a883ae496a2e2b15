"""Sending a dead letter's job through the front door again, once; or closing the letter with a reason."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from uuid import UUID

from django.db import transaction

from dlq.models import DeadLetter, Replay, Status
from jobs import audit, lifecycle
from jobs.errors import JobsError, Refused
from jobs.models import Job
from jobs.payload import Payload
from jobs.replays import repeat
from jobs.states import Priority, priority_from


class NotOpen(Refused):
    """The letter is closed already."""


def replay(
    letter_id: int, *, by: str, reason: str = "", payload: Payload | None = None, priority: object = None
) -> Job:  # fmt: skip
    """Repeat the job of a letter as a new job, with ``payload`` in place of its own if given; return the new job.

    It has the priority that the job began with, whatever its retries made of that, or the one that is given.
    Raises ``NotOpen`` when the letter is closed or somebody else replays it right now, ``PayloadError`` when
    the payload does not fit the task. Then nothing has changed.
    """
    with transaction.atomic(using=lifecycle.alias()):
        letter = _open(letter_id)
        job = repeat(letter.job, payload, None if priority is None else priority_named(priority))
        keep_replay(letter, job.pk, by=by, reason=reason, payload=job.payload)
        audit.record_act(
            "replay",
            by,
            f"dead letter {letter.pk}",
            job_id=job.pk,
            reason=reason,
            original=str(letter.job_id),
        )
    return job


def priority_named(value: object) -> Priority:
    """The priority of this name. Raises ``Refused``."""
    try:
        return priority_from(value)
    except ValueError as error:
        raise Refused(str(error)) from None


def replay_many(
    letter_ids: Iterable[int], *, by: str, reason: str = "", priority: object = None
) -> tuple[list[Job], dict[int, str]]:
    """Replay each letter by itself; return the new jobs, and why the others were refused."""
    jobs: list[Job] = []
    refused: dict[int, str] = {}
    for letter_id in letter_ids:
        try:
            jobs.append(replay(letter_id, by=by, reason=reason, priority=priority))
        except JobsError as error:
            refused[letter_id] = str(error)
    return jobs, refused


def resolve(letter_id: int, *, by: str, reason: str) -> DeadLetter:
    """Close a letter whose trouble was settled elsewhere. Raises ``Refused`` without a reason."""
    return _close(letter_id, Status.RESOLVED, by, reason)


def discard(letter_id: int, *, by: str, reason: str) -> DeadLetter:
    """Close a letter whose work is not wanted any more. Raises ``Refused`` without a reason."""
    return _close(letter_id, Status.DISCARDED, by, reason)


def keep_replay(letter: DeadLetter, job_id: UUID, *, by: str, reason: str, payload: str) -> Replay:
    """Record that ``job_id`` repeats the letter's job, and close the letter."""
    return Replay.objects.using(lifecycle.alias()).create(
        letter=letter, job_id=job_id, at=_mark(letter, Status.REPLAYED, by, reason), by=by, reason=reason,
        payload_before=letter.payload, payload_after=payload,
    )  # fmt: skip


def _close(letter_id: int, status: Status, by: str, reason: str) -> DeadLetter:
    if not reason.strip():
        raise Refused("Say why: a letter is closed for good only with a reason.")
    with transaction.atomic(using=lifecycle.alias()):
        letter = _open(letter_id)
        _mark(letter, status, by, reason)
        audit.record_act(str(status.value), by, f"dead letter {letter.pk}", job_id=letter.job_id, reason=reason)
    return letter


def _open(letter_id: int) -> DeadLetter:
    letter = DeadLetter.objects.using(lifecycle.alias()).select_for_update().filter(pk=letter_id).first()
    if letter is None:
        raise NotOpen(f"There is no dead letter {letter_id}.")
    check_open(letter)
    return letter


def check_open(letter: DeadLetter) -> None:
    """Raise ``NotOpen`` for a letter that is closed, saying how and by whom."""
    if not letter.is_open:
        raise NotOpen(f"Dead letter {letter.pk} is {letter.status} already, by {letter.closed_by or 'somebody'}.")


def _mark(letter: DeadLetter, status: Status, by: str, reason: str) -> datetime:
    now: datetime = lifecycle.database_now()
    rows = DeadLetter.objects.using(lifecycle.alias()).filter(pk=letter.pk, status=Status.OPEN)
    if not rows.update(status=status, closed_at=now, closed_by=by, closing_reason=reason):
        raise NotOpen(f"Somebody else has just closed dead letter {letter.pk}.")
    letter.status, letter.closed_at, letter.closed_by, letter.closing_reason = status, now, by, reason
    return now
