"""``manage.py demo_explain``: say why jobs of the demo wait, and that a single job did not wait for a flood."""

import time
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from project.demo.models import Seeding
from project.demo.waits import Look

LOOK_EVERY = 0.3


class Command(BaseCommand):
    help = (
        "Right after demo_seed: say why jobs of the flood, of the limited API and of the paused queue wait, and when "
        "the single job of another shop had its turn. Exits with 1 if one of these is not to be seen."
    )
    requires_system_checks = ()

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--timeout", type=float, default=60.0, help="How long to look, in seconds (default: 60).")

    def handle(self, *args: Any, **options: Any) -> None:
        seeding = Seeding.objects.order_by("-number").first()
        if seeding is None:
            raise CommandError("Nothing has been seeded. Run manage.py demo_seed first.")
        look, until = Look(seeding.round), time.monotonic() + options["timeout"]
        while not look.again() and time.monotonic() < until:
            time.sleep(LOOK_EVERY)
        self.stdout.write("\n".join(look.lines()))
        if missing := list(look.unseen()):
            raise CommandError("; ".join(missing))
