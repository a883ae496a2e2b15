"""Values in JSON's own types, as every database can keep them and every reader can show them. Pure."""

from __future__ import annotations

import json
from typing import Any

from jobs import payload
from jobs.errors import PayloadError


def copy(value: Any) -> Any:
    """A copy in JSON's own types that every database can keep: times, decimals, UUIDs and bytes become text.

    Raises ``PayloadError`` for what is not JSON.
    """
    try:
        return _storable(json.loads(payload.to_json(value), object_hook=_as_text))
    except RecursionError:
        raise PayloadError("This is not JSON: it is nested too deeply.") from None


def storable(value: Any) -> bool:
    """Whether every database can keep a value of JSON's types as it is.

    >>> storable("é"), storable(["a\\x00"]), storable({"half a pair": "\\ud800"})
    (True, False, False)
    """
    plainly = value if isinstance(value, str) else json.loads(json.dumps(value))
    return bool(_storable(plainly) == plainly)


def _as_text(found: dict[str, Any]) -> Any:
    """What kombu's JSON wraps together with its type, as its text alone."""
    if found.keys() != {"__type__", "__value__"}:
        return found
    value = found["__value__"]
    return value.get("hex", value) if isinstance(value, dict) else value


def _storable(value: Any) -> Any:
    """The value without the characters that PostgreSQL refuses."""
    if isinstance(value, str):
        return value.replace("\x00", "\ufffd").encode(errors="replace").decode()
    if isinstance(value, dict):
        return {_storable(name): _storable(item) for name, item in value.items()}
    return [_storable(item) for item in value] if isinstance(value, list) else value
