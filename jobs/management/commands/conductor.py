"""``manage.py conductor``: the loop that keeps jobs moving, apart from beat."""

from __future__ import annotations

import signal
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand

from jobs import declared, lifecycle, publisher, sender
from jobs.conductor import OFFICE, Conductor
from jobs.errors import BrokerUnavailable
from jobs.management.refusals import as_sentences, broker_address, one_line
from jobs.models import Leader


class Command(BaseCommand):
    """Run a conductor until SIGTERM or Ctrl-C."""

    help = (
        "Release due jobs, rescue lost ones and reconcile with the broker. Run any number; one leads, the others "
        "stand by. Beat holds one too, so that this is for those who want it apart."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Once, or until told to stop."""
        parser.add_argument("--once", action="store_true", help="do what is to be done now, then end")

    def handle(self, *args: Any, **options: Any) -> None:
        """Tick until told to stop; an unreachable database at the start is one line."""
        sender.in_caller()
        with as_sentences():
            leader = Leader.objects.using(lifecycle.alias()).filter(office=OFFICE).first()
            # How a job goes on is its task's policy; without the task it would be the default.
            declared.tasks()
            if options["once"]:
                self._once(leader)
                return
        self._run()

    def _run(self) -> None:
        conductor = Conductor()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: conductor.stopping.set())
        self.stdout.write(f"conductor {conductor.name} started")
        self.stdout.flush()
        try:
            publisher.in_use().depth(publisher.in_use().app.conf.task_default_queue)
        except BrokerUnavailable as error:
            said = f"The broker {broker_address()} cannot be reached: {one_line(error)} The conductor goes on trying."
            self.stderr.write(said)
        conductor.run()
        self.stdout.write("conductor stopped")

    def _once(self, leader: Leader | None) -> None:
        conductor, released = Conductor(), 0
        try:
            while done := conductor.tick():
                released += done
            if conductor.leading:
                self.stdout.write(f"conductor {conductor.name} released {released} and ends")
            else:
                self.stdout.write(f"nothing done: the conductor {leader.holder if leader else ''} leads")
        finally:
            conductor.resign()
