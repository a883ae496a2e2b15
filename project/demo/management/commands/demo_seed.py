"""``manage.py demo_seed``: ask for a round of work."""

from argparse import ArgumentParser
from dataclasses import fields
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from project.demo import conf
from project.demo.models import Promise
from project.demo.round import Round
from project.demo.seeding import next_round, seed

SIZES = {field.name: field.default for field in fields(Round) if field.name not in ("seed", "number")}


class Command(BaseCommand):
    help = "Write order files and pictures, and enqueue a round of the sample shop's work."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--seed", type=int, default=conf.SEED, help="Seed of the plan (default: DEMO_SEED).")
        for name, default in SIZES.items():
            parser.add_argument(f"--{name}", type=int, default=default, help=f"How many (default: {default}).")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            a_round = next_round({"seed": options["seed"]} | {name: options[name] for name in SIZES})
        except ValueError as error:
            raise CommandError(str(error)) from error
        before = Promise.objects.count()
        seed(a_round)
        self.stdout.write(
            f"seeded: {a_round.name}, {a_round.orders:,} orders on file, {a_round.charges} to charge, "
            f"{Promise.objects.count() - before} jobs enqueued so far"
        )
