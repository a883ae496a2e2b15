"""The body of a chunk takes a list; a call of one job gives what is in it. Pure."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, get_args, get_origin, get_type_hints

from jobs.errors import DeclarationError

PARAMETER = "payload"

_WANTED = "Its body takes one list: def run(self, payloads: list[int]); each call gives one of them: delay(7)."


def check(name: str, taken: Mapping[str, inspect.Parameter], function: Callable[..., Any]) -> None:
    """Refuse a body that does not take one list, with the remedy."""
    single = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if len(taken) != 1 or next(iter(taken.values())).kind not in single:
        raise DeclarationError(f"{name}({', '.join(taken)}) cannot be the body of a chunk. {_WANTED}")
    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
        raise DeclarationError(f"The body of {name} must be a plain function that returns the outcomes. {_WANTED}")
    try:
        hints = get_type_hints(function, include_extras=True)
    except Exception:
        return  # of what is defined further down: it is read again at the first call
    _element(name, hints.get(next(iter(taken))))


def parameters() -> dict[str, inspect.Parameter]:
    """What a call of one job takes."""
    return {PARAMETER: inspect.Parameter(PARAMETER, inspect.Parameter.POSITIONAL_OR_KEYWORD)}


def of_one(body: Callable[..., Any]) -> Callable[..., Any]:
    """A function with the signature of a call of one job. Raises ``DeclarationError``."""
    function = inspect.unwrap(getattr(body, "__func__", body))
    name = next(iter(inspect.signature(body).parameters))
    element = _element(function.__qualname__, get_type_hints(function, include_extras=True).get(name))

    def one(payload: Any) -> Any:
        raise NotImplementedError

    one.__annotations__ = {PARAMETER: element} if element is not None else {}
    one.__qualname__ = one.__name__ = function.__name__
    return one


def _element(name: str, hint: Any) -> Any:
    """The type of one payload, None where none is said."""
    if hint is None or hint is Any or hint is list:
        return None
    if get_origin(hint) is not list:
        raise DeclarationError(f"The body of {name} takes {hint!r}. {_WANTED}")
    return get_args(hint)[0]
