"""One heartbeat per process: it renews leases, writes progress, and stops the bodies that must stop.

It has two threads: one talks to the database, which may hang; the other has only a clock, and stops in time.
What does not stop when it is told to is ended with its process, where it has a process of its own: a child of the pool.
"""

from __future__ import annotations

import ctypes
import faulthandler
import logging
import os
import random
import reprlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import UUID

from django.db import Error, transaction

from jobs import green, lifecycle, outage, plain, shield
from jobs.conf import current as settings
from jobs.errors import JobCancelled, LeaseLost, LeaseNotRenewed, PayloadError
from jobs.lifecycle import Clock
from jobs.models import Job
from jobs.states import State

logger = logging.getLogger("jobs.heartbeat")

BEAT = 1.0  # seconds between two looks at the long bodies
PATIENCE = 3.0  # seconds that the database may take for one act of the heartbeat
CLOCK_BEAT = 0.25  # seconds between two looks at the clock

_database = outage.Outage(logger, "No lease is renewed; bodies are stopped before theirs end.")


def clock() -> float:
    """Seconds by a clock that nobody sets, and that goes on while the machine sleeps where there is one."""
    return time.monotonic() if _BOOT is None else time.clock_gettime(_BOOT)


_BOOT: int | None = getattr(time, "CLOCK_BOOTTIME", None)


@dataclass(slots=True)
class Watched:
    """A body that runs in this process."""

    job: Job
    thread: int
    chunk: list[Job] = field(default_factory=list)  # the jobs that run together, while they are ours
    started: float = field(default_factory=clock)
    renewed: float = field(default_factory=clock)
    stop: BaseException | None = None
    stopped_at: float = float("-inf")
    doomed_at: float = float("inf")
    progress: dict[str, Any] | None = None
    written: dict[str, Any] | None = None
    over: bool = False
    greenlet: green.Body | None = field(default_factory=green.body)

    @property
    def past_limit(self) -> bool:
        """Whether it ran longer than its time limit, which only the prefork pool enforces."""
        limit = self.job.time_limit
        return limit is not None and clock() - self.started > limit + 1.0

    @property
    def hung(self) -> bool:
        """Whether it went on beyond its time limit and its lease: nobody can stop it, and nobody waits for it."""
        return self.past_limit and self.stop is not None and clock() > self.renewed + settings().LEASE

    def tell(self, progress: dict[str, Any]) -> None:
        """Keep how far the body is. Raises ``PayloadError`` when that is not JSON."""
        self.progress = plain.copy(progress)

    def tell_state(self, state: Any, meta: Any) -> None:
        """Keep a custom state of Celery's; what is not JSON is shown as it would be printed."""
        try:
            self.tell({"celery_state": state, "meta": meta})
        except PayloadError:
            self.tell({"celery_state": str(state), "meta": _printed.repr(meta)})


_printed = reprlib.Repr()
_printed.maxdict = _printed.maxlist = _printed.maxtuple = 20
_printed.maxstring = _printed.maxother = 200


_watched: dict[UUID, Watched] = {}  # by the token of the attempt: a body that hangs may run beside the next attempt
_lock = green.lock()
_work = threading.Event()
_threads: list[green.Started] = []


@contextmanager
def watching(job: Job, leased: float | None = None, chunk: Sequence[Job] = ()) -> Iterator[Watched]:
    """Keep a job's lease, which began at ``leased``, while the block runs; interrupt the block when it must stop.

    With a chunk, of which it is one, the leases of all.
    """
    entry = Watched(job, threading.get_ident(), list(chunk), renewed=clock() if leased is None else leased)
    try:
        _enter(entry)
        yield entry
    finally:
        # Twice, because the interrupt of the body may arrive as late as in the first of the two.
        try:
            _leave(entry)
        finally:
            _leave(entry)


def _enter(entry: Watched) -> None:
    with _lock:
        # A body that was told to stop, and whose thread begins another, is over, however it ended.
        for left in [other for other in _watched.values() if other.thread == entry.thread and other.stop]:
            left.over = True
            del _watched[_token(left)]
        _ensure_threads()
        _watched[_token(entry)] = entry
        if _has_its_own_process(entry):
            _guard(entry)
    _work.set()


def _leave(entry: Watched) -> None:
    with _lock:
        entry.over = True
        if _watched.get(_token(entry)) is entry:
            del _watched[_token(entry)]
        _clear_interrupt(entry)
    entry.job.progress = entry.progress or entry.job.progress


def _token(entry: Watched) -> UUID:
    assert entry.job.token is not None
    return entry.job.token


def watched(job_id: UUID) -> Watched | None:
    """The running body of a job in this process, that of its latest attempt."""
    return next((entry for entry in reversed(list(_watched.values())) if entry.job.pk == job_id), None)


def held_here() -> list[UUID]:
    """The jobs whose bodies run in this process."""
    return [job.pk for entry in list(_watched.values()) for job in entry.chunk or [entry.job]]


def hung() -> list[Watched]:
    """The bodies of this process that nobody can stop."""
    return [entry for entry in list(_watched.values()) if entry.hung]


def stop_all(error: BaseException) -> None:
    """Interrupt every body of this process."""
    for entry in list(_watched.values()):
        _interrupt(entry, error)


def _ensure_threads() -> None:
    """Start the threads of this process that do not run: none does before its first body."""
    global _threads
    if not _threads or not all(thread.is_alive() for thread in _threads):
        rounds = {"mainstay-heartbeat": (_database_round, BEAT), "mainstay-clock": (_clock_round, CLOCK_BEAT)}
        alive = {thread.name: thread for thread in _threads if thread.is_alive()}
        _threads = [alive.get(name) or _started(name, *round_) for name, round_ in rounds.items()]


def _begin_anew() -> None:
    """A forked child has none of its parent's bodies and threads, and must not wait for what those held."""
    global _lock, _work, _threads, _guarded_at
    _watched.clear()
    _lock, _work, _threads, _guarded_at = green.lock(), threading.Event(), [], float("-inf")


os.register_at_fork(after_in_child=_begin_anew)


def _started(name: str, act: Callable[[], None], every: float) -> green.Started:
    return green.start(_repeat, act, every, name=name)


def _repeat(act: Callable[[], None], every: float) -> None:
    """Do a round again and again while bodies run, whatever becomes of it; not in step with other processes."""
    while True:
        green.wait(_work)
        green.sleep(every * random.uniform(0.8, 1.0))
        try:
            act()
        except Exception:
            logger.exception("A round of the heartbeat failed.")


def _database_round() -> None:
    _beat(_long_bodies())
    if not _work.is_set():
        lifecycle.database().close()


def _clock_round() -> None:
    with _lock:
        for entry in _watched.values():
            _guard(entry)
    for entry in _long_bodies():
        _stop_in_time(entry)


def _long_bodies() -> list[Watched]:
    """The bodies that run long enough to be looked after; where none runs at all, the next one wakes us."""
    with _lock:
        if not _watched:
            _work.clear()
            _lower_the_guard()
        return [entry for entry in _watched.values() if clock() - entry.started >= BEAT]


def _beat(entries: list[Watched]) -> None:
    """One round; what fails for one body, or all of it, is tried again in the next."""
    if not entries:
        return
    acts: list[Callable[[], None]] = [partial(_look, entries)]
    acts += [partial(_renew, entry) for entry in entries]
    acts += [partial(_write_progress, entry) for entry in entries]
    try:
        for act in acts:
            lifecycle.database().ensure_connection()
            _try(act)
    except Error as error:
        _database.failed(error)
        lifecycle.database().close()


def _try(act: Callable[[], None]) -> None:
    """Do an act; one that fails must not keep the other bodies from their leases."""
    try:
        with outage.bounded(lifecycle.database(), PATIENCE + 1.0), _bounded():
            act()
        _database.over()
    except Error as error:
        _database.failed(error)
        if not outage.busy(error):
            lifecycle.database().close()
    except Exception:
        logger.exception("The heartbeat failed for a body.")


@contextmanager
def _bounded() -> Iterator[None]:
    """Give up on statements that wait too long, as for a row that somebody locked."""
    connection = lifecycle.database()
    if connection.vendor != "postgresql":
        yield
        return
    # For this transaction alone: behind PgBouncer, the session is also that of other people's bodies.
    with transaction.atomic(using=lifecycle.alias()), connection.cursor() as cursor:
        cursor.execute(f"SET LOCAL statement_timeout = {PATIENCE * 1000:.0f}")
        yield


def _look(entries: list[Watched]) -> None:
    """See who was cancelled or overtaken; a claim that the database has forgotten is taken again."""
    ids = [job.pk for entry in entries for job in entry.chunk or [entry.job]]
    columns = ("state", "token", "cancel_requested_at", "cancel_reason")
    rows = {
        row[0]: row[1:] for row in Job.objects.using(lifecycle.alias()).filter(pk__in=ids).values_list("pk", *columns)
    }
    for entry in entries:
        if entry.chunk:
            _look_at_all(entry, rows)
            continue
        state, token, cancelled_at, reason = rows.get(entry.job.pk, (None, None, None, ""))
        if state != State.RUNNING or token != entry.job.token:
            if lifecycle.claim_again(entry.job) is None:
                _interrupt(entry, LeaseLost("somebody else holds the job now"))
        elif cancelled_at is not None:
            _interrupt(entry, JobCancelled(reason or "cancelled"))


def _look_at_all(entry: Watched, rows: dict[UUID, Any]) -> None:
    """The call of a chunk goes on for those that are still ours; it stops when none is, or all were cancelled."""
    ours = [job for job in entry.chunk if rows.get(job.pk, ())[:2] == (State.RUNNING, job.token)]
    if not ours:
        _interrupt(entry, LeaseLost("somebody else holds the jobs now"))
        return
    entry.chunk = ours
    if all(rows[job.pk][2] is not None for job in ours):
        _interrupt(entry, JobCancelled(rows[ours[0].pk][3] or "cancelled"))


def _renew(entry: Watched) -> None:
    before = clock()
    if before - entry.renewed < settings().HEARTBEAT or entry.past_limit:
        return
    lease = timedelta(seconds=settings().LEASE)
    if lifecycle.renew(entry.chunk, lease) if entry.chunk else lifecycle.amend(entry.job, lease_until=Clock(lease)):
        entry.renewed = before


def _write_progress(entry: Watched) -> None:
    """Write what is new; apart from the lease, which it must not put at risk."""
    progress = entry.progress
    if progress is not entry.written and lifecycle.amend(entry.job, progress=progress):
        entry.written = progress


def _stop_in_time(entry: Watched) -> None:
    """Stop a body whose lease is about to end, by our own clock; past its time limit nobody renews it."""
    left = entry.renewed + settings().LEASE - clock()
    if entry.past_limit:
        _interrupt(entry, LeaseLost(f"hung past its time limit of {entry.job.time_limit:g} s"))
    elif left < 2 * BEAT:
        _interrupt(entry, _not_renewed())
    alone = _has_its_own_process(entry)
    if alone and entry.stop is not None and (clock() > entry.doomed_at or left < CLOCK_BEAT):
        _end_process(entry)
    if entry.hung and entry.greenlet is not None and entry.greenlet.unheard > settings().HEARTBEAT:
        _end_process(entry)  # it computes on and on: no other body of this process goes on, nor does its worker


def _not_renewed() -> LeaseLost:
    """Why a lease was not renewed: the job is innocent only where the database is known to be away."""
    if _database.away:
        return LeaseNotRenewed("the database was away, and the lease could not be renewed")
    return LeaseLost("the lease could not be renewed in time")


def _interrupt(entry: Watched, error: BaseException) -> None:
    """Raise in the body: by the pool's own signal, in its greenlet, or else as an asynchronous exception."""
    with _lock:
        again = clock() - entry.stopped_at > settings().HEARTBEAT
        if entry.over or not again:
            return
        if entry.stop is None:
            grace = settings().CANCEL_GRACE if isinstance(error, JobCancelled) else 2 * BEAT
            entry.stop, entry.doomed_at = error, clock() + grace
        entry.stopped_at = clock()
        if _has_its_own_process(entry):
            signal.pthread_kill(entry.thread, signal.SIGUSR1)
        elif entry.greenlet is not None:
            entry.greenlet.throw(type(entry.stop), lambda: entry.over)
        else:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(entry.thread), ctypes.py_object(type(entry.stop)))


def _clear_interrupt(entry: Watched) -> None:
    if entry.stop is not None and entry.greenlet is None and entry.thread == threading.get_ident():
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(entry.thread), None)


# --- What does not stop ---------------------------------------------------------------------------------------


def _has_its_own_process(entry: Watched) -> bool:
    """Whether a body is alone in its process: in a child of the prefork pool."""
    return entry.thread == threading.main_thread().ident and shield.of_a_child()


def _end_process(entry: Watched) -> None:
    """End a child whose body did not stop when it was told to; its worker starts another."""
    with _lock:
        if entry.over:
            return
        logger.error("Job %s does not stop (%s): its process is ended.", entry.job.pk, entry.stop)
        os.kill(os.getpid(), signal.SIGKILL)


def _guard(entry: Watched) -> None:
    """Have the process ended where a body lets no other thread run, this clock's included, for as long as a lease.

    That timer needs no interpreter: a thread of the C library prints where the body is, and ends the process. A process
    that others share has twice as long: by then, all that it holds has been taken over.
    """
    global _guarded_at
    if clock() - _guarded_at > BEAT:
        _guarded_at = clock()
        seconds = settings().LEASE * (1 if _has_its_own_process(entry) else 2)
        with suppress(Exception):
            faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__)  # type: ignore[arg-type]


def _lower_the_guard() -> None:
    global _guarded_at
    if _guarded_at > float("-inf"):
        faulthandler.cancel_dump_traceback_later()
        _guarded_at = float("-inf")


_guarded_at = float("-inf")
# A child that a body forks has no such timer, and would wait for it as it ends. The next look at the clock sets it.
os.register_at_fork(before=_lower_the_guard)
