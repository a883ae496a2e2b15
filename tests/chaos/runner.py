"""``make chaos``: run the rows of the fault matrix, some at a time, and say what became of the jobs."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from project import processes
from project.servers import PostgresServer, ServerUnavailable
from tests.chaos import matrix, report, world
from tests.chaos.children import ROOT, descendants
from tests.chaos.matrix import Row, UnknownRow
from tests.chaos.one import Interrupted, Outcome
from tests.chaos.world import Options

DIRECTORY = ROOT / ".chaos"
# Beyond its own limit, a row may take as long to start and to end its servers.
GRACE = 90.0
PATIENCE = 30.0


class Mistake(Exception):
    """Something that was asked for cannot be; the message says what to write instead."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; return the exit code."""
    console = Console(highlight=False, soft_wrap=True)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        asked = parse(arguments)
        options, rows = options_of(asked), matrix.choose(asked.row, matrix.load())
        return Run(console, options, rows, asked.parallel).perform()
    except (Mistake, UnknownRow, ServerUnavailable) as error:
        console.print(f"chaos: {error}", markup=False)
        return 2
    except Interrupted:
        console.print("chaos: interrupted; everything that was started has ended")
        return 130


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of the command line, which ``make`` fills from its variables."""
    parser = argparse.ArgumentParser("python -m tests.chaos", description="Run the fault matrix.")
    parser.add_argument("--row", default="", help="numbers or names, as in 17,18; all by default")
    parser.add_argument("--seed", default="", help="a whole number that makes a run repeatable")
    parser.add_argument("--quick", default="", help="1: shorter leases and fewer jobs")
    parser.add_argument("--database", default="")
    parser.add_argument("--broker", default="")
    parser.add_argument("--against", default="", help="celery: the same rows with plain Celery, to compare")
    parser.add_argument("--parallel", default="", help="how many rows at a time")
    return parser.parse_args(arguments)


def options_of(asked: argparse.Namespace) -> Options:
    """The options, checked. Raises ``Mistake``."""
    quick = asked.quick not in ("", "0", "no", "false")
    asked.parallel = _whole("PARALLEL", asked.parallel or ("3" if quick else "2"))
    if not 1 <= asked.parallel <= 64:
        raise Mistake(f"PARALLEL={asked.parallel} cannot be. Set it to how many rows are to run at a time: 1, 2, 3 …")
    return Options(
        seed=_whole("SEED", asked.seed) if asked.seed else secrets.randbelow(10**6),
        quick=quick,
        database=_one_of("DATABASE", asked.database or "postgres", ("postgres", "sqlite")),
        broker=_one_of("BROKER", asked.broker or "redis", ("redis", "rabbitmq")),
        against=_one_of("AGAINST", asked.against or "mainstay", ("mainstay", "celery")),
    )


def _whole(name: str, text: str) -> int:
    if not text.isdigit():
        raise Mistake(f"{name}={text} is not a whole number. Write it as in {name}=42.")
    return int(text)


def _one_of(name: str, word: str, known: tuple[str, ...]) -> str:
    if word not in known:
        raise Mistake(f"{name}={word} is not known. Set it to {' or '.join(known)}.")
    return word


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise Interrupted


class Run:
    """One run of the matrix: some rows at a time, each a process of its own."""

    def __init__(self, console: Console, options: Options, rows: Sequence[Row], parallel: int) -> None:
        self.console = console
        self.options = options
        self.rows = list(rows)
        self.parallel = parallel
        self.outcomes: dict[int, Outcome] = {}
        self.running: dict[int, Playing] = {}
        self.template = ""
        DIRECTORY.mkdir(exist_ok=True)
        self.directory = Path(tempfile.mkdtemp(prefix="run-", dir=DIRECTORY))

    def perform(self) -> int:
        """Run all rows, tell what came of them; return the exit code."""
        started = time.monotonic()
        self.say(self.headline())
        with self.templates():
            self.play_all()
        outcomes = [self.outcomes[row.number] for row in self.rows]
        self.conclude(outcomes, time.monotonic() - started)
        return self.exit_code(outcomes)

    def headline(self) -> str:
        """With what the rows are run."""
        o = self.options
        against = "plain Celery" if o.against == "celery" else "Mainstay"
        words = [f"chaos: {len(self.rows)} rows of {against} on {o.database} and {o.broker}", f"SEED={o.seed}"]
        if o.against == "celery":
            words.append(
                "acks_late, reject_on_worker_lost, prefetch 1, Redis result backend, "
                f"visibility timeout {o.visibility:.0f} s (default 3600), restored every second (default 100 s)"
            )
        lease = world.QUICK_LEASE if o.quick else world.LEASE
        words.append(f"{'QUICK: ' if o.quick else ''}lease {lease:.0f} s")
        return ", ".join(words)

    # --- Playing

    def play_all(self) -> None:
        """Run the rows, ``parallel`` at a time."""
        waiting = [row for row in self.rows if not self.left_out(row)]
        try:
            with self.progress() as show:
                while waiting or self.running:
                    while waiting and len(self.running) < self.parallel:
                        row = waiting.pop(0)
                        self.running[row.number] = Playing(row, self.options, self.directory, self.template)
                    self.collect()
                    show()
                    time.sleep(0.2)
        finally:
            for playing in self.running.values():
                playing.ask_to_end()
            for playing in self.running.values():
                playing.end()

    def left_out(self, row: Row) -> bool:
        """Whether the row means nothing here; then its outcome says so."""
        why = row.not_applicable(self.options.database, self.options.broker, self.options.against)
        if why:
            self.outcomes[row.number] = Outcome(row.number, row.name, row.fault, row.must, "n/a", why)
        return bool(why)

    def collect(self) -> None:
        """Take the outcomes of the rows that have ended."""
        for number, playing in list(self.running.items()):
            if playing.over:
                del self.running[number]
                outcome = self.outcomes[number] = playing.outcome()
                self.say(report.line(outcome))
                for problem in report.problems(outcome):
                    self.say(problem)
                if outcome.status == "failed":
                    self.say(f"    logs: {os.path.relpath(playing.directory)}/")
                    self.say(f"    again: make chaos ROW={number} SEED={self.options.seed}{self.repeated()}")
                else:
                    shutil.rmtree(playing.directory, ignore_errors=True)

    def repeated(self) -> str:
        """What else the command needs to repeat a row of this run."""
        o, usual = self.options, Options(0)
        words = [f"{n.upper()}={getattr(o, n)}" for n in ("database", "broker", "against")
                 if getattr(o, n) != getattr(usual, n)]  # fmt: skip
        return "".join(f" {word}" for word in [*(["QUICK=1"] if o.quick else []), *words])

    @contextlib.contextmanager
    def progress(self) -> Iterator[Any]:
        """Show on a terminal which rows run, and what they are at."""
        if not self.console.is_terminal:
            yield lambda: None
            return
        with Live(console=self.console, refresh_per_second=4, transient=True) as live:
            yield lambda: live.update(self.glance())

    def glance(self) -> Table:
        """The rows that run now."""
        grid = Table.grid(padding=(0, 2))
        for playing in self.running.values():
            age = f"{time.monotonic() - playing.started:.0f} s"
            grid.add_row(str(playing.row.number), playing.row.fault, age, playing.last_words())
        grid.add_row("", f"{len(self.outcomes)} of {len(self.rows)} rows done", "", "")
        return grid

    @contextlib.contextmanager
    def templates(self) -> Iterator[None]:
        """The database from which those of the rows are copied, made ready once."""
        log = self.directory / "migrate.log"
        if self.options.database == "sqlite":
            self.template = f"sqlite:///{self.directory}/template.sqlite3"
            world.prepare(self.template, log)
            yield
            return
        with PostgresServer(self.directory / "postgres", fsync=False) as server:
            world.prepare(server.url, log)
            self.template = server.url
            yield

    # --- Telling

    def say(self, words: str) -> None:
        """Print a plain line."""
        self.console.print(words, markup=False)

    def conclude(self, outcomes: Sequence[Outcome], took: float) -> None:
        """The table, the JSON, and what was not done."""
        o = self.options
        kind = f"{o.database}-{o.broker}{'-quick' if o.quick else ''}"
        path, other = (DIRECTORY / f"{side}-{kind}.json" for side in self.sides())
        if len(self.rows) < len(matrix.ROWS):
            path = self.directory / "outcomes.json"
        report.write(path, outcomes, {**asdict(o), "took_s": round(took, 1)})
        beside = report.read(other)
        title = f"{o.against}, beside it {self.sides()[1]}" if beside else o.against
        report.show_table(self.console, outcomes, beside, title)
        for status, words in (("skipped", "not done"), ("n/a", "not applicable here")):
            for outcome in outcomes:
                if outcome.status == status:
                    self.say(f"{words}: {outcome.row} {outcome.fault}: {outcome.why}")
        if o.quick:
            shortened = [f"{x.row} ({', '.join(x.shortened)})" for x in outcomes if x.shortened]
            self.say(f"QUICK left out no row; leases are {world.QUICK_LEASE:.0f} s instead of {world.LEASE:.0f} s.")
            if shortened:
                self.say(f"QUICK did less in rows {'; '.join(shortened)}.")
        failed = [str(outcome.row) for outcome in outcomes if outcome.status == "failed"]
        verdict = f"{len(failed)} rows failed: {', '.join(failed)}" if failed else "no row failed"
        self.say(f"{verdict}; {took:.0f} s; SEED={o.seed}; JSON: {os.path.relpath(path)}")

    def sides(self) -> tuple[str, str]:
        """Which side this run is, and which one it is compared with."""
        return ("celery", "mainstay") if self.options.against == "celery" else ("mainstay", "celery")

    def exit_code(self, outcomes: Sequence[Outcome]) -> int:
        """1 when a row failed or was not done; of plain Celery only the table matters."""
        if self.options.against == "celery":
            return 0
        excused = self.options.broker == "rabbitmq" and not os.environ.get("CI")
        bad = [o for o in outcomes if o.status == "failed" or (o.status == "skipped" and not excused)]
        return 1 if bad else 0


class Playing:
    """A row that runs, as a process."""

    def __init__(self, row: Row, options: Options, directory: Path, template: str) -> None:
        self.row = row
        self.options = options
        self.directory = directory / f"row-{row.number}"
        self.directory.mkdir()
        (self.directory / "order.json").write_text(world.order(row, options, template))
        self.log = self.directory / "row.log"
        self.started = time.monotonic()
        self.process = processes.start(
            [sys.executable, "-m", "tests.chaos.one", str(self.directory)],
            log=self.log,
            environ=world.base_environ(),
            directory=ROOT,
        )

    @property
    def over(self) -> bool:
        """Whether the row has ended, or is ended here because it does not end by itself."""
        if self.process.poll() is not None:
            return True
        if time.monotonic() - self.started > self.row.limit + GRACE:
            self.end()
            return True
        return False

    def outcome(self) -> Outcome:
        """What the row says of itself; a row that says nothing has failed."""
        try:
            return Outcome(**json.loads((self.directory / "outcome.json").read_text()))
        except (OSError, ValueError, TypeError):
            row, last = self.row, processes.tail(self.log)
            why = f"the row did not end by itself; its last words:\n{last}"
            taken = round(time.monotonic() - self.started, 1)
            return Outcome(row.number, row.name, row.fault, row.must, "failed", problems=[why], took_s=taken)

    def last_words(self) -> str:
        """What the row is at."""
        return processes.tail(self.log, 1)[:80]

    def ask_to_end(self) -> None:
        """Let the row clear its stage."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def end(self) -> None:
        """Wait until the row has cleared its stage, or end it and all that it has started."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(PATIENCE)
        below = [] if self.process.poll() is not None else descendants(self.process.pid)
        processes.end(self.process, signal.SIGTERM, 5)
        for pid in below:  # also what is frozen, which hears of its parent's death only when it thaws
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
