"""``manage.py demo_settle``: bring the demo to its end, and say whether anything was lost."""

import time
from argparse import ArgumentParser
from typing import Any

import httpx
from django.core.management.base import BaseCommand

from jobs.states import State
from project.demo import evidence, expected, settling
from project.demo.models import Seeding

LOOK_EVERY = 0.5
TELL_EVERY = 2.0


class Command(BaseCommand):
    help = (
        "Stop the schedules, mend what the demo left broken, replay its dead letters, wait until every job "
        "has settled, and compare with the plan and with the world outside. Exits 0 only if all agrees."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--timeout", type=float, default=280.0, help="How long to wait, in seconds (default: 280).")

    def handle(self, *args: Any, **options: Any) -> None:
        self.wait(options["timeout"])
        findings, complaints = self.compare()
        for line in [*settling.stragglers(), *findings.lost, *complaints]:
            self.stderr.write(line)
        for resumed in filter(None, (evidence.resumption(seeding.round) for seeding in Seeding.objects.all())):
            self.stdout.write(str(resumed))
        self.stdout.write(summary(len(findings.lost)))
        if settling.unfinished() or findings.lost or complaints:
            raise SystemExit(1)

    def wait(self, timeout: float) -> None:
        """Advance until all has settled or the time is up, telling how it goes."""
        settlement, told = settling.Settlement(), -TELL_EVERY
        while not settlement.advance() and settlement.waited < timeout:
            if settlement.waited - told >= TELL_EVERY:
                told = settlement.waited
                self.stderr.write(f"{told:4.0f} s  {how_it_goes()}")
            time.sleep(LOOK_EVERY)

    def compare(self) -> tuple[evidence.Findings, list[str]]:
        """What is lost, and what else is not as intended."""
        rounds = [seeding.round for seeding in Seeding.objects.all()]
        try:
            ledger = evidence.ledger_of_gateway()
        except httpx.HTTPError as error:
            return evidence.Findings(), [f"the gateway does not show its ledger: {error!r}"]
        findings, found = evidence.gather(rounds, ledger), settling.ends()
        complaints = [
            *expected.differences(expected.total(rounds), found),
            *expected.nightly_differences(found),
        ]
        others = [a_round for a_round in rounds if a_round.seed != ledger["seed"]]
        complaints += [f"{r.name} was seeded with {r.seed}, the gateway plays {ledger['seed']}" for r in others]
        return findings, complaints + findings.amiss


def how_it_goes() -> str:
    """The states of the jobs and the imports, in a line."""
    counts = settling.counts()
    states = ", ".join(f"{counts[state]} {state}" for state in State.values if counts.get(state))
    return f"{states or 'no jobs yet'}; {settling.import_progress()}"


def summary(lost: int) -> str:
    """The one line that counts."""
    counts = settling.counts()
    ended = " ".join(f"{state}={counts.get(state, 0)}" for state in ("completed", "failed", "cancelled"))
    return f"jobs: in={sum(counts.values())} {ended} unfinished={settling.unfinished()} lost={lost}"
