"""``manage.py conductor``: the loop that keeps jobs moving, apart from beat."""

from __future__ import annotations

import signal
from typing import Any

from django.core.management.base import BaseCommand

from jobs.conductor import Conductor


class Command(BaseCommand):
    """Run a conductor until SIGTERM or Ctrl-C."""

    help = "Release due jobs, rescue lost ones, reconcile with the broker. Run any number; one leads."

    def handle(self, *args: Any, **options: Any) -> None:
        """Tick until told to stop."""
        conductor = Conductor()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: conductor.stopping.set())
        self.stdout.write(f"conductor {conductor.name} started")
        conductor.run()
        self.stdout.write("conductor stopped")
