"""The states of a job and the moves between them, as data. Pure."""

from __future__ import annotations

from enum import IntEnum

from django.db.models import TextChoices


class State(TextChoices):
    """Where a job stands; each state says who must act next."""

    PENDING = "pending", "pending"
    RESERVED = "reserved", "reserved"
    RUNNING = "running", "running"
    RETRYING = "retrying", "retrying"
    COMPLETED = "completed", "completed"
    FAILED = "failed", "failed"
    CANCELLED = "cancelled", "cancelled"


class Priority(IntEnum):
    """How urgent a job is: the lower the number, the sooner it runs."""

    CRITICAL = 0
    HIGH = 10
    NORMAL = 20
    LOW = 30


MOVES: dict[State, frozenset[State]] = {
    State.PENDING: frozenset({State.PENDING, State.RESERVED, State.CANCELLED, State.COMPLETED, State.FAILED}),
    State.RESERVED: frozenset({State.PENDING, State.RUNNING, State.CANCELLED, State.FAILED}),
    State.RUNNING: frozenset({State.COMPLETED, State.FAILED, State.RETRYING, State.CANCELLED, State.PENDING}),
    State.RETRYING: frozenset({State.RETRYING, State.PENDING, State.RESERVED, State.CANCELLED, State.FAILED}),
    State.COMPLETED: frozenset(),
    State.FAILED: frozenset(),
    State.CANCELLED: frozenset(),
}

FINAL = frozenset(state for state, targets in MOVES.items() if not targets)
UNFINISHED = frozenset(MOVES) - FINAL
WAITING = frozenset({State.PENDING, State.RETRYING})

MEANING: dict[State, str] = {
    State.PENDING: "waits in the database: scheduled, held back, snoozed, or to be sent again",
    State.RESERVED: "handed to the broker; no attempt has started",
    State.RUNNING: "an attempt holds the lease",
    State.RETRYING: "waits in the database for its next attempt",
    State.COMPLETED: "done; the result is recorded",
    State.FAILED: "will not run again by itself; a dead letter holds the record",
    State.CANCELLED: "stopped by a person, by the task or by its expiry",
}

# Celery's names, for AsyncResult and everything that reads it.
CELERY_STATE: dict[State, str] = {
    State.PENDING: "PENDING",
    State.RESERVED: "PENDING",
    State.RUNNING: "STARTED",
    State.RETRYING: "RETRY",
    State.COMPLETED: "SUCCESS",
    State.FAILED: "FAILURE",
    State.CANCELLED: "REVOKED",
}


def priority_from(value: object) -> Priority:
    """The priority named by ``value`` ("high", 10, Priority.HIGH).

    Raises ``ValueError`` with the four that exist.

    >>> priority_from("high"), priority_from(30)
    (<Priority.HIGH: 10>, <Priority.LOW: 30>)
    """
    try:
        if isinstance(value, str):
            return Priority[value.upper()]
        if isinstance(value, int) and not isinstance(value, bool):
            return Priority(value)
    except (KeyError, ValueError):
        pass
    known = ", ".join(f"{p.name.lower()} ({p.value})" for p in Priority)
    raise ValueError(f"Unknown priority {value!r}. Use one of: {known}.")


LOWER = "lower"


def lowered(priority: int, rule: object) -> Priority:
    """The priority at which a job comes back that failed at ``priority``: one lower, or as low as ``rule`` names.

    >>> lowered(Priority.HIGH, "lower"), lowered(Priority.LOW, "lower"), lowered(Priority.LOW, "normal")
    (<Priority.NORMAL: 20>, <Priority.LOW: 30>, <Priority.LOW: 30>)
    """
    if rule == LOWER:
        return min((p for p in Priority if p > priority), default=Priority.LOW)
    return max(Priority(priority), priority_from(rule))
