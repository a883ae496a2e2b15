"""A command that is a list of verbs: ``manage.py jobs cancel …``. Each verb is a class with its own help."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from django.core.management.base import BaseCommand, CommandError, OutputWrapper

from jobs.errors import JobsError
from jobs.management import arguments
from jobs.management.refusals import REFUSED, as_sentences, mistaken, one_line
from jobs.management.rendering import Paper

EXIT_CODES = "exit codes: 0 done, 1 refused or could not be done, 2 asked for wrongly"


class Verb:
    """One thing that a command can do."""

    name: ClassVar[str]
    help: ClassVar[str]
    about: ClassVar[str] = ""
    examples: ClassVar[tuple[str, ...]] = ()

    def __init__(self, given: Mapping[str, Any], paper: Paper, err: OutputWrapper) -> None:
        self.given, self.paper, self.err = given, paper, err

    @classmethod
    def arguments(cls, parser: ArgumentParser) -> None:
        """Declare what the verb takes."""

    def run(self) -> None:
        """Do it."""
        raise NotImplementedError

    @property
    def by(self) -> str:
        """Who does it."""
        return str(self.given.get("by") or arguments.operator())

    def chosen(self, *names: str) -> dict[str, Any]:
        """The options of these names that were given."""
        return {name: self.given[name] for name in names if self.given.get(name) is not None}

    def note(self, text: str) -> None:
        """Say something beside the answer."""
        self.err.write(text, str)

    def confirm(self, deed: str) -> None:
        """Ask before something that cannot be undone. Raises ``CommandError`` unless it is wanted."""
        if self.given["yes"]:
            return
        if not (sys.stdin.isatty() and self.err.isatty()):
            raise mistaken(f"This would {deed}. Add --yes to do it without being asked.")
        self.err.write(f"{deed[0].upper()}{deed[1:]}? [y/N] ", str, ending="")
        self.err.flush()
        if input().strip().lower() not in ("y", "yes"):
            raise CommandError("Nothing was done.", returncode=REFUSED)


class Tally:
    """What became of each of several things that were to be acted upon."""

    def __init__(self) -> None:
        self.done: list[Any] = []
        self.refused: dict[str, str] = {}

    def refuse(self, what: object, error: JobsError) -> None:
        """Keep why one could not be done."""
        self.refused[str(what)] = one_line(error)

    def raise_if_refused(self, what: str) -> None:
        """End with exit code 1 when something was refused, saying what and why."""
        if not self.refused:
            return
        reasons = list(self.refused.values())
        total = len(self.done) + len(reasons)
        if total == 1:
            raise CommandError(reasons[0])
        raise CommandError("\n".join([*reasons, f"{len(reasons):,} of {total:,} {what} were refused."]))


class VerbCommand(BaseCommand):
    """A Django command whose first word is one of its verbs."""

    verbs: ClassVar[tuple[type[Verb], ...]]
    examples: ClassVar[tuple[str, ...]] = ()

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> Any:
        """A parser whose help ends with examples."""
        kwargs.setdefault("epilog", _epilog(self.examples))
        kwargs.setdefault("formatter_class", RawDescriptionHelpFormatter)
        return super().create_parser(prog_name, subcommand, **kwargs)

    def add_arguments(self, parser: ArgumentParser) -> None:
        """A parser for each verb."""
        several = parser.add_subparsers(dest="verb", metavar="verb", required=True, title="verbs")
        for verb in self.verbs:
            child = several.add_parser(
                verb.name, help=verb.help, description=verb.about or f"{verb.help[0].upper()}{verb.help[1:]}.",
                epilog=_epilog(verb.examples), formatter_class=RawDescriptionHelpFormatter,
            )  # fmt: skip
            verb.arguments(child)
            arguments.add_json(child)
            arguments.add_djangos(child)

    def handle(self, *args: Any, **options: Any) -> None:
        """Do what the verb says."""
        verb = next(verb for verb in self.verbs if verb.name == options["verb"])
        paper = Paper(self.stdout, colour=not options.get("no_color"))
        try:
            with as_sentences():
                verb(options, paper, self.stderr).run()
            self.stdout.flush()
        except BrokenPipeError:
            # The reader has seen enough ("| head"); Python must not complain about it when it exits.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(0) from None


def _epilog(examples: Iterable[str]) -> str:
    shown = "".join(f"  manage.py {example}\n" for example in examples)
    return (f"examples:\n{shown}\n" if shown else "") + EXIT_CODES


def numbered(count: int, one: str, many: str = "") -> str:
    """A number with its noun.

    >>> numbered(1, "job"), numbered(2000, "job")
    ('1 job', '2,000 jobs')
    """
    return f"{count:,} {one if count == 1 else many or one + 's'}"
