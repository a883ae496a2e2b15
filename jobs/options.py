"""The options of one enqueue: Celery's own and ours, checked, with the mistakes named. Pure."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from jobs.errors import OptionError
from jobs.states import Priority, priority_from

OURS = frozenset(
    {
        "key", "tags", "metadata", "tenant", "correlation_id", "priority", "queue", "tracked", "schedule", "debounce",
        "throttle",
    }
)  # fmt: skip

# Options of Celery's that the row answers, or that the message carries on.
CELERYS = frozenset(
    {
        "countdown", "eta", "expires", "task_id", "link", "link_error", "chain", "chord", "group_id", "group_index",
        "root_id", "parent_id", "time_limit", "soft_time_limit", "shadow", "headers", "serializer", "compression",
        "exchange", "exchange_type", "routing_key", "delivery_mode", "immediate", "mandatory", "ignore_result",
        "add_to_parent", "reply_to", "retries", "retry", "retry_policy", "producer", "publisher", "connection",
        "router", "route_name", "result_cls", "task_type", "replaced_task_nesting", "stamped_headers", "origin",
        "argsrepr", "kwargsrepr", "declare", "expiration", "timeout", "confirm_timeout", "content_type",
        "content_encoding", "correlation", "visitor", "append_stamps", "on_replace",
    }
)  # fmt: skip

# What is the same for all calls of a task.
DECLARED = frozenset(
    {
        "limits", "breakers", "key_scope", "retry_priority", "idempotent", "version", "upcasters", "size", "max_wait",
        "chunk_by", "rate_limit",
    }
)  # fmt: skip

# What a message carries beyond the payload, kept with the job so that sending it again is equivalent.
CARRIED = (
    "shadow", "headers", "compression", "exchange", "routing_key", "delivery_mode", "stamped_headers",
    "argsrepr", "kwargsrepr",
)  # fmt: skip


def check_names(task: str, options: Mapping[str, Any]) -> None:
    """Refuse an option that nobody knows, with the nearest that somebody does."""
    stamps = set(options.get("stamped_headers") or ())
    for name in options:
        if name not in OURS and name not in CELERYS and name not in stamps:
            if name in DECLARED:
                raise OptionError(f"{task} was given {name}, which is declared on the task, not given to a call.")
            close = difflib.get_close_matches(name, OURS | CELERYS, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else f" Mainstay's own are: {', '.join(sorted(OURS))}."
            raise OptionError(f"{task} was given an unknown option {name!r}.{hint}")


def due(options: Mapping[str, Any], timezone: Any) -> timedelta | datetime | None:
    """When a job is due: a delay from now, a time, or None for at once."""
    countdown, eta = options.get("countdown"), options.get("eta")
    if countdown is not None and eta is not None:
        raise OptionError("Give either countdown (seconds from now) or eta (a time), not both.")
    if countdown is not None:
        return _delay("countdown", countdown)
    return None if eta is None else moment("eta", eta, timezone)


def expiry(options: Mapping[str, Any], due_in: timedelta, timezone: Any) -> timedelta | datetime | None:
    """When a job expires; refused when that is not after it is due (``due_in`` from now)."""
    expires = options.get("expires")
    if expires is None:
        return None
    if isinstance(expires, int | float | timedelta) and not isinstance(expires, bool):
        after = _delay("expires", expires)
        if after <= due_in:
            raise OptionError(f"The job would expire after {after}, before it is due (after {due_in}).")
        return after
    return moment("expires", expires, timezone)


def _delay(name: str, value: Any) -> timedelta:
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 10**9:
        raise OptionError(f"{name} must be a number of seconds, 0 or more, not {value!r}.")
    return timedelta(seconds=value)


def moment(name: str, value: Any, timezone: Any) -> datetime:
    """A time given as a datetime or as ISO 8601 text; without a zone it is in ``timezone``."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise OptionError(f"{name} must be a time such as 2030-01-31T12:00:00+00:00, not {value!r}.") from None
    if not isinstance(value, datetime):
        raise OptionError(f"{name} must be a datetime or an ISO 8601 text, not {value!r}.")
    return value if value.tzinfo else value.replace(tzinfo=timezone)


def identity(name: str, value: Any) -> UUID | None:
    """An id that must be a UUID, as Celery's canvas gives it or as the caller does."""
    if value is None or isinstance(value, UUID):
        return value
    try:
        return UUID(str(value))
    except ValueError:
        raise OptionError(
            f"{name} must be a UUID, not {value!r}. "
            'To find a job by a name of your own, give key="…" (unique while unfinished) or tags=["…"].'
        ) from None


def priority(value: Any, default: Any) -> Priority:
    """The priority of a call, else the task's own, else normal."""
    try:
        return (
            priority_from(default if value is None else value) if (value, default) != (None, None) else Priority.NORMAL
        )
    except ValueError as error:
        raise OptionError(str(error)) from None


def tags(value: Any) -> list[str]:
    """A list of short texts."""
    if value is None:
        return []
    listed = isinstance(value, list | tuple | set | frozenset)
    if not listed or not all(isinstance(tag, str) and 0 < len(tag) <= 100 for tag in value):
        raise OptionError(f"tags must be a list of texts of 1 to 100 characters, not {value!r}.")
    return list(dict.fromkeys(value))


def metadata(value: Any) -> dict[str, Any]:
    """A JSON object."""
    if value is None:
        return {}
    try:
        if isinstance(value, dict) and len(json.dumps(value, allow_nan=False)) <= 10_000:
            return value
    except (TypeError, ValueError):
        pass
    raise OptionError(f"metadata must be a JSON object of at most 10,000 characters, not {value!r}.")


def text(name: str, value: Any, length: int) -> str:
    """A text of at most ``length`` characters; empty for None."""
    if value is None:
        return ""
    if isinstance(value, str | int | UUID) and len(str(value)) <= length:
        return str(value)
    raise OptionError(f"{name} must be a text of at most {length} characters, not {value!r}.")
