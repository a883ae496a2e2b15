"""What you subclass or decorate with: tasks whose calls become jobs."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Concatenate,
    Generic,
    Literal,
    ParamSpec,
    Protocol,
    TypedDict,
    TypeVar,
    Unpack,
    cast,
    overload,
)
from uuid import UUID

from celery import _state, current_app

from jobs import chunk_bodies
from jobs.breaker import Breaker, check_breakers
from jobs.errors import DeclarationError, OptionError
from jobs.idempotency import FOREVER, NO_KEY, WHILE_UNFINISHED, Key, KeyScope, Sliding, check_key, check_scope
from jobs.limits import Concurrency, Gather, Limit, LimitKey, Rate, check_gather, check_limits
from jobs.outcomes import Done, Failed
from jobs.payload import Payload
from jobs.retry import RetryPolicy
from jobs.states import LOWER, priority_from
from jobs.tracked import Tracked
from jobs.windows import Debounce, Throttle, check_window

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

__all__ = [
    "FOREVER",
    "NO_KEY",
    "WHILE_UNFINISHED",
    "Breaker",
    "ChunkTask",
    "Concurrency",
    "Debounce",
    "Done",
    "Failed",
    "IdempotentTask",
    "Rate",
    "RetryPolicy",
    "Sliding",
    "Task",
    "Throttle",
    "Tracked",
    "TransactionalTask",
    "chunk_task",
    "task",
]


class HasBody(Protocol[P, R_co]):
    """Anything with a ``run``: its parameters are those of ``delay``."""

    @property
    def run(self) -> Callable[P, R_co]:
        """The body."""
        ...


class Result(Protocol[R_co]):
    """What ``delay`` returns: Celery's ``AsyncResult`` of the job, with the type of the body's result."""

    id: str

    def get(self, timeout: float | None = None, propagate: bool = True, interval: float = 0.5) -> R_co:
        """Wait for the result; raises what the job failed with."""
        ...

    def ready(self) -> bool:
        """Whether the job has settled."""
        ...

    def successful(self) -> bool:
        """Whether it completed."""
        ...

    @property
    def state(self) -> str:
        """Celery's name of the job's state."""
        ...

    def revoke(self) -> None:
        """Cancel the job."""
        ...


class _Verb:
    """A method of the registered task that can also be called on its class: ``ChargeOrder.delay(1)``."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: Any, owner: Any) -> Any:
        target = current_app.tasks[owner.name] if instance is None else instance
        return getattr(super(Task, target), self.name)


class _Delay(_Verb):
    """``delay`` with the parameters of the body, for a type checker."""

    @overload
    def __get__(self, instance: None, owner: Callable[[], HasBody[P, R]]) -> Callable[P, Result[R]]: ...
    @overload
    def __get__(self, instance: HasBody[P, R], owner: Any) -> Callable[P, Result[R]]: ...
    def __get__(self, instance: Any, owner: Any) -> Any:
        return super().__get__(instance, owner)


class _OfOneJob:
    """What a body has for its job is not there for many: it says so."""

    def __init__(self, name: str, remedy: str) -> None:
        self.name, self.remedy = name, remedy

    def __get__(self, instance: Any, owner: Any) -> Any:
        if instance is None:
            return self
        if self.name in _CELERY_ASKS and instance._job is None:
            return getattr(super(ChunkTask, instance), self.name)
        raise OptionError(f"A chunk has many jobs, and self.{self.name} is of one. {self.remedy}")


_APART = "Do it in a task for each job, or keep it in a table of your own."
_CELERY_ASKS = frozenset({"update_state", "replace"})


class Task(Tracked):
    """A task of ours, as a class: declare, write ``run``, call ``TheTask.delay(...)``.

    Its payload is checked against the types of ``run``. It is registered by itself under its dotted path.
    """

    abstract = True
    typed: ClassVar[bool] = True
    queue: ClassVar[str | None]
    priority: Any
    key: ClassVar[Any] = NO_KEY
    key_scope: ClassVar[KeyScope] = WHILE_UNFINISHED
    version: ClassVar[int] = 1
    upcasters: ClassVar[Mapping[int, Callable[[Payload], Payload]]] = {}
    retry_policy: ClassVar[RetryPolicy] = RetryPolicy()
    limits: ClassVar[Sequence[Limit]] = ()
    debounce: ClassVar[Debounce | None] = None
    throttle: ClassVar[Throttle | None] = None
    breakers: ClassVar[Sequence[Breaker]] = ()
    retry_priority: ClassVar[str | None] = None
    idempotent: ClassVar[bool] = False
    transactional: ClassVar[bool] = False

    # Annotated, or a type checker takes over what the base class declares.
    delay: _Delay = _Delay()  # type: ignore[assignment]
    apply_async: _Verb = _Verb()
    s: _Verb = _Verb()
    si: _Verb = _Verb()
    signature: _Verb = _Verb()
    delay_on_commit: _Verb = _Verb()
    apply_async_on_commit: _Verb = _Verb()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "run" in vars(cls) and not vars(cls).get("abstract") and not vars(cls).get("adopted_class"):
            cls.abstract = False
            _check(cls)
            if "_decorated" not in vars(cls):
                _share(cls)


class IdempotentTask(Task):
    """A task that says what makes two calls the same job. Running it twice must be harmless, so it may be retried."""

    abstract = True
    idempotent = True
    key: ClassVar[Any] = None
    priority: Any


class TransactionalTask(Task):
    """A task whose body and "completed" commit together: its database effects happen exactly once."""

    abstract = True
    idempotent = True
    transactional = True
    priority: Any


class HasChunkBody(Protocol[T]):
    """Anything whose ``run`` takes a list: what is in it is the parameter of ``delay``."""

    @property
    def run(self) -> Callable[[list[T]], Any]:
        """The body."""
        ...


class _DelayOne(_Verb):
    """``delay`` of one payload, for a type checker."""

    @overload
    def __get__(self, instance: None, owner: Callable[[], HasChunkBody[T]]) -> Callable[[T], Result[Any]]: ...
    @overload
    def __get__(self, instance: HasChunkBody[T], owner: Any) -> Callable[[T], Result[Any]]: ...
    def __get__(self, instance: Any, owner: Any) -> Any:
        return super().__get__(instance, owner)


class ChunkTask(Task):
    """A task whose body gets the payloads of many jobs at once: ``size`` of them, or what there is after ``max_wait``.

    ``delay`` enqueues one payload, and each is a job with an outcome of its own. Those with the same ``chunk_by`` (a
    template, or a function of the payload) go together.
    """

    abstract = True
    chunked: ClassVar[bool] = True
    size: ClassVar[int] = 100
    max_wait: ClassVar[float] = 5.0
    chunk_by: ClassVar[Any] = None
    priority: Any

    delay: _DelayOne = _DelayOne()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run: as an attempt when a worker calls, for one payload in eager mode, plainly when you do."""
        if self.request.is_eager and self._job is None:
            from jobs import together

            return together.alone(self, *args, **kwargs)
        return super().__call__(*args, **kwargs)

    def _performed(self, job_id: UUID, worker: str) -> Any:
        from jobs import together

        return together.perform(self, job_id, worker)

    def gather(self) -> Gather:
        """By what its jobs gather."""
        by = inspect.getattr_static(type(self), "chunk_by")
        by = by.__func__ if isinstance(by, staticmethod) else by
        return Gather("{task}" if by is None else by, self.size, self.max_wait)

    def body_of_one(self) -> Callable[..., Any]:
        """A function with the parameter that a call of one job has."""
        kept: Callable[..., Any] | None = vars(self).get("mainstay_body_of_one")
        if kept is None:
            kept = self.mainstay_body_of_one = chunk_bodies.of_one(self.run)
        return kept

    @property
    def job_ids(self) -> list[str]:
        """The ids of the jobs whose payloads the body got, in their order."""
        return [str(job.pk) for job in getattr(self.request, "mainstay_chunk", ())]

    @property
    def idempotency_tokens(self) -> list[str]:
        """For each payload, a text for the outside world that is the same in all attempts and replays of its job."""
        return [str(job.origin_id or job.pk) for job in getattr(self.request, "mainstay_chunk", ())]

    idempotency_token: Any = _OfOneJob(
        "idempotency_token", "Use self.idempotency_tokens, which has one for each payload."
    )
    idempotency_token_for: Any = _OfOneJob("idempotency_token_for", "Use self.idempotency_tokens.")
    step: Any = _OfOneJob("step", _APART)
    atomic_step: Any = _OfOneJob("atomic_step", _APART)
    cursor: Any = _OfOneJob("cursor", _APART)
    advance: Any = _OfOneJob("advance", _APART)
    progress: Any = _OfOneJob("progress", _APART)
    update_state: Any = _OfOneJob("update_state", _APART)
    replace: Any = _OfOneJob(
        "replace", "Enqueue what is to follow from a link of the jobs: task.apply_async(…, link=…)."
    )

    def retry(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:  # type: ignore[override]
        """Celery's ``retry()``, for all jobs of the chunk. For one of them return ``Failed(TransientError(…))``."""
        if args is not None or kwargs is not None:
            raise OptionError(f"{self.name} runs many jobs in one call: retry() cannot give all of them one payload.")
        return super().retry(**options)


class FunctionTask(Task, Generic[P, R]):
    """The type of what ``@task`` returns."""

    abstract = True

    if TYPE_CHECKING:

        def delay(self, *args: P.args, **kwargs: P.kwargs) -> Result[R]:  # type: ignore[override]
            """Enqueue a call of the function."""
            ...

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the body."""
        return cast(R, super().__call__(*args, **kwargs))


class ChunkFunctionTask(ChunkTask, Generic[T]):
    """The type of what ``@chunk_task`` returns."""

    abstract = True

    if TYPE_CHECKING:

        def delay(self, payload: T) -> Result[Any]:  # type: ignore[override]
            """Enqueue one payload."""
            ...


class _Shared(TypedDict, total=False):
    """What every task may declare, beside ``base`` and ``bind``."""

    name: str | None
    queue: str | None
    priority: Any
    key: Key | None
    key_scope: KeyScope
    version: int
    upcasters: Mapping[int, Callable[[Payload], Payload]] | None
    retry_policy: RetryPolicy | None
    limits: Sequence[Limit] | None
    retry_priority: str | None
    time_limit: float | None
    soft_time_limit: float | None
    idempotent: bool | None


class Options(_Shared, total=False):
    """What a function's task may declare, beside ``bind``."""

    base: type[Task]
    debounce: Debounce | None
    throttle: Throttle | None
    breakers: Sequence[Breaker] | None


class ChunkOptions(_Shared, total=False):
    """What a chunk's function may declare, beside ``bind``: how many go together and when, and what every task may."""

    base: type[ChunkTask]
    size: int
    max_wait: float
    chunk_by: LimitKey | None


_OF_CHUNKS = frozenset(ChunkOptions.__annotations__) - frozenset(Options.__annotations__)
_DECLARABLE = frozenset(Options.__annotations__) - {"base", "name"}


@overload
def task(fun: Callable[P, R], /) -> FunctionTask[P, R]: ...
@overload
def task(
    *, bind: Literal[True], **options: Unpack[Options]
) -> Callable[[Callable[Concatenate[Any, P], R]], FunctionTask[P, R]]: ...
@overload
def task(
    *, bind: Literal[False] = ..., **options: Unpack[Options]
) -> Callable[[Callable[P, R]], FunctionTask[P, R]]: ...
def task(
    fun: Any = None,
    /,
    *,
    base: type[Task] = Task,
    bind: bool = False,
    name: str | None = None,
    **declared: Any,
) -> Any:
    """Make a task of a function: ``@task`` or ``@task(key="invoice:{invoice_id}", queue="payments")``.

    ``base`` is ``Task``, ``IdempotentTask`` or ``TransactionalTask``; with ``bind`` the function gets the task first.
    """
    known = _DECLARABLE | _OF_CHUNKS if issubclass(base, ChunkTask) else _DECLARABLE
    unknown = set(declared) - known
    if unknown:
        raise DeclarationError(
            f"@task does not know {', '.join(sorted(unknown))}.{_hint(unknown, known)} It takes: "
            f"{', '.join(sorted(known))}."
        )
    given = {k: v for k, v in declared.items() if v is not None}

    def decorate(function: Callable[..., Any]) -> Any:
        check = {**_inherited(base), **given, "run": function if bind else staticmethod(function)}
        called = name or f"{function.__module__}.{function.__name__}"
        _check_declared(called, check, _parameters(function, skip=bind), function)
        if callable(given.get("chunk_by")):
            given["chunk_by"] = staticmethod(given["chunk_by"])
        from celery import shared_task

        make: Any = shared_task
        return make(base=base, bind=bind, name=name, **given)(function)

    return decorate if fun is None else decorate(fun)


@overload
def chunk_task(function: Callable[[list[T]], Any], /) -> ChunkFunctionTask[T]: ...
@overload
def chunk_task(
    *, bind: Literal[True], **options: Unpack[ChunkOptions]
) -> Callable[[Callable[[Any, list[T]], Any]], ChunkFunctionTask[T]]: ...
@overload
def chunk_task(
    *, bind: Literal[False] = ..., **options: Unpack[ChunkOptions]
) -> Callable[[Callable[[list[T]], Any]], ChunkFunctionTask[T]]: ...
def chunk_task(function: Any = None, /, *, bind: bool = False, **options: Any) -> Any:
    """Make a chunk task of a function of a list: ``@chunk_task(size=100, max_wait=5.0, chunk_by="{tenant}")``."""
    base = options.pop("base", ChunkTask)
    if not (isinstance(base, type) and issubclass(base, ChunkTask)):
        raise DeclarationError(
            f"The base of a chunk task must be ChunkTask or a class of its own over it, not {base!r}."
        )
    make: Any = task
    decorate = make(base=base, bind=bind, **options)
    return decorate if function is None else decorate(function)


_READ = (*_DECLARABLE, *_OF_CHUNKS, "job_queue", "job_priority", "transactional", "chunked")


def _hint(unknown: Iterable[str], known: Iterable[str]) -> str:
    """What may have been meant."""
    if "rate_limit" in unknown:
        return ' For a rate over all workers write limits=[Rate("{task}", "10/m")].'
    close = difflib.get_close_matches(min(unknown), sorted(known), n=1)
    return f" Did you mean {close[0]}?" if close else ""


def _inherited(base: type[Task]) -> dict[str, Any]:
    return {name: inspect.getattr_static(base, name, None) for name in _READ}


def _check(cls: type[Task]) -> None:
    body = vars(cls)["run"]
    skip = not isinstance(body, staticmethod)
    function = body.__func__ if isinstance(body, staticmethod) else body
    declared = {name: getattr(cls, name, None) for name in _READ}
    if "_decorated" not in vars(cls):
        cls.name = vars(cls).get("name") or f"{cls.__module__}.{cls.__qualname__}"
    _check_names(cls)
    _check_declared(cls.name, declared, _parameters(function, skip=skip), function)


_KINDS: dict[str, Any] = {"limits": Concurrency | Rate, "breakers": Breaker, "debounce": Debounce, "throttle": Throttle}


def _check_names(cls: type[Task]) -> None:
    """Refuse an attribute that holds what an option would, under a name that nearly is the option's."""
    for name, value in vars(cls).items():
        held = value if isinstance(value, list | tuple) else [value]
        for option in difflib.get_close_matches(name, _KINDS, n=1):
            if name not in _KINDS and held and all(isinstance(each, _KINDS[option]) for each in held):
                raise DeclarationError(f"{cls.name} does not know {name}. Did you mean {option}?")


def _check_declared(
    name: str, says: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter], function: Callable[..., Any]
) -> None:
    """Refuse a declaration that can never work, with the remedy."""
    if says.get("chunked"):
        parameters = _check_chunk(name, says, parameters, function)
    check_window(name, says.get("debounce"), says.get("throttle"), says.get("key"), parameters)
    if says.get("debounce") is None and says.get("throttle") is None:
        check_key(name, says.get("key"), parameters)
    check_scope(name, says.get("key_scope") or WHILE_UNFINISHED)
    check_limits(name, says.get("limits") or (), parameters)
    check_breakers(name, says.get("breakers") or (), parameters)
    if not isinstance(says.get("retry_policy") or RetryPolicy(), RetryPolicy):
        raise DeclarationError(f"The retry_policy of {name} must be a RetryPolicy, not {says['retry_policy']!r}.")
    urgency = says.get("priority") if says.get("priority") is not None else says.get("job_priority")
    if urgency is not None:
        try:
            priority_from(urgency)
        except ValueError as error:
            raise DeclarationError(f"{name}: {error}") from None
    if says.get("retry_priority") not in (None, LOWER):
        try:
            priority_from(says["retry_priority"])
        except ValueError as error:
            raise DeclarationError(f'The retry_priority of {name} is "{LOWER}" or a priority. {error}') from None
    _check_limits(name, says.get("time_limit"), says.get("soft_time_limit"))


def _check_chunk(
    name: str, says: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter], function: Callable[..., Any]
) -> Mapping[str, inspect.Parameter]:
    """Refuse what a chunk cannot be; return the parameter of a call of one job."""
    if says.get("transactional"):
        raise DeclarationError(
            f"{name} cannot be a ChunkTask and a TransactionalTask: one job of a chunk may fail while others complete. "
            "Open transaction.atomic() in its body around what belongs together, and declare a key."
        )
    for option, what in (("breakers", "a circuit"), ("debounce", "a burst"), ("throttle", "a burst")):
        if says.get(option):
            raise DeclarationError(
                f"{name} cannot be a ChunkTask with {option}: {what} is about single jobs, and a call of a chunk runs "
                f"many. Declare {option} on a task whose body enqueues a job of {name}."
            )
    chunk_bodies.check(name, parameters, function)
    one = chunk_bodies.parameters()
    by = says.get("chunk_by")
    by = by.__func__ if isinstance(by, staticmethod) else by
    check_gather(name, Gather("{task}" if by is None else by, says["size"], says["max_wait"]), one)
    return one


def _check_limits(name: str, hard: Any, soft: Any) -> None:
    for label, value in (("time_limit", hard), ("soft_time_limit", soft)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or value <= 0):
            raise DeclarationError(f"The {label} of {name} must be a number of seconds above 0, not {value!r}.")
    if hard is not None and soft is not None and soft > hard:
        raise DeclarationError(f"The soft_time_limit of {name} ({soft} s) must not exceed its time_limit ({hard} s).")


def _parameters(function: Callable[..., Any], *, skip: bool) -> dict[str, inspect.Parameter]:
    parameters = dict(inspect.signature(function).parameters)
    if skip and parameters:
        del parameters[next(iter(parameters))]
    return parameters


def _share(cls: type[Task]) -> None:
    """Register a class with every app, those that are finalized already included, as ``shared_task`` does."""

    def register(app: Any) -> Any:
        if cls.name in app.tasks:
            return app.tasks[cls.name]
        # Celery binds a class to one app: a second app gets a class of its own.
        bound_to = getattr(cls, "_app", None)
        names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
        own: Any = cls if bound_to in (None, app) else type(str(cls.__name__), (cls,), names)
        return app.register_task(own())

    _state.connect_on_app_finalize(register)
    active: Any = getattr(_state, "_get_active_apps")()  # noqa: B009 - it has no stub
    for app in active:
        if app.finalized:
            register(app)
