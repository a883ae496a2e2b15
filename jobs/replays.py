"""Repeating a failed job as a new one: the same front door, the same place in its canvas, no key."""

from __future__ import annotations

from django.db import transaction

from jobs import checkpoints, declared, drafts, lifecycle, outbox, payload, successors
from jobs.errors import PayloadError, Refused
from jobs.models import Job
from jobs.payload import Payload
from jobs.states import Priority, State


def repeat(original: Job, content: Payload | None = None, priority: Priority | None = None) -> Job:
    """Insert a new job that repeats ``original``, with ``content`` in place of its payload if given; return it.

    It has the priority that the original began with, unless another one is given.
    Raises ``Refused`` when the job has not failed or waits for others, ``PayloadError`` when the payload does not fit.
    """
    if original.state != State.FAILED:
        raise Refused(f"Job {original.pk} is {original.state}; only a failed job can be replayed.")
    if original.follows_id is not None:
        return _follow_again(original)
    _refuse_unreadable(original)
    says = drafts.declaration(original.task, declared.task(original.task))
    wanted = content or payload.decode(original.payload)
    if wanted.waits():
        raise Refused("This job waits for the members of its chord. Replay the member that failed: this one follows.")
    job = drafts.copy(
        original, max_attempts=says.allowed, waits_for_id=None if content else original.waits_for_id,
        priority=first_priority(original) if priority is None else priority.value,
    )  # fmt: skip
    if content is None:
        job.bound = drafts.bound_by(job, says, wanted)
    else:
        drafts.fill(job, says, content)
        job.key, job.version = None, says.version
    with transaction.atomic(using=lifecycle.alias()):
        outbox.record(job, says.key_scope)
        if _decoded(job) == _decoded(original):
            checkpoints.inherit(job, original)
    kept = lifecycle.seen(job.pk)
    assert kept is not None
    return kept


def first_priority(original: Job) -> int:
    """At which priority a job began: its retries may have lowered it."""
    attempts = original.attempts.using(lifecycle.alias()).exclude(priority=None).order_by("number")
    first = attempts.values_list("priority", flat=True).first()
    return original.priority if first is None else first


def check(original: Job, content: Payload) -> None:
    """Raise ``PayloadError`` where a payload does not fit the task of a job; nothing is written."""
    drafts.fill(drafts.copy(original), drafts.declaration(original.task, declared.task(original.task)), content)


def _decoded(job: Job) -> Payload | None:
    try:
        return payload.decode(job.payload)
    except PayloadError:
        return None  # the text of a message that could not be read


def _refuse_unreadable(original: Job) -> None:
    """A message that was no call of a known task can be repeated only as a call of one."""
    if original.error_type == "jobs.errors.UnreadableMessage" and declared.task(original.task) is None:
        raise Refused(
            f"This was a message that names no task of this project ({original.task}), so there is nothing to run. "
            "Resolve or discard it, and enqueue what it was meant to do."
        )


def _follow_again(follower: Job) -> Job:
    """Repeat a job that failed as the one which had its key: it follows the replay of that one."""
    had_key = follower.follows_id
    assert had_key is not None
    owner = Job.objects.using(lifecycle.alias()).filter(pk=had_key).first()
    line = (owner.origin_id or owner.pk) if owner is not None else had_key
    newest = Job.objects.using(lifecycle.alias()).filter(origin_id=line).order_by("-created_at", "-id").first()
    if newest is None or newest.state == State.FAILED:
        raise Refused(f"This job failed as {had_key}, which has its key. Replay that one first: this one follows it.")
    job = drafts.copy(follower, state=State.PENDING, due_at=None, follows_id=None)
    lifecycle.insert(job)
    kept = lifecycle.seen(job.pk)
    assert kept is not None
    successors.follow(kept, newest.pk)
    return Job.objects.using(lifecycle.alias()).get(pk=job.pk)
