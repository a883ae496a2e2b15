"""What you subclass or decorate with: tasks whose calls become jobs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
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

from celery import _state, current_app

from jobs.breaker import Breaker, check_breakers
from jobs.errors import DeclarationError
from jobs.idempotency import FOREVER, NO_KEY, WHILE_UNFINISHED, Key, KeyScope, Sliding, check_key, check_scope
from jobs.limits import Concurrency, Limit, Rate, check_limits
from jobs.payload import Payload
from jobs.retry import RetryPolicy
from jobs.states import LOWER, priority_from
from jobs.tracked import Tracked
from jobs.windows import Debounce, Throttle, check_window

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
F = TypeVar("F", bound=Callable[..., Any])

__all__ = [
    "FOREVER",
    "NO_KEY",
    "WHILE_UNFINISHED",
    "Breaker",
    "Concurrency",
    "Debounce",
    "IdempotentTask",
    "Rate",
    "RetryPolicy",
    "Sliding",
    "Task",
    "Throttle",
    "Tracked",
    "TransactionalTask",
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


class Options(TypedDict, total=False):
    """What a function's task may declare, beside ``bind``."""

    base: type[Task]
    name: str | None
    queue: str | None
    priority: Any
    key: Key | None
    key_scope: KeyScope
    version: int
    upcasters: Mapping[int, Callable[[Payload], Payload]] | None
    retry_policy: RetryPolicy | None
    limits: Sequence[Limit] | None
    debounce: Debounce | None
    throttle: Throttle | None
    breakers: Sequence[Breaker] | None
    retry_priority: str | None
    time_limit: float | None
    soft_time_limit: float | None
    idempotent: bool | None


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
    unknown = set(declared) - _DECLARABLE
    if unknown:
        raise DeclarationError(
            f"@task does not know {', '.join(sorted(unknown))}. It takes: {', '.join(sorted(_DECLARABLE))}."
        )
    given = {k: v for k, v in declared.items() if v is not None}

    def decorate(function: Callable[..., Any]) -> Any:
        check = {**_inherited(base), **given, "run": function if bind else staticmethod(function)}
        _check_declared(name or f"{function.__module__}.{function.__name__}", check, _parameters(function, skip=bind))
        from celery import shared_task

        make: Any = shared_task
        return make(base=base, bind=bind, name=name, **given)(function)

    return decorate if fun is None else decorate(fun)


def _inherited(base: type[Task]) -> dict[str, Any]:
    return {name: getattr(base, name, None) for name in (*_DECLARABLE, "job_queue", "job_priority", "transactional")}


def _check(cls: type[Task]) -> None:
    body = vars(cls)["run"]
    skip = not isinstance(body, staticmethod)
    function = body.__func__ if isinstance(body, staticmethod) else body
    declared = {name: getattr(cls, name, None) for name in (*_DECLARABLE, "job_queue", "job_priority", "transactional")}
    if "_decorated" not in vars(cls):
        cls.name = vars(cls).get("name") or f"{cls.__module__}.{cls.__qualname__}"
    _check_declared(cls.name, declared, _parameters(function, skip=skip))


def _check_declared(name: str, says: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter]) -> None:
    """Refuse a declaration that can never work, with the remedy."""
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
