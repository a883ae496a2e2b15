"""What follows a job that settled: links, the rest of its chain, its chord, its followers.

All of it happens in the transaction that records the outcome, so that a crash loses neither.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db import IntegrityError, transaction
from django.db.models import F

from jobs import canvas, declared, drafts, errbacks, keys, lifecycle, options, outbox, payload, publisher
from jobs.context import correlated
from jobs.errors import DependencyFailed, JobsError, MoveRefused
from jobs.idempotency import WHILE_UNFINISHED
from jobs.lifecycle import NOW, Clock
from jobs.models import FanIn, Job
from jobs.signals import job_failed, job_replayed
from jobs.states import FINAL, State

_dispatching: ContextVar[bool] = ContextVar("mainstay_dispatching", default=False)


def dispatching() -> bool:
    """Whether what is enqueued now follows a job that settled, so that nobody can be told of an error."""
    return _dispatching.get()


def has_any(job: Job) -> bool:
    """Whether anything hangs on how the job ends."""
    return bool(job.canvas or job.fanin_id or job.followed)


def settle(job: Job) -> None:
    """Let everything go on, or fail, that waited for a job which is final now."""
    with correlated(job.correlation_id):
        _settle(job)


def _settle(job: Job) -> None:
    follows = payload.from_json(job.canvas) if job.canvas else {}
    if job.state == State.COMPLETED:
        _dispatch(job, follows)
    else:
        _call_errbacks(job, follows.get("errors", ()))
        for signature in canvas.ends(follows.get("chain", ())[:1]):
            _strand(job, signature)
    if job.fanin_id:
        _count(job.fanin_id, job.origin_id or job.pk, job.state == State.COMPLETED)
    if job.followed:
        for follower in _followers(job.pk):
            _unless_moved(settle_follower, follower, job)


def follow(job: Job, owner: UUID) -> None:
    """Tie a pending job to ``owner``; where that is final already, settle it at once."""
    reason = f"follows {owner}"
    rows = Job.objects.using(lifecycle.alias())
    with transaction.atomic(using=lifecycle.alias()):
        if owner == job.pk or rows.filter(pk=owner, follows_id=job.pk).exists():
            finish(job, State.FAILED, f"it would wait for itself: {owner} follows it")
            return
        job = lifecycle.move(job, State.PENDING, reason, follows_id=owner, due_at=None, waits_for_id=None)
        if rows.filter(pk=owner, finished_at__isnull=True).update(followed=True):
            return
        finished = rows.filter(pk=owner).first()
        if finished is not None:
            settle_follower(job, finished)
        else:
            # A key may outlive its job: the work was done once, and its record has been pruned.
            finish(job, State.COMPLETED, f"as {owner}, which has its key and was pruned")


def replace(job: Job, signature: Any) -> None:
    """Start ``signature`` in place of a running job, which then settles as its last job does."""
    lineage = {"parent_id": str(job.pk), "root_id": str(job.root_id or job.pk)}
    owner = UUID(str(signature.freeze().id))
    with transaction.atomic(using=lifecycle.alias()):
        # It gives its key up, or a successor with the same key would wait for the job that waits for it.
        moved = lifecycle.move(job, State.PENDING, f"replaced by {owner}", follows_id=owner, due_at=None, key=None)
        if moved.cancel_requested_at is not None:
            # Somebody asked it to stop: what was to replace it does not start.
            finish(moved, State.CANCELLED, moved.cancel_reason)
            return
        keys.release(job.pk)
        with _as_successor():
            signature.apply_async(**lineage)
        _keep_key(job)
        rows = Job.objects.using(lifecycle.alias())
        rows.filter(pk=owner, finished_at__isnull=True).update(followed=True)


def _keep_key(job: Job) -> None:
    """Hold a replaced job's key for as long as its task says, unless its successor took it."""
    scope = drafts.declaration(job.task, declared.task(job.task)).key_scope
    if job.key is not None and scope is not WHILE_UNFINISHED:
        keys.take(job.task, job.key, job.pk, scope)


def settle_follower(follower: Job, job: Job) -> None:
    """Give a follower the outcome of the job that it follows."""
    outcome = Job.objects.using(lifecycle.alias()).get(pk=job.pk)
    changes = {"result": outcome.result, "started_at": outcome.started_at}
    if outcome.state == State.FAILED:
        changes |= {k: getattr(outcome, k) for k in ("error_type", "error_message", "traceback")}
    finish(follower, State(outcome.state), f"as {outcome.pk}, which it followed", **changes)


def finish(job: Job, target: State, reason: str, **changes: Any) -> Job:
    """Move a job to a final state, keep its dead letter if it failed, and settle what hangs on it."""
    with transaction.atomic(using=lifecycle.alias()):
        job = lifecycle.move(job, target, reason, **changes)
        if target is State.FAILED:
            job_failed.send(sender=Job, job=Job.objects.using(lifecycle.alias()).get(pk=job.pk))
        lifecycle.announce(target.value, job)
        if has_any(job):
            settle(job)
    return job


def open_fanin(fanin_id: UUID, size: int, body: Any) -> None:
    """Begin a chord: its body is recorded from the start, held until the last member of the header settles."""
    with transaction.atomic(using=lifecycle.alias()):
        # One more than there are, until all are inserted: members that settle at once must not end the chord early.
        FanIn.objects.using(lifecycle.alias()).create(
            id=fanin_id, size=size + 1, remaining=size + 1, created_at=lifecycle.database_now()
        )
        with outbox.held(fanin_id):
            body.apply_async(args=(payload.later(),))


def resize_fanin(fanin_id: UUID, size: int) -> None:
    """Correct the number of members, of which some may have settled as they were inserted."""
    fanin = FanIn.objects.using(lifecycle.alias()).filter(pk=fanin_id)
    fanin.update(remaining=F("remaining") + size - F("size"), size=size)


def _dispatch(job: Job, follows: dict[str, Any]) -> None:
    """Insert links and the next of the chain, as Celery would have published them."""
    lineage = {"parent_id": str(job.pk), "root_id": str(job.root_id or job.pk)}
    result = _result(job)
    with _as_successor():
        for link in follows.get("links", ()):
            canvas.signature(link).apply_async((result,), **lineage)
        chain = follows.get("chain") or []
        if chain:
            canvas.signature(chain[-1]).apply_async((result,), chain=chain[:-1] or None, **lineage)


@contextmanager
def _as_successor() -> Iterator[None]:
    token = _dispatching.set(True)
    try:
        yield
    finally:
        _dispatching.reset(token)


def _call_errbacks(job: Job, linked: Any) -> None:
    """Enqueue what was linked to the failure, as durably as everything else."""
    with _as_successor():
        for errback in linked:
            signature = canvas.signature(errback)
            signature.apply_async(
                errbacks.arguments(signature, job), parent_id=str(job.pk), root_id=str(job.root_id or job.pk)
            )


def _strand(job: Job, signature: Any) -> None:
    """What a chain would have ended with can no longer come: tell those who wait for it."""
    options = signature.options
    end = options.get("task_id")
    if end is None:
        return
    if options.get("chord") and options.get("group_id"):
        _count(UUID(str(options["group_id"])), UUID(str(end)), completed=False)
    for follower in _followers(UUID(str(end))):
        _unless_moved(settle_follower, follower, job)


def _count(fanin_id: UUID, member: UUID, completed: bool) -> None:
    """Count a member of a chord's header once, whatever is rescued or replayed; the last one releases the body."""
    fanin = FanIn.objects.using(lifecycle.alias()).select_for_update().filter(pk=fanin_id).first()
    if fanin is None:
        return
    failed, late = set(fanin.failed), str(member) in fanin.failed
    if late and not completed:
        return
    failed ^= {str(member)} if late or not completed else set()
    fanin.remaining -= 0 if late else 1
    fanin.failed = sorted(failed)
    fanin.save(using=lifecycle.alias(), update_fields=["remaining", "failed"])
    if fanin.remaining == 0:
        _conclude_fanin(fanin)


def _conclude_fanin(fanin: FanIn) -> None:
    waiting = list(Job.objects.using(lifecycle.alias()).filter(waits_for_id=fanin.pk))
    if fanin.failed:
        for body in waiting:
            if body.state not in FINAL:
                _unless_moved(_fail_body, body, fanin)
        return
    results = _results(fanin)
    for body in waiting:
        if body.state == State.FAILED:
            body = _again(body)
        if body.state not in FINAL:
            _unless_moved(_release_body, body, results)


def _unless_moved(act: Callable[..., None], *args: Any) -> None:
    """Do to another job what follows from this one; that it has been moved meanwhile must not undo this one."""
    with suppress(MoveRefused), transaction.atomic(using=lifecycle.alias()):
        act(*args)


def _results(fanin: FanIn) -> list[Any]:
    rows = Job.objects.using(lifecycle.alias()).filter(fanin_id=fanin.pk, state=State.COMPLETED)
    found = rows.order_by("group_index", "created_at").values_list("result", flat=True)
    return [payload.from_json(result) if result is not None else None for result in found]


def _release_body(body: Job, results: list[Any]) -> None:
    try:
        fulfil(body, results)
    except JobsError as error:
        finish(
            body, State.FAILED, "its payload does not fit", error_message=str(error),
            error_type=f"{type(error).__module__}.{type(error).__qualname__}",
            payload=payload.encode(payload.decode(body.payload).fulfilled(results)),
        )  # fmt: skip


def _fail_body(body: Job, fanin: FanIn) -> None:
    finish(
        body, State.FAILED, "a member of its chord did not complete",
        error_type=f"{DependencyFailed.__module__}.{DependencyFailed.__qualname__}",
        error_message=f"{len(fanin.failed)} of {fanin.size} members did not complete; {_remedy(fanin.failed[0])}",
    )  # fmt: skip


def _remedy(member: str) -> str:
    """What an operator can do for a chord's body: a failed member can be replayed, a cancelled one cannot."""
    job = lifecycle.seen(UUID(member))
    if job is not None and job.state == State.CANCELLED:
        return f"the first, {member}, was cancelled. Replay this job with a payload of its own, or discard it."
    return f"the first is {member}. Replay it: this job is replayed with it."


def _again(body: Job) -> Job:
    """A failed chord body whose members have all been replayed: repeat it, once."""
    copies = Job.objects.using(lifecycle.alias()).filter(replay_of_id=body.pk)
    existing = copies.first()
    if existing is not None:
        return existing
    copy = drafts.copy(body, state=State.PENDING, due_at=None, reason="its chord is complete after a replay")
    lifecycle.insert(copy)
    job_replayed.send(
        sender=Job, original=body.pk, job=copy.pk, by="mainstay", reason="its chord was completed by a replay"
    )
    kept = lifecycle.seen(copy.pk)
    assert kept is not None
    return kept


def fulfil(job: Job, value: Any) -> None:
    """Give a held job the value that it waited for, and let it go: now, or after the delay that it was given.

    Raises a ``JobsError`` when the payload does not fit its task.
    """
    says = drafts.declaration(job.task, declared.task(job.task))
    asked = payload.from_json(job.canvas).get("held", {}) if job.canvas else {}
    drafts.fill(job, says, payload.decode(job.payload).fulfilled(value), asked.get("key"), handed_on=True)
    owner = _owner(job, says)
    if owner is None:
        try:
            with transaction.atomic(using=lifecycle.alias()):
                _let_go(job, options.due(asked, publisher.in_use().app.timezone))
            return
        except IntegrityError:  # somebody took the key between our look and our move, or outlived its period
            owner = _unfinished_owner(job)
    if owner is None:
        raise MoveRefused(f"The key of job {job.pk} changed hands.")
    follow(job, owner)


def _let_go(job: Job, due: timedelta | datetime | None) -> None:
    in_line = outbox.line_up(job)
    changes: dict[str, Any] = {"payload": job.payload, "key": job.key, "lane": job.lane, "bound": job.bound}
    if in_line and due is None:
        lifecycle.move(job, State.PENDING, outbox.IN_LINE, due_at=NOW, **changes)
        return
    if due is not None:
        due_at = Clock(due) if isinstance(due, timedelta) else due
        lifecycle.move(job, State.PENDING, "scheduled", due_at=due_at, **changes)
        return
    outbox.send_on_commit([lifecycle.move(job, State.RESERVED, due_at=NOW, sent_at=NOW, sends=1, **changes)])


def _owner(job: Job, says: drafts.Declaration) -> UUID | None:
    """The job that has the key of a held job, if another one has."""
    if job.key is None:
        return None
    if says.key_scope is not WHILE_UNFINISHED:
        owner = keys.take(job.task, job.key, job.pk, says.key_scope)
        return None if owner == job.pk else owner
    return _unfinished_owner(job)


def _unfinished_owner(job: Job) -> UUID | None:
    rows = Job.objects.using(lifecycle.alias()).filter(task=job.task, key=job.key, finished_at__isnull=True)
    return rows.exclude(pk=job.pk).values_list("pk", flat=True).first()


def _followers(owner: UUID) -> list[Job]:
    return list(Job.objects.using(lifecycle.alias()).filter(follows_id=owner, finished_at__isnull=True))


def _result(job: Job) -> Any:
    text = Job.objects.using(lifecycle.alias()).values_list("result", flat=True).get(pk=job.pk)
    return None if text is None else payload.from_json(text)
