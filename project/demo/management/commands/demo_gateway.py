"""``manage.py demo_gateway``: run the sample shop's payment gateway."""

import signal
import threading
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand

from project.demo import conf
from project.demo.gateway import Gateway, Ledger


class Command(BaseCommand):
    help = "Run a payment gateway on loopback that charges, refuses, hangs and breaks by a seeded plan."
    requires_system_checks = ()

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--port", type=int, default=8071, help="Port to listen on (0: any that is free).")
        parser.add_argument("--seed", type=int, default=conf.SEED, help="Seed of the plan (default: DEMO_SEED).")
        parser.add_argument(
            "--hang", type=float, default=conf.GATEWAY_HANG, help="How long an answer hangs, in seconds."
        )
        parser.add_argument(
            "--journal", type=Path, default=conf.GATEWAY_JOURNAL, help="File that remembers what was charged."
        )

    def handle(self, *args: Any, **options: Any) -> None:
        gateway = Gateway(options["port"], Ledger(options["seed"], options["journal"]), options["hang"])
        serving = threading.Thread(target=gateway.serve_forever, daemon=True)
        serving.start()
        self.stdout.write(f"gateway: {gateway.url} seed={options['seed']}")
        self.stdout.flush()
        wait_for_a_signal()
        gateway.shutdown()
        gateway.server_close()


def wait_for_a_signal() -> None:
    """Return when somebody asks this process to end."""
    asked = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: asked.set())
    asked.wait()
