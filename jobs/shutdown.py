"""Stopping a worker: what it has not begun goes back at once, what runs gets its time, the rest is handed back.

Three ways. Warm (SIGTERM): running bodies may take as long as they like. Soft (SIGQUIT, or SIGTERM with
``REMAP_SIGTERM=SIGQUIT``): they have ``worker_soft_shutdown_timeout`` seconds. Cold: a second one of those, or a
time-out of 0. A body that is cut off has ended before its job is handed back, or the whole process ends with it.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from itertools import takewhile
from typing import Any

from billiard.common import REMAP_SIGTERM
from celery import bootsteps, platforms, signals
from celery.apps.worker import safe_say  # type: ignore[attr-defined]
from celery.exceptions import WorkerTerminate
from celery.platforms import EX_FAILURE, EX_OK
from celery.utils.log import in_sighandler
from celery.worker import state as _worker_state
from django.db import Error
from django.db.models import Q

from jobs import attempt, gate, green, grouped, heartbeat, lifecycle, pools, solo
from jobs.adoption import as_uuid
from jobs.handover import Claimed
from jobs.models import Job
from jobs.pace import Pace
from jobs.states import State

logger = logging.getLogger("jobs.worker")

worker_state: Any = _worker_state

LOOK_EVERY = 0.1  # seconds
LOOP_ANSWERS = 1.5  # seconds within which an event loop that runs at all has heard of the shutdown
BODIES_END = 2.0  # seconds that interrupted bodies of threads have to end
PROCESS_ENDS = 10.0  # seconds after which a process that was to end is ended
SURPLUS_WAITS = 1.0  # seconds of longer jobs after which no message waits here that was taken ahead
COPIES = 20


class Drain:
    """The one shutdown of this process: asked for by signals, seen to by the event loop and a thread of its own."""

    def __init__(self) -> None:
        self.begun = False
        self.deadline = math.inf
        self.last_acts: list[Callable[[], Any]] = []
        self._pid = 0
        self._cutting = False
        self._instance: Any = None
        self._silenced: Any = None
        self._asked = threading.Event()
        self._heard = threading.Event()

    def guard(self, instance: Any) -> None:
        """Take over the signals by which a worker is stopped, for the pools whose bodies we can reach."""
        self._instance, self._pid = instance, os.getpid()
        if pools.name(instance) not in ("prefork", "thread", "solo", "gevent"):
            return
        green.start(self._run, name="mainstay-shutdown")
        remapped = REMAP_SIGTERM == "SIGQUIT"
        platforms.signals["SIGTERM"] = self._on_signal("SIGTERM", cold=remapped)
        platforms.signals["SIGQUIT"] = self._on_signal("SIGQUIT", cold=True)
        platforms.signals["SIGINT"] = self._on_signal("SIGINT", cold=False)

    def _on_signal(self, name: str, *, cold: bool) -> Any:
        def handle(*_: Any) -> None:
            if os.getpid() == self._pid and not self._cutting:
                # The second Ctrl+C no longer waits for ever.
                self._told(name, cold=cold or (name == "SIGINT" and self.begun))

        return handle

    def _told(self, name: str, *, cold: bool) -> None:
        how, code = ("Cold", EX_FAILURE) if cold else ("Warm", EX_OK)
        with in_sighandler():  # type: ignore[attr-defined]
            safe_say(f"worker: {how} shutdown (MainProcess)", sys.__stdout__)
            signals.worker_shutting_down.send(sender=self._instance.hostname, sig=name, how=how, exitcode=code)
        self.ask(cold=cold)

    def ask(self, *, cold: bool) -> None:
        """Begin to stop; asked coldly for a second time, stop now."""
        if cold:
            window = float(self._instance.app.conf.worker_soft_shutdown_timeout or 0)
            already = self.deadline != math.inf
            self.deadline = time.monotonic() + (0.0 if already else window)
        self.begun = True
        self._asked.set()

    @property
    def heard(self) -> bool:
        """Whether the messages that wait were given back."""
        return self._heard.is_set()

    # --- In the event loop ---

    def look(self, consumer: Any) -> None:
        """Called often in the event loop: once asked to stop, take no more messages and give back what waits.

        Again after the connection was lost, because Celery then begins to take messages anew.
        """
        if self.begun and self._silenced is not consumer.task_consumer:
            self._silenced = consumer.task_consumer
            give_back(consumer)
            self._heard.set()

    # --- In a thread of its own ---

    def _run(self) -> None:
        green.wait(self._asked)
        if not green.wait(self._heard, LOOP_ANSWERS):
            # No loop runs: a body does (solo), or the broker is away. Celery looks at this where it can.
            worker_state.should_stop = EX_OK
        while time.monotonic() < self.deadline:
            if not _running():
                worker_state.should_stop = EX_OK
            green.sleep(LOOK_EVERY)
        self._cut()
        worker_state.should_terminate = EX_FAILURE

    def _cut(self) -> None:
        """The time is over: end the bodies, then hand their jobs back."""
        self._cutting = True
        green.start(_end_late, name="mainstay-end")
        if pools.name(self._instance) == "prefork":
            _hand_back_now(self._instance.hostname, [*_kill_children(self._instance), os.getpid()])
            return
        self._interrupt_bodies()
        if heartbeat.held_here():
            # They cannot be ended alone: fenced off first, and gone a moment later, with the process.
            _hand_back_now(self._instance.hostname, [os.getpid()])
            for act in self.last_acts:
                act()
            os._exit(EX_FAILURE)

    def _interrupt_bodies(self) -> None:
        """Raise in every body of this process, and wait for a moment until they have handed themselves back."""
        heartbeat.stop_all(WorkerTerminate(EX_FAILURE))
        if pools.name(self._instance) == "solo":
            # Wakes the main thread where it sleeps; our handler does nothing by now.
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGQUIT)
        until = time.monotonic() + BODIES_END
        while heartbeat.held_here() and time.monotonic() < until:
            green.sleep(0.05)


def _end_late() -> None:
    """Whatever holds this process up, it ends."""
    green.sleep(PROCESS_ENDS)
    os._exit(EX_FAILURE)


_drain = Drain()


def finally_do(act: Callable[[], Any]) -> None:
    """Do this too before the process is ended without further ado."""
    _drain.last_acts.append(act)


def look(consumer: Any) -> None:
    """Called often in the event loop."""
    _drain.look(consumer)


def stopping() -> bool:
    """Whether this worker was asked to stop."""
    return _drain.begun


def cutting() -> bool:
    """Whether this worker ends the bodies that still run."""
    return _drain._cutting


def returns(consumer: Any, message: Any) -> bool:
    """Whether a message that came too late was given back: the worker stops."""
    if not _drain.begun:
        return False
    _drain.look(consumer)
    message.reject_log_error(logger, consumer.connection_errors, requeue=True)
    return True


class Shutdown(bootsteps.StartStopStep):
    """A step of the worker: it takes over the signals, and gives messages back also where no signal asked for it."""

    def start(self, parent: Any) -> None:
        """Celery has installed its own handlers by now."""
        _drain.guard(parent)

    def close(self, parent: Any) -> None:
        """The worker begins to stop, for whatever reason: by remote control, say."""
        consumer = getattr(parent, "consumer", None)
        if consumer is not None and not _drain.heard:
            give_back(consumer)


def give_back(consumer: Any) -> None:
    """Take no more messages, and return those to the broker whose jobs have not begun."""
    with suppress(Exception):
        if consumer.task_consumer:
            consumer.task_consumer.cancel()
    active = {request.id for request in copied(worker_state.active_requests)}
    unbegun = [request for request in _held(consumer) if request.id not in active]
    semaphore = getattr(consumer.controller, "semaphore", None)
    if semaphore is not None:
        semaphore.clear()
    solo.LINE.clear()
    left = [request for request in unbegun if not _returned(request)]
    if left:
        gate.in_background(send_afresh, [as_uuid(request.id) for request in left])
    hand_back_claims(grouped.given_back(unbegun))
    if unbegun:
        logger.info("%d messages whose jobs have not begun were given back.", len(unbegun) - len(left))


def give_back_surplus(consumer: Any, pace: Pace) -> None:
    """Return what was taken ahead of its turn, now that jobs take longer: another worker may be idle."""
    if _drain.begun or pace.slow_for < SURPLUS_WAITS:
        return
    unbegun, allowed = waiting(consumer), consumer.qos.value
    hand_back_claims(grouped.given_back(unbegun))
    held = getattr(getattr(consumer.task_consumer.channel, "qos", None), "held", 0)
    surplus = unbegun[max(len(unbegun) - (held - allowed), 0) :] if 0 < allowed < held else []
    back = list(takewhile(partial(_went_back, consumer), reversed(surplus)))
    if back:
        logger.info("%d messages were given back: the jobs before them take long.", len(back))


def _went_back(consumer: Any, request: Any) -> bool:
    """Whether the broker took a message back; else it keeps its place here, and is tried again later."""
    try:
        request.message.requeue()
    except Exception as error:
        logger.debug("The message of job %s could not be given back yet: %s", request.id, error)
        return False
    request.acknowledged = True
    worker_state.task_ready(request)
    semaphore = getattr(consumer.controller, "semaphore", None)
    if semaphore is None:
        solo.LINE.remove(request.id)
    else:
        semaphore._waiting.remove(next(entry for entry in semaphore._waiting if entry[1][:1] == (request,)))
    return True


def waiting(consumer: Any) -> list[Any]:
    """The requests that wait for a child of the pool, or for the one thread of a solo worker."""
    semaphore = getattr(consumer.controller, "semaphore", None)
    if semaphore is not None:
        return [args[0] for _, args, _ in semaphore._waiting if args]
    received = {request.id: request for request in copied(worker_state.reserved_requests)}
    return [received[one] for one in solo.LINE.ids() if one in received]


def let_others(calls: Sequence[grouped.Waiting]) -> None:
    """These wait behind a long body, which the event loop waits for too: their jobs are sent again, to others."""
    claims = grouped.given_back(calls)
    hand_back_claims(claims)
    claimed = {claim.job_id for claim in claims}
    rest = [str(job) for job in map(grouped.job_of, calls) if job is not None and job not in claimed]
    if rest:
        gate.in_background(send_afresh, rest, attempt.UNBEGUN)


def hand_back_claims(claims: Sequence[Claimed]) -> None:
    """These jobs were claimed, and will not be begun here: hand them back."""
    if claims:
        gate.in_background(unclaim, claims)


def unclaim(claims: Sequence[Claimed]) -> None:
    """Hand these jobs back, those that were claimed."""
    for claim in claims:
        job = lifecycle.seen(claim.job_id)
        if job is not None and job.state == State.RUNNING and job.token == claim.token:
            attempt.hand_back(job, attempt.UNBEGUN)


def _held(consumer: Any) -> list[Any]:
    """The requests that this worker has received and not finished."""
    held = {request.id: request for request in copied(worker_state.reserved_requests)}
    held |= {request.id: request for request in [*copied(worker_state.scheduled_requests), *rate_limited(consumer)]}
    for bucket in consumer.task_buckets.values():
        if bucket is not None:
            bucket.clear_pending()
    return list(held.values())


def rate_limited(consumer: Any) -> list[Any]:
    """The requests that this worker has received, and that wait for a rate limit of Celery's."""
    buckets = [bucket for bucket in copied(consumer.task_buckets.values()) if bucket is not None]
    return [item[0] for bucket in buckets for item in copied(bucket.contents) if hasattr(item[0], "id")]


def _returned(request: Any) -> bool:
    worker_state.task_ready(request)
    if request.acknowledged:
        return True
    request.acknowledged = True
    try:
        request.message.requeue()
    except Exception as error:
        logger.warning("The message of job %s could not be given back: %s", request.id, error)
        return False
    return True


def send_afresh(job_ids: Iterable[str], why: str = attempt.HANDED_BACK) -> None:
    """Make jobs due whose messages could not be given back to the broker."""
    ids = [lifecycle.prepared("id", job_id) for job_id in job_ids]
    marks = ", ".join(["%s"] * len(ids))
    lifecycle.move_all([State.RESERVED], State.PENDING, f"id IN ({marks})", ids, why, due_at=lifecycle.NOW)


def hand_back(worker: str, pids: Iterable[int], job_id: str = "") -> int:
    """Give back the jobs that run in these processes of a worker, which have ended, and this one; return how many."""
    grouped.finish(BODIES_END)  # what they completed before is no longer theirs
    running = Job.objects.using(lifecycle.alias()).filter(
        Q(pid__in=list(pids)) | Q(pk=job_id or None), state=State.RUNNING, finished_at__isnull=True, worker=worker
    )
    return sum(attempt.hand_back(job) for job in running)


def _hand_back_now(worker: str, pids: Iterable[int]) -> None:
    try:
        with gate.talking():
            hand_back(worker, pids)
    except Error as error:
        logger.warning("Jobs could not be handed back, and wait for the end of their leases: %s", error)


def _kill_children(instance: Any) -> list[int]:
    """End the pool's children, whatever they do; return their process ids once they are dead."""
    pool = getattr(instance.pool, "_pool", None)
    if pool is None:  # it has stopped by itself
        return []
    children = {process.pid for process in list(pool._pool)}
    for request in copied(worker_state.active_requests):
        request._already_cancelled = True  # its end is neither a failure nor a revoke
    for pid in children:
        with suppress(OSError):
            pool.terminate_job(pid, signal.SIGKILL)
    until = time.monotonic() + BODIES_END
    while any(map(_alive, children)) and time.monotonic() < until:
        time.sleep(0.02)
    return [pid for pid in children if not _alive(pid)]


def _alive(pid: int) -> bool:
    """Whether a child lives; one that is dead is left for the pool to bury."""
    if hasattr(os, "waitid"):
        try:
            return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        except ChildProcessError:
            return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _running() -> bool:
    """Whether a body runs, as far as this process can see."""
    return bool(copied(worker_state.active_requests) or heartbeat.held_here())


def copied(requests: Iterable[Any]) -> list[Any]:
    """The requests in one of Celery's sets, to which another thread may add while we read."""
    for _ in range(COPIES):
        with suppress(RuntimeError):
            return list(requests)
    raise RuntimeError(f"The worker's requests changed during each of {COPIES} looks at them.")
