"""What the checks share: how a finding is told, and what its sentence is made from."""

from __future__ import annotations

from typing import Any, Final

from django.core.checks import CheckMessage, Error
from django.core.checks import Warning as Caution

from jobs.states import priority_from

PRIORITIES: Final = (
    "Celery's priorities from 0 to 9 mean different things on each broker; Mainstay's are the same on all."
)


def error(number: str, sentence: str, remedy: str, what: str) -> Error:
    """What loses or doubles jobs."""
    return Error(sentence, hint=remedy, obj=what, id=f"jobs.{number}")


def warning(number: str, sentence: str, remedy: str, what: str) -> Caution:
    """What strands jobs, or misleads people."""
    return Caution(sentence, hint=remedy, obj=what, id=f"jobs.{number}")


def rejects(what: str, where: str) -> CheckMessage:
    """What makes a loop of a job that kills its worker."""
    return warning(
        "W001",
        f"{what}: a job that kills its worker comes back at once, without a limit or a pause.",
        "Remove it; Mainstay gives such a job back by itself, with a cap and a backoff.",
        where,
    )


def unknown_priority(value: Any) -> str:
    """What is wrong with a priority; nothing if it is one of ours."""
    try:
        priority_from(value)
    except ValueError as wrong:
        return str(wrong)
    return ""


def scheme(given: Any) -> str:
    """The scheme of the broker's URL, without the part behind a plus."""
    url = given.broker_write_url or given.broker_url or ""
    return str(url[0] if isinstance(url, list | tuple) and url else url).partition("://")[0].partition("+")[0]


def name_of(queue: Any) -> str:
    """The name of a queue, however it is given."""
    return str(getattr(queue, "name", queue))
