"""``manage.py jobs``: limits and weights, as the code declares them and as operators set them in its place."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Iterable, Iterator
from typing import Any, Final

from jobs import control, declared, gauges, obeyed, standing
from jobs.gauges import Gauge, Rule
from jobs.limits import is_rate
from jobs.management import arguments
from jobs.management.refusals import mistaken
from jobs.management.rendering import Column
from jobs.management.verbs import Verb
from jobs.models import Allotment

WEIGHT: Final = Allotment.Kind.WEIGHT.value
# The words of a command line, by the kind that is stored.
WORDS: Final = {Allotment.Kind.SLOTS.value: "slots", Allotment.Kind.TOKENS.value: "rate", WEIGHT: "weight"}
STORED: Final = {word: kind for kind, word in WORDS.items()}

LIMITS = (
    Column("key", whole=True), Column("kind", whole=True), Column("code"), Column("now", whole=True),
    Column("in use", whole=True), Column("set by"), Column("reason"), Column("tasks"),
)  # fmt: skip


class Limits(Verb):
    """What is declared, and what was set."""

    name = "limits"
    help = "list the limits that tasks declare, and what was set in their place"
    about = (
        "List the limits that tasks declare, and the limits and weights that operators set: what the code says, what\n"
        "holds now, and how full each is. Of a limit with many keys, the fullest is shown."
    )
    examples = ("jobs limits", "jobs limits --json | jq '.limits[] | select(.set != null)'")

    def run(self) -> None:
        """Show them."""
        rows = list(_rows())
        if self.given["json"]:
            self.paper.json({"limits": rows})
        elif rows:
            self.paper.table(LIMITS, [_line(row) for row in rows])
        else:
            self.paper.line("No task declares a limit, and none is set.")


def _rows() -> Iterator[dict[str, Any]]:
    said = {(row.kind, row.name): row for row in Allotment.objects.order_by("kind", "name")}
    used = gauges.in_use()
    for rule in gauges.rules():
        kind = rule.kind.value
        name = next((name for name in (rule.name, *rule.templates) if (kind, name) in said), rule.name)
        of_rule = [
            gauge for gauge in used if gauge.bind.kind is rule.kind and rule.name in (gauge.bind.rule, gauge.key)
        ]
        yield _row(kind, rule.name, rule, said.pop((kind, name), None), next(iter(of_rule), None))
    full = gauges.of_names(key for key in said if key[0] != WEIGHT and "{" not in key[1])
    for (kind, name), row in said.items():
        yield _row(kind, name, None, row, full.get((kind, name)))


def _row(kind: str, name: str, rule: Rule | None, row: Allotment | None, gauge: Gauge | None) -> dict[str, Any]:
    return {
        "key": name, "kind": WORDS[kind], "code": rule.said if rule else None, "set": row.said if row else None,
        "by": row.by if row else None, "reason": row.reason if row else None,
        "since": row.created_at if row else None, "in_use": gauge.said if gauge else None,
        "fullest": gauge.key if gauge and gauge.key != name else None, "tasks": list(rule.tasks) if rule else [],
    }  # fmt: skip


def _line(row: dict[str, Any]) -> tuple[object, ...]:
    code = row["code"] or ("1" if row["kind"] == "weight" else "")
    used = f"{row['in_use']} ({row['fullest']})" if row["fullest"] else row["in_use"]
    tasks = [name.rsplit(".", 1)[-1] for name in row["tasks"]]
    return row["key"], row["kind"], code, row["set"] or code, used, row["by"], row["reason"], tasks


class OnLimit(Verb):
    """A verb on a key, or on a whole queue, task or tenant."""

    @classmethod
    def arguments(cls, parser: ArgumentParser) -> None:
        """Which of them."""
        parser.add_argument(
            "key", nargs="?", default="",
            help="a key as a task declares it, 'customer:{customer_id}', for all keys of that form; or one: customer:7",
        )  # fmt: skip
        group = parser.add_argument_group("in place of a key", "All jobs of it are bound together.")
        group.add_argument("--queue", default="", help="the name of a queue")
        group.add_argument("--task", default="", help="a task: ChargeOrder, or shop.tasks.ChargeOrder")
        group.add_argument("--tenant", default="", help="whose jobs")
        arguments.add_signature(parser)

    def scope(self) -> tuple[str, str] | None:
        """The queue, task or tenant that is named; None for a key."""
        named = [(scope, self.given[scope]) for scope in standing.SCOPES if self.given[scope]]
        if len(named) + bool(self.given["key"]) != 1:
            raise mistaken("Name one of these: a key, --queue, --task or --tenant.")
        return named[0] if named else None


class Allot(OnLimit):
    """Set a limit or a weight."""

    name = "allot"
    help = "set a limit, or the weight of a tenant, in place of what the code says"
    about = (
        "Set how many jobs may run at a time, how many may start in a span of time, or how many turns a tenant has\n"
        "for one of another. It holds from the next release on, within a second, until it is withdrawn. Jobs that\n"
        "were released by the limit and have not begun are taken back; those that run go on."
    )
    examples = (
        'jobs allot gateway --rate 5/s --burst 10 --reason "they have trouble"',
        "jobs allot 'customer:{customer_id}' --slots 5",
        'jobs allot --queue mail --slots 20 --reason "the relay is slow"',
        'jobs allot --tenant acme --weight 2 --reason "pays for two"',
    )

    @classmethod
    def arguments(cls, parser: ArgumentParser) -> None:
        """Which of them, and how many."""
        super().arguments(parser)
        what = parser.add_mutually_exclusive_group(required=True)
        what.add_argument("--slots", type=_slots, metavar="N", help="how many may run at a time")
        what.add_argument("--rate", type=_rate, help="how many may start in which span: 20/s, 100/m, 5/h or 1/d")
        what.add_argument("--weight", type=_weight, metavar="N", help="how many turns a tenant has for one of another")
        parser.add_argument(
            "--burst",
            type=arguments.count,
            metavar="N",
            help="with --rate: how many may start at once after a quiet time",
        )

    def run(self) -> None:
        """Set it, once it is known that something obeys it."""
        scope, value = self.scope(), self.chosen("slots", "rate", "weight", "burst")
        named = dict([scope]) if scope else {"name": self.given["key"]}
        if scope and scope[0] == "task":
            named["task"] = declared.task_named(scope[1])
        if scope and scope[0] == "queue":
            declared.queue_named(scope[1])
        if not scope and self.given["weight"] is None:
            self._check_obeyed("slots" if self.given["slots"] else "rate")
        row = control.allot(**named, **value, by=self.by, reason=self.given["reason"])
        self._tell(row)

    def _check_obeyed(self, word: str) -> None:
        if wrong := obeyed.mistake(STORED[word], self.given["key"]):
            raise mistaken(wrong)

    def _tell(self, row: Allotment) -> None:
        if self.given["json"]:
            self.paper.json({"key": row.name, "kind": WORDS[row.kind], "set": row.said})
        else:
            self.paper.line(f"{row.name}: {WORDS[row.kind]} {row.said}, from the next release on.")


class Withdraw(OnLimit):
    """Take back what was set."""

    name = "withdraw"
    help = "take back a limit or a weight that was set: what the code says holds again"
    about = (
        "Take back what was set with allot, or in the admin. What the code declares holds again; a tenant has a\n"
        "weight of 1. What is set, 'jobs limits' says."
    )
    examples = ('jobs withdraw gateway --reason "they are back"', "jobs withdraw --tenant acme --kind weight")

    @classmethod
    def arguments(cls, parser: ArgumentParser) -> None:
        """Which of them."""
        super().arguments(parser)
        parser.add_argument("--kind", choices=STORED, help="which, where more than one is set")

    def run(self) -> None:
        """Take it back, or say what is set."""
        row = self._set()
        control.withdraw(row.kind, row.name, by=self.by, reason=self.given["reason"])
        if self.given["json"]:
            self.paper.json({"key": row.name, "kind": WORDS[row.kind], "withdrawn": row.said})
        else:
            self.paper.line(f"{row.name}: {WORDS[row.kind]} {row.said} is withdrawn. What the code says holds again.")

    def _set(self) -> Allotment:
        """What is meant; of a task that was removed from the code it can still be withdrawn."""
        rows, scope, kind = list(Allotment.objects.order_by("name", "kind")), self.scope(), self.given["kind"]
        found = [row for row in rows if _meant(row, self.given["key"], scope) and kind in (None, WORDS[row.kind])]
        if len(found) == 1:
            return found[0]
        what = " ".join(filter(None, (self.given["key"] or standing.name(*(scope or ("", ""))), kind)))
        if found:
            raise mistaken(f"For {what} these are set: {_listed(found)}. Say which: --kind {WORDS[found[0].kind]}.")
        raise mistaken(f"Nothing is set for {what}. Set: {_listed(rows) or 'nothing'}.")


def _meant(row: Allotment, key: str, scope: tuple[str, str] | None) -> bool:
    if scope is None:
        return row.name == key
    kind, of = scope
    if row.kind == WEIGHT:
        return kind == "tenant" and row.name == of
    return row.name == standing.name(kind, of) or (kind == "task" and row.name.endswith(f".{of}"))


def _listed(rows: Iterable[Allotment]) -> str:
    return ", ".join(f"{row.name} ({WORDS[row.kind]} {row.said})" for row in rows)


def _slots(text: str) -> int:
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise ArgumentTypeError(f"{text!r} is not how many may run at a time: 1 or more. To let none run, pause the queue.")


def _rate(text: str) -> str:
    if is_rate(text):
        return text
    raise ArgumentTypeError(f'{text!r} does not say how many in which span: "20/s", "100/m", "5/h" or "1/d".')


def _weight(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is not a number of turns, such as 2 or 0.5.") from None
