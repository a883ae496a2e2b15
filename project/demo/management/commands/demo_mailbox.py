"""``manage.py demo_mailbox``: run the sample shop's mail server."""

import asyncio
import signal
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand

from project.demo import conf
from project.demo.mailbox import Sink, listen, port_of


class Command(BaseCommand):
    help = "Run a mail server on loopback that keeps messages as files and refuses some by a seeded plan."
    requires_system_checks = ()

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--port", type=int, default=8072, help="Port to listen on (0: any that is free).")
        parser.add_argument("--seed", type=int, default=conf.SEED, help="Seed of the plan (default: DEMO_SEED).")
        parser.add_argument("--folder", type=Path, default=conf.MAILBOX, help="Folder that messages are kept in.")

    def handle(self, *args: Any, **options: Any) -> None:
        asyncio.run(self.serve(Sink(options["seed"], options["folder"]), options["port"]))

    async def serve(self, sink: Sink, port: int) -> None:
        """Take mail until somebody asks this process to end."""
        asked = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, asked.set)
        server = await listen(sink, port)
        self.stdout.write(f"mailbox: 127.0.0.1:{port_of(server)} seed={sink.seed}")
        self.stdout.flush()
        await asked.wait()
        server.close()
