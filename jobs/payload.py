"""A payload: the arguments of a task as JSON. Checking, encoding and upgrading it. Pure."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, get_type_hints

from kombu.utils import json as kombu_json
from pydantic import ConfigDict, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from jobs.errors import PayloadError

# Stands for a value that only exists once another job has completed.
LATER = "__mainstay_later__"

# Stands for what an error callback is told of a job that failed.
FAILED = "__mainstay_failed__"


@dataclass(frozen=True, slots=True)
class Payload:
    """Positional and keyword arguments, as Python values that JSON can carry."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    def waits(self) -> bool:
        """Whether a value is still to come from another job."""
        return any(_is_later(value) for value in self.args)

    def reports(self) -> bool:
        """Whether it tells an error callback of a job that failed."""
        return any(isinstance(value, Mapping) and FAILED in value for value in self.args)

    def fulfilled(self, value: Any) -> Payload:
        """The same payload with the value that was waited for."""
        return Payload(tuple(value if _is_later(arg) else arg for arg in self.args), self.kwargs)


def later() -> dict[str, bool]:
    """A mark for the first argument, replaced when the awaited result is known."""
    return {LATER: True}


def _is_later(value: Any) -> bool:
    return isinstance(value, Mapping) and set(value) == {LATER}


_SHAPE = 'A payload is a JSON object {"args": [...], "kwargs": {...}}'


def encode(payload: Payload) -> str:
    """The payload as JSON text (kombu's types: datetime, UUID, Decimal, bytes).

    >>> encode(Payload((1,), {"a": 2}))
    '{"args":[1],"kwargs":{"a":2}}'
    """
    return to_json({"args": list(payload.args), "kwargs": payload.kwargs})


def decode(text: str) -> Payload:
    """The reverse of ``encode``.

    Raises ``PayloadError`` when the text is not an encoded payload.
    """
    try:
        content = from_json(text)
    except (ValueError, TypeError) as error:
        raise PayloadError(f"{_SHAPE}; this text is not JSON: {error}.") from None
    if not isinstance(content, dict) or set(content) != {"args", "kwargs"}:
        raise PayloadError(f'{_SHAPE}; this text does not have just "args" and "kwargs".')
    args, kwargs = content["args"], content["kwargs"]
    if not isinstance(args, list) or not isinstance(kwargs, dict):
        raise PayloadError(f'{_SHAPE}; here "args" is not a list or "kwargs" not an object.')
    return Payload(tuple(args), kwargs)


def to_json(value: Any) -> str:
    """JSON text of a value, strict: no NaN, no infinity.

    Raises ``PayloadError`` naming the value that JSON cannot carry.
    """
    try:
        return _encoder.encode(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise PayloadError(f"This is not JSON: {error}. Pass plain values, or the id of a record.") from None


# What ``kombu_json.dumps`` would make anew for each value.
_encoder = kombu_json.JSONEncoder(allow_nan=False, separators=(",", ":"))


def from_json(text: str) -> Any:
    """The value of a JSON text with kombu's types.

    Raises ``ValueError`` for what is not JSON, or not what its own ``__type__`` says.
    """
    try:
        return kombu_json.loads(text)
    except (TypeError, ArithmeticError, AttributeError, LookupError) as error:
        raise ValueError(f"a __type__ does not fit its __value__: {error}") from error


def limit(text: str, size: int, task: str) -> str:
    """Return ``text`` unless it is larger than ``size`` bytes.

    Raises ``PayloadError`` that says to pass a reference.
    """
    length = len(text.encode())
    if length > size:
        raise PayloadError(
            f"The payload of {task} has {length:,} bytes; the limit is {size:,}. "
            "Store the content and pass a reference to it (an id, a path)."
        )
    return text


def fitting(run: Callable[..., Any], payload: Payload, task: str) -> Callable[..., Any]:
    """Return the body, once it is known that it can be called with this payload.

    Raises ``PayloadError`` that shows the signature.
    """
    least, most = _by_place(run)
    if payload.kwargs or not least <= len(payload.args) <= most:
        _bound(run, payload, task)
    return run


@lru_cache(maxsize=4096)
def _by_place(run: Callable[..., Any]) -> tuple[int, float]:
    """How many arguments by place are enough, and how many are not too many, where none is given by name."""
    least, most = 0, 0.0
    for parameter in signature_of(run).parameters.values():
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            most = float("inf")
        elif parameter.kind is not inspect.Parameter.VAR_KEYWORD:
            needed = parameter.default is inspect.Parameter.empty
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
                least = 10**9 if needed else least
            else:
                least, most = least + needed, most + 1
    return least, most


def _bound(run: Callable[..., Any], payload: Payload, task: str) -> inspect.BoundArguments:
    try:
        return signature_of(run).bind(*payload.args, **payload.kwargs)
    except TypeError as error:
        raise PayloadError(f"{task}{signature_of(run)} cannot be called like this: {error}.") from None


def coerce(run: Callable[..., Any], payload: Payload, task: str) -> Payload:
    """Check a payload against the types of a body's parameters and return it coerced.

    Raises ``PayloadError`` with a line for each value that does not fit.
    """
    bound = _bound(run, payload, task)
    try:
        checked = _validated(run, bound)
    except ValidationError as error:
        lines = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise PayloadError(f"The payload does not fit {task}{signature_of(run)}: {lines}.") from None
    plain = {name: _plain(value) for name, value in checked.items()}
    bound.arguments.update(plain)
    # By name or by place, as the caller gave it: what was named survives a change of the order of parameters.
    by_place = bound.args[: len(payload.args)]
    return Payload(by_place, {name: plain.get(name, value) for name, value in payload.kwargs.items()})


def restore(run: Callable[..., Any], payload: Payload, task: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments as the body's annotations want them (models, enums) from a stored payload.

    Raises ``PayloadError`` when a stored payload no longer fits the code.
    """
    bound = _bound(run, payload, task)
    try:
        bound.arguments.update(_validated(run, bound))
    except ValidationError as error:
        raise PayloadError(f"The stored payload does not fit {task}{signature_of(run)}: {error}") from None
    return bound.args, bound.kwargs


def arguments(run: Callable[..., Any], payload: Payload) -> dict[str, Any]:
    """The payload by parameter name, defaults included."""
    bound = signature_of(run).bind(*payload.args, **payload.kwargs)
    bound.apply_defaults()
    return dict(bound.arguments)


@lru_cache(maxsize=4096)
def signature_of(run: Callable[..., Any]) -> inspect.Signature:
    """The parameters of a body, without ``self``."""
    return inspect.signature(run)


def _validated(run: Callable[..., Any], bound: inspect.BoundArguments) -> dict[str, Any]:
    """The annotated arguments that were given, as pydantic makes them."""
    adapter, names = _adapter(run)
    return dict(adapter.validate_python({n: v for n, v in bound.arguments.items() if n in names}))


@lru_cache(maxsize=4096)
def _adapter(run: Callable[..., Any]) -> tuple[TypeAdapter[Any], frozenset[str]]:
    """A validator for the annotated parameters of a body, and their names."""
    hints = get_type_hints(inspect.unwrap(getattr(run, "__func__", run)), include_extras=True)
    single = (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.KEYWORD_ONLY,
    )
    fields = {n: hints[n] for n, p in signature_of(run).parameters.items() if n in hints and p.kind in single}
    typed_dict: Any = TypedDict
    shape = typed_dict("Payload", fields, total=False)
    shape.__pydantic_config__ = ConfigDict(arbitrary_types_allowed=True)
    return TypeAdapter(shape), frozenset(fields)


def _plain(value: Any) -> Any:
    """A coerced value in JSON's own types, except those that kombu's JSON keeps."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    try:
        kombu_json.dumps(value)
    except (TypeError, ValueError):
        return TypeAdapter(type(value)).dump_python(value, mode="json")
    return value


def upgrade(
    payload: Payload,
    version: int,
    current: int,
    upcasters: Mapping[int, Callable[[Payload], Payload]],
    task: str,
) -> Payload:
    """Bring a payload that old code queued to the version that the task has now.

    ``upcasters[n]`` turns a payload of version n into one of version n + 1.
    Raises ``PayloadError`` when a step is missing or the payload is from the future.
    """
    if version > current:
        raise PayloadError(
            f"The payload of {task} has version {version}; this worker knows {current}. A newer worker must run it."
        )
    for step in range(version, current):
        if step not in upcasters:
            raise PayloadError(f"{task} has no upcaster from version {step} to {step + 1}.")
        payload = upcasters[step](payload)
    return payload


def shorten(value: Sequence[Any] | Mapping[str, Any] | Any, length: int = 200) -> str:
    """A one-line picture of a value for people."""
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= length else text[: length - 1] + "…"
