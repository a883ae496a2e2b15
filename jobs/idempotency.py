"""What makes two calls the same job: how a key is made from a payload, and for how long it holds. Pure."""

from __future__ import annotations

import hashlib
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from typing import Any, Final

from jobs.errors import DeclarationError, KeyCannotBeMade

KEY_LENGTH: Final = 255


class NoKey(Enum):
    """The type of ``NO_KEY``."""

    NO_KEY = "no key"


class Scope(Enum):
    """For how long a key holds, where it is not a period."""

    WHILE_UNFINISHED = "while unfinished"
    FOREVER = "for ever"


@dataclass(frozen=True, slots=True)
class Sliding:
    """A key that is free again once nobody has called with it for ``period``: each call makes it hold for longer."""

    period: timedelta

    def __post_init__(self) -> None:
        period: object = self.period
        if not isinstance(period, timedelta) or period <= timedelta(0):
            raise DeclarationError(f"Sliding({period!r}): say a timedelta that is longer than nothing.")


NO_KEY: Final = NoKey.NO_KEY
WHILE_UNFINISHED: Final = Scope.WHILE_UNFINISHED
FOREVER: Final = Scope.FOREVER

Key = str | Callable[..., str] | NoKey
KeyScope = Scope | timedelta | Sliding


def check_key(name: str, key: Any, parameters: Mapping[str, Any] | None) -> None:
    """Refuse a key that can never be made: at declaration, with the remedy."""
    if key is None:
        raise DeclarationError(
            f'{name} has no key. Set key = "{_example(name, parameters)}" '
            "(what makes two calls the same job), or key = NO_KEY."
        )
    if key is NO_KEY or callable(key):
        return
    if not isinstance(key, str) or not key:
        raise DeclarationError(f"The key of {name} must be a text, a function or NO_KEY, not {key!r}.")
    _check_template(name, key, parameters)


def check_scope(name: str, scope: Any) -> None:
    """Refuse a scope that is neither a period nor one of the two constants."""
    if isinstance(scope, timedelta) and scope <= timedelta(0):
        raise DeclarationError(f"The key_scope of {name} must be longer than nothing, not {scope}.")
    if not isinstance(scope, Scope | timedelta | Sliding):
        raise DeclarationError(
            f"The key_scope of {name} must be WHILE_UNFINISHED, FOREVER, a timedelta or Sliding(timedelta), "
            f"not {scope!r}."
        )


def _check_template(name: str, key: str, parameters: Mapping[str, Any] | None) -> None:
    try:
        wanted = [
            field.split(".")[0].split("[")[0] for _, field, _, _ in string.Formatter().parse(key) if field is not None
        ]
    except ValueError as error:
        raise DeclarationError(f"The key {key!r} of {name} is not a template: {error}.") from None
    if parameters is None:
        return
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    missing = [field for field in wanted if field not in parameters and not open_ended]
    if "" in missing:
        raise DeclarationError(
            f"The key {key!r} of {name} has {{}} without a name. Write which parameter is meant: "
            f"{', '.join(f'{{{place}}}' for place in parameters) or 'its body takes none'}."
        )
    if missing:
        raise DeclarationError(
            f"The key {key!r} of {name} uses {', '.join(missing)}, which its body does not take. "
            f"It takes: {', '.join(parameters) or 'nothing'}."
        )


def _example(name: str, parameters: Mapping[str, Any] | None) -> str:
    short = name.rsplit(".", 1)[-1]
    first = next(iter(parameters), "id") if parameters else "id"
    return f"{short.lower()}:{{{first}}}"


def make_key(name: str, key: Key, arguments: Mapping[str, Any]) -> str | None:
    """The key of a payload given by parameter name; None when the task has none.

    Longer keys than the column holds are shortened to a digest (SHA-256).

    >>> make_key("charge", "invoice:{invoice_id}", {"invoice_id": 7})
    'invoice:7'
    """
    if key is NO_KEY:
        return None
    try:
        made = key(**arguments) if callable(key) else str(key).format(**arguments)
    except Exception as error:
        raise KeyCannotBeMade(
            f"The key of {name} cannot be made from {sorted(arguments)}: {type(error).__name__}: {error}."
        ) from error
    return check_made(name, made)


def check_made(name: str, made: Any) -> str:
    """Refuse a key that is empty or not a text; shorten one that is too long."""
    if not isinstance(made, str) or not made:
        raise KeyCannotBeMade(f"The key of {name} must be a text that is not empty, not {made!r}.")
    if len(made) <= KEY_LENGTH:
        return made
    return "sha256:" + hashlib.sha256(made.encode(errors="surrogatepass")).hexdigest()
