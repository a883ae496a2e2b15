"""``manage.py dlq``: the verbs that only look."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Iterable, Mapping
from typing import Any

from dlq import stats
from dlq.management import documents
from dlq.models import DeadLetter, Status
from jobs import shown
from jobs.management import arguments
from jobs.management.looking import show_counts, show_timeline
from jobs.management.rendering import Column, Paper
from jobs.management.verbs import Verb, numbered

FILTERS = ("status", "task", "fingerprint", "error", "queue", "tenant", "since", "until")
FINGERPRINT_SHOWN = 12

LIST = (
    Column("no", right=True), Column("status", whole=True), Column("task"), Column("error"), Column("reason"),
    Column("queue"), Column("failed", whole=True), Column("fingerprint", whole=True),
)  # fmt: skip
GROUPS = (
    Column("fingerprint", whole=True), Column("letters", right=True), Column("task"), Column("error"),
    Column("first", whole=True), Column("last", whole=True),
)  # fmt: skip


def add_letter_filters(parser: ArgumentParser) -> None:
    """Which letters are meant, by what they are about."""
    group = parser.add_argument_group("which letters", "All given filters must fit.")
    group.add_argument("--task", help="the task: ChargeOrder, or shop.tasks.ChargeOrder, or shop. for all below")
    group.add_argument(
        "--fingerprint", metavar="HEX", help="the same trouble (see: dlq list --group); its beginning will do"
    )
    group.add_argument("--error", help="the class of the error: GatewayBusy, or shop.gateway.GatewayBusy")
    group.add_argument("--queue", help="the queue that the job came from")
    group.add_argument("--tenant", help="whose jobs")
    arguments.add_period(group, "failed")


class List(Verb):
    """Letters by filters, newest first."""

    name = "list"
    help = "list dead letters, newest first; or their groups"
    about = (
        "List dead letters, the open ones unless --status says otherwise.\n"
        "With --group, one line for each kind of trouble."
    )
    examples = (
        "dlq list --since 1d",
        "dlq list --group",
        "dlq list --status all --task ChargeOrder --error GatewayBusy",
        "dlq list --fingerprint 3fa4c1 --json | jq '.letters[].id'",
    )

    @classmethod
    def arguments(cls, parser: ArgumentParser) -> None:
        """Filters and a page."""
        statuses = ("all", *Status.values)
        parser.add_argument(
            "--status",
            choices=statuses,
            default=Status.OPEN.value,
            metavar="STATUS",
            help=f"one of: {', '.join(statuses)} (default: open)",
        )
        add_letter_filters(parser)
        parser.add_argument("--group", action="store_true", help="one line per fingerprint, the largest group first")
        arguments.add_page(parser)

    def run(self) -> None:
        """Show the page, or the groups."""
        filters = self.chosen(*FILTERS)
        if filters["status"] == "all":
            del filters["status"]
        if self.given["group"]:
            self._show_groups(stats.groups(self.given["limit"], **filters))
        else:
            self._show_letters(stats.find(**filters, **self.chosen("limit", "offset")))

    def _show_groups(self, found: list[dict[str, Any]]) -> None:
        if self.given["json"]:
            self.paper.json({"groups": found, "limit": self.given["limit"]})
        elif found:
            show_groups(self.paper, found)
        else:
            self.paper.line("No dead letters fit.")

    def _show_letters(self, found: list[DeadLetter]) -> None:
        if self.given["json"]:
            self.paper.json(
                {"letters": [documents.short(letter) for letter in found], **self.chosen("limit", "offset")}
            )
        elif not found:
            self.paper.line("No dead letters fit.")
        else:
            self.paper.table(LIST, [_row(letter) for letter in found])
            if len(found) == self.given["limit"]:
                after = self.given["offset"] + len(found)
                self.note(f"{numbered(len(found), 'letter')} shown; for the next: --offset {after}")


def show_groups(paper: Paper, found: Iterable[Mapping[str, Any]]) -> None:
    """A line for each kind of trouble."""
    paper.table(
        GROUPS,
        [
            (
                each["fingerprint"][:FINGERPRINT_SHOWN],
                each["count"],
                last_part(each["task"]),
                last_part(each["error_type"]),
                each["first"],
                each["last"],
            )
            for each in found
        ],
    )


def _row(letter: DeadLetter) -> tuple[object, ...]:
    return (
        str(letter.pk),
        letter.status,
        last_part(letter.task),
        last_part(letter.error_type),
        letter.reason,
        letter.queue,
        letter.created_at,
        letter.fingerprint[:FINGERPRINT_SHOWN],
    )


def last_part(dotted: str) -> str:
    """A dotted name without its module."""
    return dotted.rsplit(".", 1)[-1]


class Show(Verb):
    """One letter, whole."""

    name = "show"
    help = "show one dead letter: its payload, attempts, error"
    about = "Show all of one dead letter, by its number or by the id of its job. Secrets in its payload are hidden."
    examples = ("dlq show 17", "dlq show 0192f0c1-7a55-7c3e-9a55-0d4c6b1f2e3a", "dlq show 17 --json | jq .payload")

    @classmethod
    def arguments(cls, parser: ArgumentParser) -> None:
        """Which letter."""
        parser.add_argument("letter", help="the number of the letter, or the id of its job")

    def run(self) -> None:
        """Show it."""
        letter = stats.get(self.given["letter"])
        if self.given["json"]:
            self.paper.json(documents.whole(letter))
            return
        self.paper.facts(facts(letter))
        self.paper.heading("payload")
        self.paper.line(shown.pretty(shown.masked_payload(letter.payload, shown.parameters(letter.task))))
        show_timeline(self.paper, letter.attempts)
        if letter.traceback:
            self.paper.heading("traceback")
            self.paper.line(letter.traceback.rstrip())


def facts(letter: DeadLetter) -> Iterable[tuple[str, object]]:
    """What there is to say of a letter in a line each."""
    replay = documents.replay(letter)
    yield "letter", str(letter.pk)
    yield "status", letter.status
    yield "job", letter.job_id
    yield "task", letter.task
    yield "queue", letter.queue
    yield "tenant", letter.tenant
    yield "reason", letter.reason
    yield "error", f"{letter.error_type}: {letter.error_message}".strip(": ")
    yield "fingerprint", letter.fingerprint
    yield "failed", letter.created_at
    yield "closed", letter.closed_at
    yield "closed by", letter.closed_by
    yield "because", letter.closing_reason
    yield "replayed as", replay and f"{replay['job']}{', payload edited' if replay['edited'] else ''}"


class Stats(Verb):
    """Numbers."""

    name = "stats"
    help = "count dead letters: in all, per status, per task, per kind of trouble"
    examples = ("dlq stats", "dlq stats --json | jq .open")

    def run(self) -> None:
        """Show them."""
        numbers = stats.statistics()
        if self.given["json"]:
            self.paper.json(numbers)
            return
        more = "+" if numbers["at_least"] else ""
        self.paper.facts(
            [
                ("in all", f"{numbers['total']:,}{more}"),
                ("open", f"{numbers['open']:,}{more}"),
                ("oldest open", numbers["oldest_open"]),
            ]
        )
        show_counts(self.paper, "status", numbers["per_status"], "letters")
        show_counts(self.paper, "task", numbers["per_task"], "open letters")
        if numbers["groups"]:
            self.paper.heading("open, by kind of trouble")
            show_groups(self.paper, numbers["groups"])
