"""Hiding secrets where people look at payloads, and putting them back where people edit. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

from jobs.errors import PayloadError

MASK: Final = "••••••"

_STEM = re.compile(
    r"passw|passphrase|secret|token(?![a-z])|authori[sz]ation|api[_-]?key|private[_-]?key|credential",
    re.IGNORECASE,
)
_WORDS = frozenset({"auth", "card", "cookie", "cvc", "cvv", "iban", "pan", "ssn"})
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")
_ASSIGNED = re.compile(
    r"""(?P<before>(?P<name>[\w-]+)\\?["']?\s*[:=]\s*)(?:\\?(?P<quote>["'])(?:\\.|(?!(?P=quote)).)*(?P=quote)?|[^\s,;&}\])]+)"""
)
_ADDRESS = re.compile(r"(://[^/\s:@]*:)[^/\s@]+(@)")


def secret(name: object) -> bool:
    """Whether a value of this name is not for everybody's eyes.

    >>> [n for n in ("api_key", "cardNumber", "discard", "max_tokens", "accessToken", "order_id") if secret(n)]
    ['api_key', 'cardNumber', 'accessToken']
    """
    text = str(name)
    return bool(_STEM.search(text)) or any(word.lower() in _WORDS for word in _WORD.findall(text))


def mask(value: Any) -> Any:
    """The same value with its secrets hidden, by the names in it and in addresses (``://user:password@``).

    >>> mask({"user": "ann", "password": "x", "to": [{"card": "4111"}], "db": "redis://u:p@host"})
    {'user': 'ann', 'password': '••••••', 'to': [{'card': '••••••'}], 'db': 'redis://u:••••••@host'}
    """
    if isinstance(value, dict):
        return {name: _masked(name, content) for name, content in value.items()}
    if isinstance(value, list | tuple):
        return type(value)([mask(item) for item in value])
    return _ADDRESS.sub(rf"\1{MASK}\2", value) if isinstance(value, str) else value


def mask_text(text: str) -> str:
    """A text that is not JSON with the values after secret names hidden, as far as they can be told.

    >>> mask_text('{"password": "x y", user: ann, api_key=abc')
    '{"password": "••••••", user: ann, api_key=••••••'
    """
    return str(mask(_ASSIGNED.sub(_hidden, text)))


def _hidden(found: re.Match[str]) -> str:
    if not secret(found["name"]):
        return found[0]
    quote = found["quote"] or ""
    return f"{found['before']}{quote}{MASK}{quote}"


def mask_arguments(args: Iterable[Any], names: Iterable[str]) -> list[Any]:
    """Positional arguments with the secrets hidden, by the names of the parameters that they fill.

    >>> mask_arguments([1, "x", {"pin": 1}], ["order_id", "api_key"])
    [1, '••••••', {'pin': 1}]
    """
    known = list(names)
    return [_masked(known[i], value) if i < len(known) else mask(value) for i, value in enumerate(args)]


def unmask(edited: Any, original: Any) -> Any:
    """Put the secrets of ``original`` back where ``edited`` still shows the mask.

    Raises ``PayloadError`` where a mask has no original at the same place.

    >>> unmask({"password": "••••••", "user": "bob"}, {"password": "x", "user": "ann"})
    {'password': 'x', 'user': 'bob'}
    """
    restored = _restored(edited, original)
    if _shows_mask(restored):
        raise PayloadError(
            f"A value is still hidden as {MASK} in a place where the original has none. Type it in full."
        )
    return restored


def _masked(name: object, value: Any) -> Any:
    return MASK if secret(name) and value not in (None, "", [], {}) else mask(value)


def _restored(edited: Any, original: Any) -> Any:
    if edited == MASK or (isinstance(edited, str) and edited == mask(original)):
        return original
    if isinstance(edited, dict) and isinstance(original, dict):
        return {name: _restored(value, original.get(name, value)) for name, value in edited.items()}
    # Lists of another length have lost their places: a mask in them must be typed again.
    if isinstance(edited, list) and isinstance(original, list) and len(edited) == len(original):
        return [_restored(*pair) for pair in zip(edited, original, strict=True)]
    return edited


def _shows_mask(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_shows_mask(item) for item in value.values())
    if isinstance(value, list):
        return any(_shows_mask(item) for item in value)
    return isinstance(value, str) and MASK in value
