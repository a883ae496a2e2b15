"""Many jobs at once: a thousand to a statement, and sent together once they are committed."""

from __future__ import annotations

import string
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby, islice
from typing import Any, overload
from uuid import UUID

from django.db import OperationalError, transaction

from jobs import (
    bursts,
    canvas,
    declared,
    drafts,
    intake,
    keys,
    lifecycle,
    outage,
    outbox,
    payload,
    publisher,
    signals,
    windows,
)  # fmt: skip
from jobs.drafts import Declaration
from jobs.errors import JobsError, OptionError
from jobs.idempotency import WHILE_UNFINISHED, KeyScope, check_key
from jobs.insertion import AWAITED
from jobs.lifecycle import NOW
from jobs.models import Job
from jobs.payload import Payload
from jobs.states import State

SLICE = 1000  # jobs that one statement inserts
# Of one transaction, as many are sent when it commits. The others would have to be kept in memory until then.
SENT_AT_COMMIT = 10_000

TRIES = 5  # of a slice that loses to others which take the same keys in another order
IN_ANOTHER_ORDER = (
    "Another transaction has keys of this bulk and waits for others of it. Let both take their keys in the same order: "
    f"a bulk does so for each {SLICE:,} items, so sort the items of a longer one by what makes their key."
)

_OF_ONE_CALL = ("task_id", "group_index", "chord", "chain")


@dataclass(frozen=True, slots=True)
class Item:
    """One call of a bulk with a key of its own."""

    payload: Any
    key: str | None = None


class Ids(Sequence[UUID]):
    """The ids of many jobs, in sixteen bytes each."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def append(self, job_id: UUID) -> None:
        """Add one."""
        self._bytes += job_id.bytes

    def extend(self, job_ids: Iterable[UUID]) -> None:
        """Add many."""
        self._bytes += b"".join([job_id.bytes for job_id in job_ids])

    def clear(self) -> None:
        """Forget all."""
        self._bytes.clear()

    def __len__(self) -> int:
        return len(self._bytes) // 16

    @overload
    def __getitem__(self, place: int) -> UUID: ...
    @overload
    def __getitem__(self, place: slice) -> list[UUID]: ...
    def __getitem__(self, place: int | slice) -> UUID | list[UUID]:
        if isinstance(place, slice):
            return [self[one] for one in range(*place.indices(len(self)))]
        if not -len(self) <= place < len(self):
            raise IndexError(place)
        start = place % len(self) * 16
        return UUID(bytes=bytes(self._bytes[start : start + 16]))

    def __repr__(self) -> str:
        return f"<{len(self):,} ids>"


@dataclass(frozen=True, slots=True)
class Enqueued:
    """What became of a bulk: ``ids`` has, for each item in its order, the job that stands for it."""

    ids: Ids = field(default_factory=Ids)
    duplicates: dict[int, UUID] = field(default_factory=dict)
    """The items whose key was taken, by their place from 0, each with the job that has it."""

    @property
    def inserted(self) -> int:
        """How many are new jobs."""
        return len(self.ids) - len(self.duplicates)

    def __len__(self) -> int:
        return len(self.ids)

    def clear(self) -> None:
        """Forget all: it was rolled back."""
        self.ids.clear()
        self.duplicates.clear()


@dataclass(frozen=True, slots=True)
class _Call:
    """A draft, and what is to become of it where its key is taken."""

    job: Job
    scope: KeyScope
    awaited: bool = False


def bulk(
    task: Any, payloads: Iterable[Any] | None = None, *, key: Any = None,
    progress: Callable[[int], object] | None = None, into: Enqueued | None = None, **options: Any,
) -> Enqueued:  # fmt: skip
    """Enqueue many calls: ``bulk(task, payloads, …)``, or ``bulk(signatures, …)`` of any tasks.

    A payload is a tuple or a list of arguments, a dictionary of them by name, or the only argument. The options are
    those of ``apply_async``; ``key`` is a template or a function, as a task declares it.

    A thousand are committed at a time, and sent at once; inside of a transaction all of them are part of it.
    ``progress`` is told after each how many there are by now; ``into`` is what is returned, for whoever stops it.
    Raises a ``JobsError`` that names the item, with its place in ``item``; its thousand leave nothing behind.
    """
    calls = _of_signatures(task, key, options) if payloads is None else _of_task(task, payloads, key, options)
    done = Enqueued() if into is None else into
    if publisher.in_use().app.conf.task_always_eager:
        return _run_eagerly(calls, done)
    connection = lifecycle.database()
    if connection.in_atomic_block:
        try:
            with transaction.atomic(using=connection.alias):
                _record_all(calls, done, progress)
        except BaseException:
            done.clear()
            raise
    else:
        try:
            _record_all(calls, done, progress)
        except Exception as error:
            if len(done):
                error.add_note(f"The {len(done):,} items before it are enqueued.")
            raise
    return done


def check(task: Any, payloads: Iterable[Any], *, key: Any = None, **options: Any) -> int:
    """Check the items of a bulk as ``bulk`` would, and enqueue nothing; return how many they are."""
    return sum(1 for _ in _of_task(task, payloads, key, options))


def _record_all(calls: Iterator[_Call], done: Enqueued, progress: Callable[[int], object] | None) -> None:
    intake.warn_of_foreign_transaction()
    connection = lifecycle.database()
    inside = connection.in_atomic_block or not connection.get_autocommit()
    while together := list(islice(calls, SLICE)):
        if inside:
            _record_inside(together, done)
        else:
            _record_outside(together, done)
        if progress is not None:
            progress(len(done))


def _record_inside(together: Sequence[_Call], done: Enqueued) -> None:
    """Make a slice a part of the caller's transaction."""
    try:
        with transaction.atomic(using=lifecycle.alias()):
            owners = _record(together, left=len(done) >= SENT_AT_COMMIT)
    except OperationalError as error:
        if outage.deadlocked(error):
            error.add_note(IN_ANOTHER_ORDER)
        raise
    _note(together, owners, done)


def _record_outside(together: Sequence[_Call], done: Enqueued) -> None:
    """Commit a slice by itself, and begin again where the database has chosen it to end a deadlock."""
    for tries_left in reversed(range(TRIES)):
        try:
            with transaction.atomic(using=lifecycle.alias()):
                owners: dict[UUID, UUID] = {}
                # Before any of them is sent: whoever is interrupted while sending is told that they are enqueued.
                transaction.on_commit(partial(_note, together, owners, done), using=lifecycle.alias())
                owners |= _record(together, left=False)
            return
        except OperationalError as error:
            if not tries_left or not outage.deadlocked(error):
                raise


def _note(together: Sequence[_Call], owners: Mapping[UUID, UUID], done: Enqueued) -> None:
    """Say which jobs stand for the items of a slice."""
    if not owners:
        done.ids.extend(call.job.id for call in together)
        return
    for call in together:
        job_id = call.job.id
        owner = owners.get(job_id, job_id)
        if owner != job_id:
            done.duplicates[len(done)] = owner
        done.ids.append(job_id if call.awaited else owner)


def _run_eagerly(calls: Iterator[_Call], done: Enqueued) -> Enqueued:
    """Run all at once and here, as Celery does with ``task_always_eager``; nothing is recorded."""
    for call in calls:
        content, task = payload.decode(call.job.payload), declared.task(call.job.task)
        if task is None:
            raise OptionError(
                f"{call.job.task} is not known here, where it would have to run: task_always_eager is set."
            )
        task.apply(content.args, content.kwargs, task_id=str(call.job.pk))
        done.ids.append(call.job.pk)
    return done


# --- From items to drafts ---------------------------------------------------------------------------


def _of_task(task: Any, payloads: Iterable[Any], key: Any, options: dict[str, Any]) -> Iterator[_Call]:
    """The calls of one task."""
    if isinstance(payloads, str | bytes | Mapping) or not isinstance(payloads, Iterable):
        raise OptionError(f"The payloads of a bulk must be a list or another iterable of payloads, not {payloads!r}.")
    name, known = _task(task)
    return _each(_Pattern(name, known, key, options).call, payloads)


def _of_signatures(signatures: Any, key: Any, options: dict[str, Any]) -> Iterator[_Call]:
    """The calls that signatures stand for."""
    if key is not None:
        raise OptionError('A bulk of signatures takes a key from each of them: task.s(1).set(key="…").')
    one = canvas.is_signature(signatures) or isinstance(signatures, str) or hasattr(signatures, "apply_async")
    if one or not isinstance(signatures, Iterable):
        raise OptionError(f"Give bulk a task and its payloads, or a list of signatures, not {signatures!r}.")
    patterns: dict[str, _Pattern] = {}

    def call(signature: Any) -> _Call:
        if not canvas.is_signature(signature):
            raise OptionError(f"{signature!r} is no signature, such as task.s(1). For payloads: bulk(task, payloads).")
        if canvas.kind_of(signature):
            raise OptionError(
                f"A {canvas.kind_of(signature)} cannot be part of a bulk. Call its apply_async() inside of "
                "transaction.atomic(): what one transaction enqueues is sent together."
            )
        own = {**signature.options, **options}
        content = Payload(tuple(signature.args), dict(signature.kwargs))
        if set(own) - {"key"} != set(options):
            return _Pattern(*_task(signature.task), None, own, alone=True).call(content)
        if signature.task not in patterns:
            patterns[signature.task] = _Pattern(*_task(signature.task), None, options)
        return patterns[signature.task].call(Item(content, own.get("key")))

    return _each(call, signatures)


def _each(call: Callable[[Any], _Call], items: Iterable[Any]) -> Iterator[_Call]:
    """The call of each item; an error says which of them it is about."""
    for place, item in enumerate(items):
        try:
            yield call(item)
        except JobsError as error:
            told = type(error)(f"Item {place:,}: {error}")
            told.item = place
            raise told from error


def _task(task: Any) -> tuple[str, Any]:
    """The name of a task and the task, given as either, or as its class."""
    name = task if isinstance(task, str) else getattr(task, "name", None)
    if not isinstance(name, str):
        raise OptionError(f"{task!r} is not a task.")
    return name, declared.task(name)


class _Pattern:
    """What the calls of one task with the same options have alike; it is worked out once."""

    def __init__(self, name: str, task: Any, key: Any, options: dict[str, Any], *, alone: bool = False) -> None:
        given = _given(name, task, options, alone)
        self.task, self.says = task, _with_key(drafts.declaration(name, task), key)
        self.key = given.pop("key", None)
        self.window = windows.chosen(name, self.says.window, given)
        self.outline = drafts.outline(self.says, given, publisher.in_use().app.timezone)
        self.outline.queue = outbox.queue_of(self.outline.queue, name, task, given)
        outbox.check_sendable(given, name)
        self.outline.canvas = canvas.kept(given, name)
        self.awaited = "task_id" in given
        if self.awaited:
            self.outline.followed = AWAITED  # type: ignore[assignment]
        self.copies = drafts.copies(self.outline)

    def call(self, item: Any) -> _Call:
        """The draft of one item."""
        key = self.key
        if type(item) is Item:
            item, key = item.payload, item.key
        job = self.outline if self.awaited else next(self.copies)
        drafts.fill(job, self.says, self._content(item), key, self.window)
        return _Call(job, self.says.key_scope, self.awaited)

    def _content(self, item: Any) -> Payload:
        content = Payload((item,)) if self.says.chunked and not isinstance(item, Payload) else _payload(item)
        dump = getattr(self.task, "_dump_pydantic_arguments", None)
        return content if dump is None else Payload(*dump(content.args, content.kwargs))


def _given(name: str, task: Any, options: dict[str, Any], alone: bool) -> dict[str, Any]:
    """The options of a call as Celery would make them up: those of the task, under those that were given."""
    if options.get("tracked", getattr(task, "tracked", True)) is False or name.startswith("celery."):
        raise OptionError(f"{name} is not tracked, and a bulk is one of jobs. Call its apply_async().")
    single = [option for option in _OF_ONE_CALL if option in options]
    if single and not alone:
        raise OptionError(f"{single[0]} is an option of a single call. A bulk of signatures can have one for each.")
    declared_options = task._get_exec_options() if task is not None else {}
    given = {**declared_options, **options}
    parent = publisher.in_use().app.current_worker_task
    if parent is not None and not parent.request.called_directly:
        given.setdefault("parent_id", parent.request.id)
        given.setdefault("root_id", parent.request.root_id or parent.request.id)
    given.pop("tracked", None)
    return {option: value for option, value in given.items() if value is not None}


def _with_key(says: Declaration, key: Any) -> Declaration:
    """The declaration of a task with the key that a bulk says."""
    if key is None:
        return says
    if isinstance(key, str) and not any(field for _, field, *_ in string.Formatter().parse(key)):
        raise OptionError(f'With key="{key}" all items would be one job. Name a parameter in it, as in "row:{{id}}".')
    check_key(says.name, key, payload.signature_of(says.body).parameters if says.body else None)
    return replace(says, key=key)


def _payload(item: Any) -> Payload:
    match item:
        case Payload():
            return item
        case tuple() | list():
            return Payload(tuple(item))
        case dict():
            if canvas.is_signature(item):
                raise OptionError("This is a signature. Give signatures alone, without a task: bulk(signatures).")
            return Payload((), item)
    return Payload((item,))


# --- From drafts to rows ----------------------------------------------------------------------------


def _record(calls: Sequence[_Call], *, left: bool) -> dict[UUID, UUID]:
    """Insert drafts and send them after the commit; return whose job stands for those whose key was taken.

    Those that are ``left`` to the conductor are not sent.
    """
    joining, plain = _parted(calls)
    for call in plain:
        outbox.place(call.job)
        if left and call.job.state == State.RESERVED:
            _leave(call.job)
    owners = _insert(plain) | _join(joining)
    new = list({call.job.id: call.job for call in plain if call.job.id not in owners}.values())
    for call in calls:
        if call.awaited and call.job.id in owners:
            intake.follow(call.job, owners[call.job.id])
    lifecycle.note_arrivals(new)
    sent = [job for job in new if job.state == State.RESERVED]
    if sent:
        outbox.send_on_commit(sent)
    if signals.lifecycle.has_listeners(Job):
        for job in new:
            lifecycle.announce("enqueued", job)
    return owners


def _parted(calls: Sequence[_Call]) -> tuple[Sequence[_Call], Sequence[_Call]]:
    """The calls that belong to a burst, and the others."""
    if not any(call.job.window for call in calls):
        return (), calls
    return [call for call in calls if call.job.window], [call for call in calls if not call.job.window]


def _join(calls: Sequence[_Call]) -> dict[UUID, UUID]:
    """Make calls part of their bursts; return whose job stands for those that no burst began with."""
    together: dict[tuple[str, str], list[Job]] = {}
    for call in calls:
        assert call.job.window is not None
        together.setdefault((call.job.task, call.job.window.key), []).append(call.job)
    owners: dict[UUID, UUID] = {}
    for key in sorted(together):
        owners |= bursts.join(together[key])
    return {draft: owner for draft, owner in owners.items() if draft != owner}


def _leave(job: Job) -> None:
    """Leave a job to the conductor, which sends it soon after the commit."""
    job.state, job.reason, job.due_at = State.PENDING, "one of many of its transaction", NOW  # type: ignore[assignment]
    job.sent_at, job.sends = None, 0


def _insert(calls: Sequence[_Call]) -> dict[UUID, UUID]:
    """Insert drafts, in the order of their keys, so that two bulks never wait for each other; return who had theirs."""
    rows = [call.job for call in calls if call.job.key is None]
    keyed: dict[tuple[str, str], _Call] = {}
    twins: dict[UUID, UUID] = {}
    for call in calls:
        if call.job.key is not None:
            first = keyed.setdefault((call.job.task, call.job.key), call)
            if first.job.pk != call.job.pk:
                twins[call.job.pk] = first.job.pk
    in_order = [keyed[key] for key in sorted(keyed)]
    owners = _take_keys(in_order)
    found = _insert_or_find([*rows, *(call.job for call in in_order if call.job.pk not in owners)])
    for call in in_order:
        if call.scope is not WHILE_UNFINISHED and call.job.pk in found:
            keys.hand_over(call.job.task, str(call.job.key), found[call.job.pk])
    owners |= found
    return owners | {twin: owners.get(first_of, first_of) for twin, first_of in twins.items()}


def _take_keys(calls: Sequence[_Call]) -> dict[UUID, UUID]:
    """Take the keys that hold longer than their jobs; return the owners of those that were taken."""
    owners: dict[UUID, UUID] = {}
    for (_, scope), group in groupby(calls, key=lambda call: (call.job.task, call.scope)):
        if scope is not WHILE_UNFINISHED:
            jobs = [call.job for call in group]
            held = keys.take_many(jobs, scope)
            owners |= {job.pk: held[str(job.key)] for job in jobs if held[str(job.key)] != job.pk}
    return owners


def _insert_or_find(jobs: Sequence[Job]) -> dict[UUID, UUID]:
    """Insert drafts; return, of those whose key an unfinished job has, which one."""
    owners: dict[UUID, UUID] = {}
    for _ in range(10):
        if not jobs or lifecycle.insert_many(jobs) == len(jobs):
            return owners
        inserted = lifecycle.inserted(jobs)
        missing = [job for job in jobs if job.pk not in inserted]
        owners |= _owners(missing)
        jobs = [job for job in missing if job.pk not in owners]  # those whose owner finished just now
    raise OptionError(f"The key {jobs[0].key!r} of {jobs[0].task} changed hands ten times meanwhile. Try again.")


def _owners(jobs: Sequence[Job]) -> dict[UUID, UUID]:
    """The unfinished jobs that have the keys of these."""
    wanted = {(job.task, job.key): job.pk for job in jobs}
    rows = Job.objects.using(lifecycle.alias()).filter(
        task__in={job.task for job in jobs}, key__in={job.key for job in jobs}, finished_at__isnull=True
    )
    found = rows.values_list("task", "key", "pk")
    return {wanted[task, key]: owner for task, key, owner in found if (task, key) in wanted}
