"""``manage.py dlq``: the verbs that decide about letters. Each is on record in the audit trail."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from contextlib import nullcontext
from itertools import islice
from typing import Any, ClassVar

from dlq import replay, stats
from dlq.management.looking import add_letter_filters, last_part
from dlq.models import DeadLetter, Status
from jobs import declared, drafts, lifecycle, outbox, shown
from jobs.errors import JobsError, PayloadError
from jobs.management import arguments
from jobs.management.refusals import broker_address, mistaken
from jobs.management.rendering import counting
from jobs.management.verbs import Tally, Verb, numbered
from jobs.masking import unmask
from jobs.models import Job
from jobs.payload import Payload, decode

FILTERS = ("task", "fingerprint", "error", "queue", "tenant", "since", "until")
MANY = 50  # from here on progress is shown


class OnLetters(Verb):
    """A verb on letters that are named, or found by filters among the open ones."""

    past: ClassVar[str]

    @classmethod
    def arguments(cls, parser: ArgumentParser) -> None:
        """Numbers, or filters; consent; who and why."""
        parser.add_argument(
            "letter", nargs="*", help="numbers of letters, or ids of their jobs; without any, the filters choose"
        )
        add_letter_filters(parser)
        parser.add_argument("--all", action="store_true", help="all open letters")
        parser.add_argument("--limit", type=arguments.count, help="how many at most, the oldest first")
        parser.add_argument("--dry-run", action="store_true", help="only say which letters are meant")
        arguments.add_signature(parser, reason=1000)
        arguments.add_yes(parser)

    def run(self) -> None:
        """Act on each by itself, and say what was refused."""
        letters = self.meant()
        tally = Tally()
        if self.given["dry_run"]:
            self.rehearse(letters, tally)
        else:
            self.consider(len(letters))
            self.act_on_each(letters, tally)
        self.tell(tally)
        tally.raise_if_refused("letters")

    def meant(self) -> list[DeadLetter]:
        """The letters that are meant, the oldest first."""
        filters = self.chosen(*FILTERS)
        ways = [bool(self.given["letter"]), bool(filters), self.given["all"]]
        if sum(ways) != 1:
            raise mistaken("Name numbers of letters, or filters that choose them (--task, --fingerprint …), or --all.")
        if self.given["letter"]:
            return [stats.get(number) for number in dict.fromkeys(self.given["letter"])]
        chosen = stats.matching(status=Status.OPEN, **filters).order_by("created_at", "pk").defer(*stats.FAT)
        return list(islice(chosen, self.given["limit"]))

    def consider(self, count: int) -> None:
        """Ask before many are decided at once."""
        if count > 1 or (count and not self.given["letter"]):
            self.confirm(f"{self.name} {numbered(count, 'dead letter')}")

    def act_on_each(self, letters: list[DeadLetter], tally: Tally) -> None:
        """Act on one after the other; a refusal does not stop the rest."""
        many = len(letters) >= MANY
        with counting(self.err, self.past, len(letters)) if many else nullcontext(lambda _: None) as progress:
            for done, letter in enumerate(letters, 1):
                try:
                    tally.done.append(self.act(letter))
                except JobsError as error:
                    tally.refuse(letter.pk, error)
                progress(done)

    def act(self, letter: DeadLetter) -> dict[str, Any]:
        """Decide about one; return what is told of it."""
        raise NotImplementedError

    def rehearse(self, letters: list[DeadLetter], tally: Tally) -> None:
        """Say what would be done, without doing it."""
        for letter in letters:
            try:
                replay.check_open(letter)
                tally.done.append({"letter": letter.pk, "task": letter.task})
            except JobsError as error:
                tally.refuse(letter.pk, error)

    def tell(self, tally: Tally) -> None:
        """Say what became of them."""
        if self.given["json"]:
            self.paper.json({self.past: tally.done, "refused": tally.refused, "dry_run": self.given["dry_run"]})
            return
        for told in tally.done:
            self.paper.line(self.sentence(told))
        if not tally.done and not tally.refused:
            self.paper.line("No open dead letters fit.")

    def sentence(self, told: dict[str, Any]) -> str:
        """What became of one."""
        would = "would be " if self.given["dry_run"] else ""
        as_job = f" as job {told['job']}" if "job" in told else ""
        return f"{told['letter']} {last_part(told['task'])}: {would}{self.past}{as_job}"


class Replay(OnLetters):
    """Send again."""

    name = "replay"
    help = "send the jobs of dead letters again, as new jobs"
    about = (
        "Send the jobs of open dead letters again, each as a new job with the same place in its chain or chord.\n"
        "A letter is replayed once: if the new job fails too, it gets a letter of its own. One letter's payload\n"
        "may be changed first; values written as •••••• keep what the letter has."
    )
    examples = (
        'dlq replay 17 --reason "card was renewed"',
        "dlq replay 17 --kwargs '{\"order_id\": 5}'",
        'dlq replay 17 --payload \'{"args": [5], "kwargs": {}}\'',
        "dlq replay --task ChargeOrder --since 2h --dry-run",
        "dlq replay --fingerprint 3fa4c1 --limit 5",
        'dlq replay --all --limit 1000 --yes --reason "gateway is back"',
    )
    past = "replayed"

    @classmethod
    def arguments(cls, parser: ArgumentParser) -> None:
        """A payload, too."""
        super().arguments(parser)
        parser.add_argument(
            "--priority", type=arguments.priority,
            help="of the new jobs (default: that with which the old ones began)",
        )  # fmt: skip
        payload = parser.add_mutually_exclusive_group()
        payload.add_argument("--payload", metavar="JSON", help='the whole payload: {"args": [...], "kwargs": {...}}')
        payload.add_argument("--kwargs", metavar="JSON", help='the same with named arguments only: {"order_id": 5}')

    def meant(self) -> list[DeadLetter]:
        """The letters; a payload is for one only."""
        letters = super().meant()
        if self._edited and (len(letters) != 1 or not self.given["letter"]):
            raise mistaken("A payload can be changed for one letter at a time. Name its number.")
        return letters

    @property
    def _edited(self) -> bool:
        return self.given["payload"] is not None or self.given["kwargs"] is not None

    def act(self, letter: DeadLetter) -> dict[str, Any]:
        """Replay one."""
        job = replay.replay(
            letter.pk, by=self.by, reason=self.given["reason"], payload=self.content(letter),
            priority=self.given["priority"],
        )  # fmt: skip
        return {"letter": letter.pk, "task": letter.task, "job": str(job.pk)}

    def rehearse(self, letters: list[DeadLetter], tally: Tally) -> None:
        """Check the changed payload as well."""
        super().rehearse(letters, tally)
        for letter in letters if self._edited and tally.done else ():
            check_fits(letter, self.content(letter) or Payload())

    def content(self, letter: DeadLetter) -> Payload | None:
        """The changed payload, with the letter's own secrets where it shows them hidden."""
        if not self._edited:
            return None
        whole = self.given["payload"]
        given = {"kwargs": parsed(self.given["kwargs"])} if whole is None else parsed(whole)
        return decode(json.dumps(unmask(_complete(given), shown.loaded(letter.payload))))

    def tell(self, tally: Tally) -> None:
        """Say also when the broker was not there to take them."""
        super().tell(tally)
        ids = [told["job"] for told in tally.done if "job" in told]
        last = Job.objects.using(lifecycle.alias()).filter(pk__in=ids[-1:])
        if last.filter(reason__startswith=outbox.UNREACHABLE).exists():
            self.note(f"The broker {broker_address()} cannot be reached; the conductor sends them when it is back.")


def _complete(given: Any) -> dict[str, Any]:
    """A payload with both of its parts. Raises ``PayloadError`` that shows how to write one."""
    parts: dict[Any, Any] = {"args": [], "kwargs": {}} | given if isinstance(given, dict) else {}
    if set(parts) != {"args", "kwargs"} or not isinstance(parts["args"], list) or not isinstance(parts["kwargs"], dict):
        raise PayloadError('Write a payload as {"args": [...], "kwargs": {...}}, or --kwargs as {"order_id": 5}.')
    return parts


def check_fits(letter: DeadLetter, content: Payload) -> None:
    """Raise what replaying the letter with this payload would raise for the payload."""
    says = drafts.declaration(letter.task, declared.task(letter.task))
    drafts.fill(drafts.copy(letter.job), says, content)


def parsed(text: str) -> Any:
    """The value of a JSON text. Raises ``PayloadError`` that says where it goes wrong."""
    try:
        return json.loads(text)
    except ValueError as error:
        raise PayloadError(f"This is not JSON: {error}. Text: {text}") from None


class Closing(OnLetters):
    """A verb that closes letters, with a reason."""

    def meant(self) -> list[DeadLetter]:
        """The letters, once it is known why."""
        if not self.given["reason"].strip() and not self.given["dry_run"]:
            raise mistaken("Say why: a letter is closed for good only with a reason (--reason).")
        return super().meant()


class Resolve(Closing):
    """Close: settled elsewhere."""

    name = "resolve"
    help = "close dead letters whose trouble was settled elsewhere"
    about = "Close dead letters whose trouble was settled elsewhere. The record stays, with your name and your reason."
    examples = (
        'dlq resolve 17 --reason "charged by hand, receipt 4711"',
        'dlq resolve --fingerprint 3fa4c1 --reason "fixed in release 1.4" --yes',
    )
    past = "resolved"

    def act(self, letter: DeadLetter) -> dict[str, Any]:
        """Resolve one."""
        replay.resolve(letter.pk, by=self.by, reason=self.given["reason"])
        return {"letter": letter.pk, "task": letter.task}


class Discard(Closing):
    """Close: not wanted any more."""

    name = "discard"
    help = "close dead letters whose work is not wanted any more"
    about = "Close dead letters whose work is not wanted any more. The record stays, with your name and your reason."
    examples = (
        'dlq discard 17 --reason "customer has left"',
        'dlq discard --task SendNewsletter --until 30d --reason "too late now" --yes',
    )
    past = "discarded"

    def act(self, letter: DeadLetter) -> dict[str, Any]:
        """Discard one."""
        replay.discard(letter.pk, by=self.by, reason=self.given["reason"])
        return {"letter": letter.pk, "task": letter.task}
