"""What every task of an app with Mainstay is: its calls are jobs, its runs are attempts.

Celery may need this class before Django's apps are ready, so what knows the models is imported when it is first needed.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, ParamSpec, TypeVar
from uuid import NAMESPACE_OID, UUID, uuid5

from celery.canvas import Signature
from celery.contrib.django.task import DjangoTask
from celery.exceptions import Ignore, ImproperlyConfigured, Retry
from celery.result import GroupResult

from jobs import declared, payload
from jobs.errors import Replaced, Snooze
from jobs.options import priority as priority_of
from jobs.payload import Payload

if TYPE_CHECKING:
    from jobs.checkpoints import Checkpoints
    from jobs.heartbeat import Watched

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


def _take_over(cls: type, name: str, ours: str) -> None:
    """Take an attribute before Celery binds the task: there it would mean the broker's own (and is deprecated)."""
    if name in vars(cls):
        value = vars(cls)[name]
        delattr(cls, name)
        setattr(cls, ours, value)


class Tracked(DjangoTask[..., Any]):
    """What every task of an app with Mainstay is: its calls are jobs, its runs are attempts."""

    abstract = True
    acks_late = True
    typing = False  # the payload is checked where the job is recorded, with a better sentence
    tracked: ClassVar[bool] = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _take_over(cls, "queue", "job_queue")
        _take_over(cls, "priority", "job_priority")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run: as an attempt when a worker calls, plainly when you do."""
        request: Any = self.request
        if request.called_directly or request.is_eager or self._job is not None:
            return super().__call__(*args, **kwargs)  # also where a body calls its own task
        from jobs import adoption

        request.mainstay_job = adoption.job_of(self, request)
        if request.mainstay_job is None:
            return self.run(*args, **kwargs)
        try:
            return self._performed(request.mainstay_job, request.hostname or "")
        except Ignore:
            adoption.keep_forgotten(self, request)
            raise

    def _performed(self, job_id: UUID, worker: str) -> Any:
        """One attempt of the job that this call stands for."""
        from jobs import attempt

        return attempt.perform(self, job_id, worker)

    def execute(self, *args: Any, **kwargs: Any) -> Any:
        """Run the body, through the ``__call__`` of the project's own base class where it has one."""
        mro = type(self).__mro__
        others = [cls for cls in mro[mro.index(Tracked) :] if cls not in Tracked.__mro__]
        if any("__call__" in vars(cls) for cls in others):
            return super().__call__(*args, **kwargs)
        return self.run(*args, **kwargs)

    def retry(
        self, args: Any = None, kwargs: Any = None, exc: Any = None, throw: bool = True, eta: Any = None,
        countdown: Any = None, max_retries: int | None = None, **options: Any,
    ) -> Any:  # fmt: skip
        """Celery's ``retry()``: raise to say that the job is to run again; nothing is published.

        ``countdown`` is in seconds, ``eta`` a time; ``max_retries`` counts attempts after the first. With ``queue`` and
        ``priority`` it comes back there. Raises ``OptionError`` for those that there are not.
        """
        if self._job is None:
            return super().retry(
                args=args, kwargs=kwargs, exc=exc, throw=throw, eta=eta, countdown=countdown, max_retries=max_retries,
                **options,
            )  # fmt: skip
        signal: Any = Retry(exc=exc, when=eta or countdown)
        signal.mainstay = {
            "delay": _wait(eta, countdown, self), "max_attempts": None if max_retries is None else max_retries + 1,
            "payload": _changed(self.request, args, kwargs), **_elsewhere(options),
        }  # fmt: skip
        if throw:
            raise signal
        return signal

    def snooze(self, delay: float | timedelta, reason: str = "snoozed") -> NoReturn:
        """Put the job back for later (seconds, or a ``timedelta``), without using an attempt: raises ``Snooze``."""
        raise Snooze(delay, reason)

    def replace(self, sig: Signature) -> Any:
        """Hand over to another signature: this job settles as that one does."""
        if self._job is None:
            return super().replace(sig)
        raise Replaced(self.prepared_for_replacement(sig))

    def prepared_for_replacement(self, sig: Signature) -> Signature:
        """A signature with one result of its own: a group is collected into a list, as Celery does."""
        if sig.get("chord") or "chord" in sig.options:
            raise ImproperlyConfigured("A signature that replaces a task must not be a member of a chord.")
        if isinstance(sig.clone().freeze(), GroupResult):
            return sig | self.app.tasks["celery.accumulate"].s(index=0)
        return sig

    def update_state(
        self, task_id: str | None = None, state: str | None = None, meta: Any = None, **kwargs: Any
    ) -> None:
        """Celery's custom states, kept as the progress of the job; what is not JSON is kept as it would be printed."""
        watched = self._watched()
        if watched is None or task_id not in (None, self.request.id):
            super().update_state(task_id=task_id, state=state, meta=meta, **kwargs)
        else:
            watched.tell_state(state, meta)

    def progress(self, done: float, total: float | None = None, unit: str = "", message: str = "") -> None:
        """Say how far the body is, in its own units; written about once a second.

        Raises ``JobCancelled`` or ``LeaseLost`` when the body is to stop, ``PayloadError`` for what is not JSON.
        """
        self.check_cancelled()
        watched = self._watched()
        if watched is not None:
            watched.tell({"done": done, "total": total, "unit": unit, "message": message})

    def check_cancelled(self) -> None:
        """Raise ``JobCancelled`` when somebody asked this job to stop (noticed within about a second)."""
        watched = self._watched()
        if watched is not None and watched.stop is not None:
            raise watched.stop

    def step(self, name: str, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call a function once: its result is kept as JSON, and given back in later attempts and replays.

        A crash between the call and the keeping calls it again: hand ``idempotency_token_for(name)`` to the outside.
        """
        result: R = self._checkpoints().step(name, partial(function, *args, **kwargs))
        return result

    def atomic_step(self, name: str, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call a function once that writes only to the jobs' database: its writes and its result commit together.

        Raises ``LeaseLost``, and keeps nothing, when somebody else holds the job by then.
        """
        result: R = self._checkpoints().atomic_step(name, partial(function, *args, **kwargs))
        return result

    def cursor(self, name: str, start: T) -> T:
        """How far the named cursor has come, in this and earlier attempts; ``start`` if it has not moved yet."""
        return self._checkpoints().cursor(name, start)

    def advance(self, name: str, to: Any) -> AbstractContextManager[None]:
        """Move the named cursor in one transaction with what the block writes to the jobs' database.

        Raises ``LeaseLost``, and keeps nothing, when somebody else holds the job by then.
        """
        return self._checkpoints().advance(name, to)

    def idempotency_token_for(self, step: str) -> str:
        """A text for the outside world that is the same for this step in all attempts and replays of this job."""
        token = self.idempotency_token
        return str(uuid5(NAMESPACE_OID, f"{token}:{step}")) if token else ""

    def _checkpoints(self) -> Checkpoints:
        request: Any = self.request
        found: Checkpoints | None = getattr(request, "mainstay_checkpoints", None)
        if found is None:
            from jobs.checkpoints import Checkpoints

            watched = self._watched()
            found = Checkpoints(watched.job if watched else None, self.check_cancelled)
            request.mainstay_checkpoints = found
        return found

    @property
    def idempotency_token(self) -> str:
        """A text for the outside world that is the same in all attempts and replays of this job."""
        watched = self._watched()
        if watched is None:
            return str(self.request.id or "")
        return str(watched.job.origin_id or watched.job.pk)

    @property
    def _job(self) -> UUID | None:
        """The job whose attempt this call is; None for direct calls, eager mode and what is not tracked."""
        return getattr(self.request, "mainstay_job", None)

    def _watched(self) -> Watched | None:
        # Of this attempt, not of its job: a body that nobody could stop may still run beside the next attempt.
        return getattr(self.request, "mainstay_watched", None)


def _wait(eta: Any, countdown: Any, task: Any) -> timedelta | None:
    if eta is not None:
        from jobs import lifecycle

        left: timedelta = eta - lifecycle.database_now()  # by whose clock it will be due
        return max(timedelta(0), left)
    if countdown is not None:
        return timedelta(seconds=countdown)
    own = vars(type(task)).get("default_retry_delay")
    return None if own is None else timedelta(seconds=own)


def _elsewhere(given: dict[str, Any]) -> dict[str, Any]:
    """The queue and the priority that were asked for, once it is known that there are such."""
    queue, priority = given.get("queue"), given.get("priority")
    return {
        "queue": None if queue is None else declared.queue_named(str(getattr(queue, "name", queue))),
        "priority": None if priority is None else priority_of(priority, None).value,
    }


def _changed(request: Any, args: Any, kwargs: Any) -> str | None:
    if args is None and kwargs is None:
        return None
    return payload.encode(
        Payload(tuple(request.args if args is None else args), dict(request.kwargs if kwargs is None else kwargs))
    )
