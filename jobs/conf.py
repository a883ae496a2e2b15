"""Mainstay's own settings: the ``JOBS`` dictionary, checked, with defaults."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass, field, fields
from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings of ``JOBS``. Times are in seconds, sizes in bytes."""

    LEASE: float = 20.0
    HEARTBEAT: float = 5.0
    TICK: float = 0.25
    LEADER_LEASE: float = 5.0
    SEND_TIMEOUT: float = 1.0
    SEND_PAUSE: float = 5.0
    RELEASE_BATCH: int = 1000
    PAYLOAD_LIMIT: int = 64 * 1024
    CANVAS_LIMIT: int = 1024 * 1024
    RESULT_LIMIT: int = 256 * 1024
    CHECKPOINT_LIMIT: int = 64 * 1024
    MAX_CHECKPOINTS: int = 1000
    TIME_LIMIT: float = 300.0
    MAX_ATTEMPTS: int = 10
    MAX_LOSSES: int = 3
    MAX_SENDS: int = 20
    MAX_SNOOZES: int = 1000
    MAX_AGE: float = 30 * 24 * 3600.0
    CANCEL_GRACE: float = 15.0
    LOST_AFTER: float = 5.0
    KEEP_COMPLETED: float = math.inf
    KEEP_CANCELLED: float = math.inf
    KEEP_FAILED: float = math.inf
    AGEING: float = 30.0
    FAST_BROKER: bool = True
    SEND_IN_THREAD: bool = True
    GROUP_SHORT_JOBS: bool = True
    DURABLE_CLAIMS: bool = False
    QUEUES: tuple[str, ...] = field(default=())


SWITCHES = frozenset({"FAST_BROKER", "SEND_IN_THREAD", "GROUP_SHORT_JOBS", "DURABLE_CLAIMS"})


def current() -> Settings:
    """The settings in force.

    Raises ``ImproperlyConfigured`` for a name or a value that cannot be used.
    """
    global _current
    if _current is None:
        _current = read(getattr(settings, "JOBS", {}))
    return _current


def read(given: Any) -> Settings:
    """Check a ``JOBS`` dictionary and return it as ``Settings``."""
    if not isinstance(given, dict):
        raise ImproperlyConfigured(f"JOBS must be a dictionary, not {type(given).__name__}.")
    known = {f.name: f for f in fields(Settings)}
    for name in given:
        if name not in known:
            raise ImproperlyConfigured(f"JOBS has no setting {name!r}.{_suggestion(str(name), known)}")
    values = {name: _checked(name, value) for name, value in given.items()}
    return Settings(**values)


def _suggestion(name: str, known: dict[str, Any]) -> str:
    close = difflib.get_close_matches(name.upper(), known, n=1)
    return f" Did you mean {close[0]!r}?" if close else f" It has: {', '.join(known)}."


def _checked(name: str, value: Any) -> Any:
    if name == "QUEUES":
        if not isinstance(value, list | tuple | set) or not all(isinstance(queue, str) for queue in value):
            raise ImproperlyConfigured("JOBS['QUEUES'] must be a list of queue names.")
        return tuple(value)
    if name in SWITCHES:
        if not isinstance(value, bool):
            raise ImproperlyConfigured(f"JOBS[{name!r}] must be True or False, not {value!r}.")
        return value
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise ImproperlyConfigured(f"JOBS[{name!r}] must be a number above 0, not {value!r}.")
    return value


def _forget(*, setting: str, **_: Any) -> None:
    global _current
    if setting == "JOBS":
        _current = None


_current: Settings | None = None
setting_changed.connect(_forget)
