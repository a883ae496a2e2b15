"""``manage.py jobs schedules``: when each schedule fires next, and what became of it last."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Iterator
from typing import Any

from jobs.errors import Refused
from jobs.management import arguments
from jobs.management.documents import iso
from jobs.management.rendering import Column
from jobs.management.verbs import Verb
from jobs.schedule import preview, rules
from jobs.schedule.preview import Outlook

TABLE = (
    Column("schedule"),
    Column("next fire", whole=True),
    Column("last fire", whole=True),
    Column("fired", right=True),
    Column("missed fires", whole=True),
    Column("state"),
)


class Schedules(Verb):
    """The schedules of beat."""

    name = "schedules"
    help = "list schedules: next and last fire, policy for missed ones; preview the next fires"
    about = (
        "List the schedules of beat with their next and last fire and what becomes of missed ones. With --next, "
        "preview the fires to come on each schedule's own clock, with its distance from UTC."
    )
    examples = (
        "jobs schedules",
        "jobs schedules --next 10 'Nightly report'",
        "jobs schedules --json | jq '.schedules[].problem'",
    )

    @classmethod
    def arguments(cls, parser: ArgumentParser) -> None:
        """Which, and how far ahead."""
        parser.add_argument("schedule", nargs="?", default="", help="only those whose name contains this")
        parser.add_argument(
            "--next", type=arguments.count, metavar="N", help="preview so many fires of each, at most 1,000"
        )

    def run(self) -> None:
        """Show them."""
        found = preview.outlooks(min(self.given["next"] or 1, 1000), self.given["schedule"])
        if self.given["schedule"] and not found:
            raise Refused(f"No schedule has {self.given['schedule']!r} in its name.")
        if self.given["json"]:
            self.paper.json({"schedules": [document(each) for each in found]})
        elif not found:
            self.paper.line("There are no schedules.")
        elif self.given["next"]:
            self._show_next(found)
        else:
            self.paper.table(TABLE, [_row(each) for each in found])

    def _show_next(self, found: list[Outlook]) -> None:
        for each in found:
            self.paper.heading(f"{each.task.name}{'' if each.task.enabled else ' (disabled)'}")
            for line in _preview(each):
                self.paper.line(line)


def _preview(each: Outlook) -> Iterator[str]:
    if each.problem:
        yield each.problem
    for fire in each.fires:
        yield preview.local(fire, each.zone)


def _row(each: Outlook) -> tuple[object, ...]:
    moments = each.next_at, rules.aware(each.task.last_run_at)
    next_at, last = (preview.local(at, each.zone) if at else "" for at in moments)
    return each.task.name, next_at, last, each.task.total_run_count, each.misfire, _state(each)


def _state(each: Outlook) -> str:
    if not each.task.enabled:
        return "disabled"
    if each.problem:
        return f"cannot fire: {each.problem}"
    if each.overdue_since is not None:
        return f"overdue since {preview.local(each.overdue_since, each.zone)}: is a beat running?"
    return ""


def document(each: Outlook) -> dict[str, Any]:
    """A schedule as JSON values."""
    last = rules.aware(each.task.last_run_at)
    return {
        "name": each.task.name, "task": each.task.task, "enabled": each.task.enabled, "misfire": each.misfire,
        "next": [fire.astimezone(each.zone).isoformat() for fire in each.fires], "last": iso(last),
        "fired": each.task.total_run_count, "overdue_since": iso(each.overdue_since), "problem": each.problem,
    }  # fmt: skip
