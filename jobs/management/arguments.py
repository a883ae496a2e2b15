"""The words of the command line: each is understood, or refused with an example of how to write it."""

from __future__ import annotations

import getpass
import os
from argparse import SUPPRESS, ArgumentParser, ArgumentTypeError
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, TypeVar
from uuid import UUID

from django.utils import timezone

from jobs.management import ages
from jobs.states import Priority, State, priority_from
from jobs.stats import MOST

Understood = TypeVar("Understood")


def age(text: str) -> timedelta:
    """A length of time: ``2h``, ``7d``."""
    return _told(ages.age, text)


def moment(text: str) -> datetime:
    """A moment: an age before now, or an ISO time in the project's time zone."""
    return _told(lambda given: ages.moment(given, timezone.localtime()), text)


def priority(text: str) -> Priority:
    """A priority by name or number."""
    return _told(lambda given: priority_from(int(given) if given.isdigit() else given), text)


def job_id(text: str) -> UUID:
    """The id of a job."""
    try:
        return UUID(text)
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is not the id of a job; one looks like {UUID(int=0)}.") from None


def count(text: str) -> int:
    """A whole number above 0."""
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise ArgumentTypeError(f"{text!r} is not a whole number above 0.")


def place(text: str) -> int:
    """A whole number, 0 or more."""
    if text.isdecimal():
        return int(text)
    raise ArgumentTypeError(f"{text!r} is not a whole number.")


def words(most: int) -> Callable[[str], str]:
    """A text of at most ``most`` characters."""

    def checked(text: str) -> str:
        if len(text) <= most:
            return text
        raise ArgumentTypeError(f"at most {most} characters, not {len(text)}.")

    return checked


def _told(understood: Callable[[str], Understood], text: str) -> Understood:
    try:
        return understood(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None


def operator() -> str:
    """Who types: the operating system's name of the user."""
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):
        return f"user {os.getuid()}"


# --- Groups of options that several verbs share ---------------------------------------------------


def add_job_filters(parser: ArgumentParser, *, states: bool = True) -> None:
    """Which jobs are meant."""
    group = parser.add_argument_group("which jobs", "All given filters must fit.")
    if states:
        group.add_argument("--state", choices=State.values, metavar="STATE", help=f"one of: {', '.join(State.values)}")
    group.add_argument("--queue", help="the queue they wait in")
    group.add_argument("--priority", type=priority, help="critical, high, normal or low (or 0, 10, 20, 30)")
    group.add_argument("--tag", help="a tag that they carry")
    group.add_argument("--task", help="the task: ChargeOrder, or shop.tasks.ChargeOrder, or shop. for all below")
    group.add_argument("--tenant", help="whose jobs")
    group.add_argument("--key", help="their idempotency key")
    add_period(group, "created")


def add_period(group: Any, what: str) -> None:
    """From when until when."""
    group.add_argument(
        "--since", type=moment, metavar="WHEN", help=f"{what} since: an age (2h, 7d) or a time (2030-01-31T12:00)"
    )
    group.add_argument("--until", type=moment, metavar="WHEN", help=f"{what} before: an age or a time")


def add_page(parser: ArgumentParser) -> None:
    """How many, from where."""
    parser.add_argument("--limit", type=count, default=50, help=f"how many at most (default: 50, highest: {MOST:,})")
    parser.add_argument("--offset", type=place, default=0, help="how many to leave out first (default: 0)")


def add_signature(parser: ArgumentParser, *, reason: int = 255) -> None:
    """Who does it, and why: both are kept in the audit trail."""
    parser.add_argument("--reason", type=words(reason), default="", help="why; kept in the audit trail")
    parser.add_argument(
        "--by", type=words(150), default=None, metavar="NAME", help="who does it (default: your login name)"
    )


def add_yes(parser: ArgumentParser) -> None:
    """Consent in advance."""
    parser.add_argument("--yes", "-y", action="store_true", help="do not ask; needed where there is no terminal")


def add_json(parser: ArgumentParser) -> None:
    """For machines."""
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def add_djangos(parser: ArgumentParser) -> None:
    """Django's own options, so that they may also follow the verb."""
    for flag in ("--traceback", "--no-color", "--force-color"):
        parser.add_argument(flag, action="store_true", default=SUPPRESS, help=SUPPRESS)
    for option in ("--settings", "--pythonpath"):
        parser.add_argument(option, default=SUPPRESS, help=SUPPRESS)
    parser.add_argument("-v", "--verbosity", type=int, choices=range(4), default=SUPPRESS, help=SUPPRESS)
