"""The way out: a job's row in the caller's transaction, its message after the commit."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from datetime import timedelta
from typing import Any
from uuid import UUID
from weakref import ref

from django.db import transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from kombu import compression

from jobs import declared, keys, lifecycle, limits, outage, publisher, sender, standing
from jobs.errors import BrokerUnavailable, OptionError, Unsendable
from jobs.idempotency import WHILE_UNFINISHED, KeyScope
from jobs.lifecycle import NOW, Clock, Plus
from jobs.models import Allotment, Job, Share
from jobs.publisher import Failures
from jobs.states import Priority, State

IN_LINE = "waits for its turn"
UNREACHABLE = "the broker could not be reached"
# How often a job is tried that cannot be made into a message: once fails for a process that is being deployed.
TRIES = 5
# Seconds for which the mark on a row says, near enough, when its message went out.
FRESH = 2.0
# How many jobs are handed to the broker, or taken back, at once.
BATCH = 1000
# How many a thread sends for its caller; whoever enqueues more at once goes no faster than the broker takes them.
FEW = 100
# Seconds for which it is taken for known whether others wait in a queue.
LOOK_EVERY = 1.0
MOST_LOOKS = 10_000

_looks: dict[tuple[str, str], tuple[float | None, bool]] = {}
_held_for: ContextVar[UUID | None] = ContextVar("mainstay_held_for", default=None)


def holding() -> bool:
    """Whether what is enqueued now is to be held for a fan-in."""
    return _held_for.get() is not None


@contextmanager
def held(fanin_id: UUID) -> Iterator[None]:
    """What is enqueued inside waits for the members of this fan-in."""
    token = _held_for.set(fanin_id)
    try:
        yield
    finally:
        _held_for.reset(token)


def record(job: Job, scope: KeyScope, *, sent: bool = False) -> UUID:
    """Insert a draft and send it after the commit; return its id, or that of the job which has its key.

    With ``sent`` its message is on its way already.
    """
    if not sent:
        place(job)
    if job.lane and job.due_at is not None:
        with transaction.atomic(using=lifecycle.alias()):
            owner = _insert(job, scope)
            if owner == job.pk:
                lifecycle.note_arrivals([job])
    else:
        owner = _insert(job, scope)
    if owner == job.pk:
        if job.state == State.RESERVED and not sent:
            send_on_commit([job])
        lifecycle.announce("enqueued", job)
    return owner


def place(job: Job) -> None:
    """Decide where a draft starts: reserved, or pending with a reason."""
    fanin_id = _held_for.get()
    if line_up(job) and job.state == State.RESERVED:
        job.state, job.reason = State.PENDING, IN_LINE
    if fanin_id is not None:
        job.state, job.due_at, job.waits_for_id = State.PENDING, None, fanin_id
        job.reason = "waits for the members of its chord"
    elif job.state == State.RESERVED and publisher.in_use().paused:
        job.state, job.reason = State.PENDING, UNREACHABLE
    if job.state == State.RESERVED:
        # Mark first, send second: a crash between leaves a reserved row, which the reconciler sends again.
        job.sent_at, job.sends = NOW, 1  # type: ignore[assignment]


def line_up(job: Job) -> bool:
    """Give a job its lane; False where nothing constrains it, and nobody waits whom it would overtake.

    One that was held, and put in line meanwhile, stays there.
    """
    plain = not (job.lane or job.bound or job.tenant) and job.priority == Priority.NORMAL
    if plain and not _crowded(job.queue, job.task):
        return False
    job.bound = limits.settle(job.bound, job.queue)
    job.lane = limits.lane(job.queue, job.priority, job.tenant, job.task, job.bound)
    return True


def _crowded(queue: str, task: str) -> bool:
    """Whether a plain job must not go directly, as of a moment ago.

    Others wait whom it would overtake, or its whole queue or task has a limit.
    """
    looked, crowded = _looks.get((queue, task), (None, False))
    now = time.monotonic()
    if looked is None or now - looked > LOOK_EVERY:
        # The first look is put off: who enqueues once and ends need not ask.
        crowded = looked is not None and (_others_wait(queue) or _limited(queue, task))
        if len(_looks) > MOST_LOOKS:
            _looks.clear()
        _looks[queue, task] = (now, crowded)
    return crowded


def _others_wait(queue: str) -> bool:
    rows = Share.objects.using(lifecycle.alias())
    return rows.filter(queue=queue, priority__lte=Priority.NORMAL, is_open=True).exists()


def _limited(queue: str, task: str) -> bool:
    names = [standing.name("queue", queue), standing.name("task", task)]
    return Allotment.objects.using(lifecycle.alias()).filter(kind__in=standing.COUNTED, name__in=names).exists()


def _insert(job: Job, scope: KeyScope) -> UUID:
    if job.key is None or scope is WHILE_UNFINISHED:
        return _insert_or_find(job)
    with transaction.atomic(using=lifecycle.alias()):
        owner = keys.take(job.task, job.key, job.pk, scope)
        if owner != job.pk:
            return owner
        owner = _insert_or_find(job)
        if owner != job.pk:
            keys.hand_over(job.task, job.key, owner)
        return owner


def _insert_or_find(job: Job) -> UUID:
    for _ in range(10):
        if lifecycle.insert(job):
            return job.pk
        owner = _owner(job)
        if owner is not None:
            return owner
    raise OptionError(f"The key {job.key!r} of {job.task} changed hands ten times while this call was made. Try again.")


def _owner(job: Job) -> UUID | None:
    rows = Job.objects.using(lifecycle.alias())
    if rows.filter(pk=job.pk).exists():
        return job.pk
    return rows.filter(task=job.task, key=job.key, finished_at__isnull=True).values_list("pk", flat=True).first()


def send_on_commit(jobs: Sequence[Job]) -> None:
    """Send when the transaction commits, at once outside of one; never when it rolls back.

    What one transaction sends in a row goes out together, in the order of the calls. A thread sends where it can.
    """
    connection = lifecycle.database()
    waiting: Any = connection.run_on_commit[-1][1] if connection.run_on_commit else None
    before = waiting if isinstance(waiting, _Sending) else None
    connection.on_commit(_Sending(list(jobs), before, connection), robust=True)


class _Sending:
    """Jobs to be sent after the commit, and the others of the same transaction that come right after them.

    They are known by weak references: Django forgets those whose savepoint was rolled back.
    """

    __slots__ = ("__weakref__", "connection", "jobs", "line", "marked")

    def __init__(self, jobs: list[Job], before: _Sending | None, connection: BaseDatabaseWrapper) -> None:
        self.jobs, self.marked, self.connection = jobs, time.monotonic(), connection
        self.line: list[ref[_Sending]] = before.line if before is not None else []
        self.line.append(ref(self))

    def __call__(self) -> None:
        """Send all of them; those that come later find that they have been sent."""
        if not self.jobs:
            return
        line = [sending for sending in (one() for one in self.line) if sending is not None]
        together = [job for sending in line[line.index(self) :] for job in sending.taken()]
        sender.hand_over(together, self.marked, _send_marked, here=self._here(together))

    def _here(self, jobs: list[Job]) -> bool:
        """Whether the caller is to send: it has many, or its transaction goes on (as in tests), or its sending is seen.

        Who traces messages expects the context of the caller.
        """
        return len(jobs) > FEW or self.connection.in_atomic_block or publisher.in_use().watched

    def taken(self) -> list[Job]:
        """Its jobs, which are sent by somebody else now."""
        jobs, self.jobs = self.jobs, []
        return jobs


def _send_marked(jobs: list[Job], marked: float) -> None:
    send(jobs, marked=marked)


def send(jobs: Sequence[Job], give_up: Callable[[Job], Any] | None = None, *, marked: float | None = None) -> int:
    """Hand reserved jobs to the broker; return how many went. The others are pending again.

    They were marked as sent at ``marked``, by the monotonic clock; now, if it is not given.
    A failure may be ambiguous; a spare message is harmless, because the claim refuses it.
    A job that cannot be made into a message waits alone; ``give_up`` is called with one that was tried too often.
    """
    sent, marked = 0, marked or time.monotonic()
    for start in range(0, len(jobs), BATCH):
        if publisher.in_use().paused:
            take_back(jobs[start:], UNREACHABLE)
            break
        if time.monotonic() - marked > FRESH:
            # A long transaction, or a slow broker: the order in which jobs were sent is evidence of what was lost.
            with _patiently():
                lifecycle.mark_sent(jobs[start:])
            marked = time.monotonic()
        batch = jobs[start : start + BATCH]
        sent += len(batch) - _wait(batch, _published(batch), give_up)
    return sent


def _published(batch: Sequence[Job]) -> Failures:
    """Publish jobs; return those that may not have gone."""
    if len(batch) > 1:
        return publisher.in_use().publish_many(batch)
    try:
        publisher.in_use().publish(batch[0])
    except (BrokerUnavailable, Unsendable) as error:
        return {batch[0].pk: error}
    return {}


def _wait(batch: Sequence[Job], failures: Failures, give_up: Callable[[Job], Any] | None) -> int:
    """Make the jobs pending again that may not have gone, for the conductor to send; return how many they are."""
    unsent: dict[str, list[Job]] = {}
    for job in batch:
        error = failures.get(job.pk)
        if isinstance(error, Unsendable):
            _put_off(job, error, give_up)
        elif error is not None:
            unsent.setdefault(f"{UNREACHABLE}: {error}", []).append(job)
    for reason, jobs in unsent.items():
        take_back(jobs, reason)
    return len(failures)


def _put_off(job: Job, error: Unsendable, give_up: Callable[[Job], Any] | None) -> None:
    """Let an unsendable job wait, longer each time, with the error where a person sees it."""
    cause = type(error.__cause__ or error)
    changes = {
        "due_at": Clock(timedelta(seconds=4 ** (min(job.sends, TRIES) - 1))), "error_message": str(error),
        "error_type": f"{cause.__module__}.{cause.__qualname__}".removeprefix("builtins.")[:255], "traceback": "",
    }  # fmt: skip

    def put_off() -> None:
        waiting = lifecycle.move(job, State.PENDING, f"cannot be sent: {error}", **changes)
        if give_up is not None and job.sends >= TRIES:
            give_up(waiting)

    with _patiently():
        lifecycle.tried(job, put_off)


def take_back(jobs: Sequence[Job], reason: str) -> None:
    """Make reserved jobs pending again, for the conductor to send."""
    for start in range(0, len(jobs), BATCH):
        ids = [lifecycle.prepared("id", job.pk) for job in jobs[start : start + BATCH]]
        with _patiently():
            lifecycle.move_all(
                [State.RESERVED], State.PENDING, f"id IN ({', '.join(['%s'] * len(ids))})", ids, reason,
                due_at=Clock(timedelta(seconds=1)),
                sends=Plus(-1),  # it was not sent; what was sent before still counts
            )  # fmt: skip


@contextmanager
def _patiently() -> Iterator[None]:
    """Let the thread that sends for others wait for a silent database only so long."""
    with ExitStack() as stack:
        if sender.is_thread():
            with suppress(RuntimeError):  # at the end of a process, nobody can watch any more
                stack.enter_context(outage.bounded(lifecycle.database(), outage.SILENCE))
        yield


def check_sendable(options: dict[str, Any], name: str) -> None:
    """Refuse what would only fail when the message is made, and then each time."""
    wanted = options.get("compression")
    if wanted is None:
        return
    try:
        compression.get_encoder(wanted)
    except KeyError:
        known = ", ".join(sorted(compression.encoders()))
        raise OptionError(f"{name} wants an unknown compression {wanted!r}. There are: {known}.") from None


def queue_of(wanted: str, name: str, task: Any, options: dict[str, Any]) -> str:
    """The queue of a job: as the call or the task says, else as Celery routes it.

    Raises ``OptionError`` for a queue that the project does not declare.
    """
    known = declared.queues()
    queue = wanted or _by_name(name, task, options)
    if known and queue not in known:
        raise OptionError(f"{name} names an unknown queue {queue!r}. The project has: {', '.join(sorted(known))}.")
    return queue


def _by_name(name: str, task: Any, options: dict[str, Any]) -> str:
    """The queue to which Celery routes a task; kept, where nothing but the name of the task plays a part."""
    app, says = publisher.in_use().app, publisher.in_use().configured
    if not says.by_name or any(options.get(part) for part in ("exchange", "routing_key", "route_name")):
        return _routed(app, name, task, options)
    queue = says.routes.get(name)
    if queue is None:
        queue = says.routes[name] = _routed(app, name, task, options)
    return queue


def _routed(app: Any, name: str, task: Any, options: dict[str, Any]) -> str:
    given = {k: v for k, v in options.items() if k in ("exchange", "routing_key")}
    try:
        route = app.amqp.router.route(given, options.get("route_name") or name, (), {}, task)
    except Exception as error:
        raise OptionError(f"{name} cannot be routed: {error}.") from error
    queue = _bound(app, route) or route.get("queue")
    return str(getattr(queue, "name", queue) or app.conf.task_default_queue)


def _bound(app: Any, route: dict[str, Any]) -> str | None:
    """The queue to which an exchange leads, where one was named: what is known of a lost message is known by queue."""
    exchange, key = route.get("exchange"), route.get("routing_key")
    name = getattr(exchange, "name", exchange)
    bound = [q.name for q in app.amqp.queues.values() if name and q.exchange and q.exchange.name == name]
    exact = [known for known in bound if app.amqp.queues[known].routing_key == key]
    return next(iter(exact or (bound if len(bound) == 1 else ())), None)
