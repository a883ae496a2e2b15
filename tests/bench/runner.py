"""``make bench``: measure ours and the peers in turns on private servers, and say what was found."""

from __future__ import annotations

import contextlib
import os
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
from rich.markdown import Markdown
from rich.text import Text

from project import processes
from project.servers import ServerUnavailable
from tests.bench import floor, machine, musts, plan, report, systems
from tests.bench.actors import Producers
from tests.bench.measures import MEASURES
from tests.bench.measures.base import Bench, Case, Sample
from tests.bench.options import Mistake, Options, parse
from tests.bench.plan import Part
from tests.bench.world import SERVERS, Failed, World
from tests.chaos.children import ROOT

DIRECTORY = ROOT / ".bench"
PEERS_PYTHON = ROOT / ".venv-bench" / "bin" / "python"


class Interrupted(KeyboardInterrupt):
    """Somebody asked the run to end; nothing that goes wrong on the way is caught in its place."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the command line asks for; return the exit code."""
    console = Console(highlight=False, soft_wrap=True)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        return Run(console, parse(arguments)).perform()
    except (Mistake, ServerUnavailable) as error:
        console.print(f"bench: {error}", markup=False)
        return 2
    except Interrupted:
        console.print("bench: interrupted; everything that was started has ended, and its data is gone")
        return 130


def _interrupt(number: int, frame: FrameType | None) -> None:
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)  # what was started is being ended
    raise Interrupted


class Run:
    """One run: measure by measure, round by round, everybody in turn."""

    def __init__(self, console: Console, options: Options, peers: Path | None = None) -> None:
        self.console = console
        self.options = options
        self.peers = Path(os.environ.get("BENCH_PYTHON") or peers or PEERS_PYTHON)
        self.taken: list[Sample] = []
        self.failed: dict[str, str] = {}
        self.warnings: list[str] = []
        self.floor: dict[str, float] = {}
        self.late: list[str] = []
        self.history: list[str] = []
        self.took: dict[str, list[float]] = {}
        self.parts = plan.parts(options)
        self.done = 0
        self.began = time.monotonic()
        self.now = ""

    def perform(self) -> int:
        """Measure, tell, keep; return the exit code."""
        where = machine.described()
        self.say(self.headline(where))
        self.say(f"bench: {self.length()}")
        self.warn(machine.warning(where["load"], where["processors"]))
        versions = self.versions()
        chosen = [system for system in self.options.systems if system.name not in self.failed]
        DIRECTORY.mkdir(exist_ok=True)
        directory = Path(tempfile.mkdtemp(prefix="run-", dir=DIRECTORY))
        try:
            self.say("bench: starting private servers, making the tables of each system")
            with World(directory, chosen, sys.executable, str(self.peers)) as world, Producers(world) as producers:
                self.failed |= world.broken
                self.floor = floor.measured(world)
                self.say(f"bench: {floor.described(self.floor)}")
                self.measure(Bench(self.options, world, producers))
                self.floor |= {f"{name}_end": value for name, value in floor.measured(world).items()}
            self.measure_history(directory)
        finally:
            shutil.rmtree(directory, ignore_errors=True)
        return self.conclude(where, versions, time.monotonic() - self.began)

    def headline(self, where: dict[str, Any]) -> str:
        """What is measured, and on what."""
        names = ", ".join(system.name for system in self.options.systems)
        return (
            f"bench: {', '.join(self.options.measures)}{' (QUICK)' if self.options.quick else ''} of {names}; "
            f"{where['processors']} processors, {where['memory_gb']} GB, load {where['load']}"
        )

    def length(self) -> str:
        """How long it is to take."""
        history = f", then the cost of {self.options.history:,} jobs of history" if self.has_history else ""
        about = f"{self.samples} samples{history}: about {plan.clock(plan.length(self.options))} minutes"
        if 2 * plan.length(self.options) < self.options.budget:
            return about
        most = self.options.budget + plan.HISTORY * self.has_history
        return f"{about}; on a slow machine rounds are left out, so that it ends after about {plan.clock(most)} too"

    @property
    def samples(self) -> int:
        """How many are to be taken."""
        return sum(part.samples for part in self.parts)

    @property
    def has_history(self) -> bool:
        """Whether the cost of a history is measured too."""
        return plan.with_history(self.options)

    def versions(self) -> dict[str, str]:
        """What is compared; without the environment of the peers, ours is measured alone."""
        found = machine.versions(sys.executable)
        if all(system.ours for system in self.options.systems):
            return found
        try:
            theirs = machine.versions(self.peers)
        except (OSError, subprocess.SubprocessError) as error:
            why = f"the peers' environment cannot be used ({error}); `make bench` makes it"
            self.failed |= {system.name: why for system in self.options.systems if not system.ours}
            return found
        for system in self.options.systems:
            if system.package and system.package not in theirs:
                self.failed[system.name] = f"{system.package} is not installed in {self.peers.parent.parent}"
        return found | theirs

    # --- Measuring

    def measure(self, bench: Bench) -> None:
        """Take every measure."""
        ends = plan.ends(self.parts, time.monotonic(), self.began + self.options.budget)
        with self.progress():
            for part, end in zip(self.parts, ends, strict=True):
                self.rounds(bench, part, end)

    def measure_history(self, directory: Path) -> None:
        """Hand over to the command that measures how cost grows with history, and keep what it says."""
        if not self.has_history:
            return
        self.say(f"{self.at()} how cost grows with history, for about {plan.clock(plan.HISTORY)} minutes")
        log = directory / "scale.log"
        command = [sys.executable, "-m", "tests.scale", "--rows", str(self.options.history)]
        process = processes.start(command, log=log, directory=ROOT)
        try:
            code = process.wait()
        finally:
            # By this signal it ends its servers, and removes their data.
            processes.end(process, signal.SIGINT, patience=30)
        said = [line.rpartition("\r")[2].rstrip() for line in log.read_text(errors="replace").split("\n")]
        self.history = [line for line in said if line]
        if not any(line.startswith("|") for line in self.history):
            self.failed["scale"] = self.history[-1] if self.history else f"it ended with {code}"

    def rounds(self, bench: Bench, part: Part, end: float) -> None:
        """Round by round; none is begun that would not be over at the end, but for the first."""
        for number in range(1, part.rounds + 1):
            began = time.monotonic()
            self.round(bench, part, number)
            if number < part.rounds and 2 * time.monotonic() - began > end:
                self.late.append(f"rounds {number + 1} to {part.rounds} of {part.name}")
                self.done += (part.rounds - number) * len(part.cases)
                return

    def round(self, bench: Bench, part: Part, number: int) -> None:
        """Everybody in turn; who was first is last next time."""
        turn = number % len(part.cases)
        for case in [*part.cases[turn:], *part.cases[:turn]]:
            self.done += 1
            if self.given_up(case):
                continue
            if time.monotonic() - self.began > self.options.budget:
                self.late.append(f"round {number} of {case.title}")
                continue
            self.now = f"{case.title}, round {number} of {part.rounds}"
            self.take(bench, case, number)

    def take(self, bench: Bench, case: Case, number: int) -> None:
        """One sample, or the reason why there is none: then there are no more tries."""
        began = time.monotonic()
        try:
            sample = MEASURES[case.measure].take(bench, case, number)
        except Exception as error:
            known = isinstance(error, Failed)
            self.failed[case.title] = str(error) if known else f"{type(error).__name__}: {error}"
            self.say(f"{self.at()} {case.title} is left out: {self.failed[case.title]}")
            return
        self.took.setdefault(case.measure, []).append(time.monotonic() - began)
        self.taken.append(sample)
        self.say(f"{self.at()} {report.line(sample)}")

    def at(self) -> str:
        """How far the run is."""
        return f"[{plan.clock(time.monotonic() - self.began)}, {self.done} of {self.samples}]"

    def given_up(self, case: Case) -> bool:
        """Whether a system or a case has failed before."""
        return case.system.name in self.failed or case.title in self.failed

    @contextlib.contextmanager
    def progress(self) -> Iterator[None]:
        """On a terminal, show at the bottom what is being measured."""
        if not self.console.is_terminal:
            yield
            return
        about = plan.clock(plan.length(self.options))

        def glance() -> Text:
            return Text(f"{self.at()} of about {about}: {self.now}", style="bold")

        with Live(get_renderable=glance, console=self.console, refresh_per_second=4, transient=True):
            yield

    # --- Telling

    def say(self, words: str) -> None:
        """Print a plain line."""
        self.console.print(words, markup=False)

    def warn(self, words: str) -> None:
        """Print a warning, and keep it for the report."""
        if words and words not in self.warnings:
            self.warnings.append(words)
            self.say(f"bench: {words}")

    def conclude(self, where: dict[str, Any], versions: dict[str, str], took: float) -> int:
        """The tables, the files, and whether all is as it must be."""
        o = self.options
        run = {
            "quick": o.quick, "whole": o.whole, "took_s": round(took, 1), "machine": where, "versions": versions,
            "servers": SERVERS,
            "measures": o.measures, "settings": {system.name: system.described for system in o.systems},
            "warnings": self.warnings, "failed": self.failed, "floor": self.floor, "history": self.history,
            "late": self.late,
            "samples": [asdict(sample) for sample in self.taken], "seconds": self.took,
        }  # fmt: skip
        path = DIRECTORY / ("bench-quick.json" if o.quick else "bench.json" if o.whole else "bench-part.json")
        for each in filter(None, (path, o.json)):
            report.write(each, run)
        self.show(path.with_suffix(".md").read_text())
        if o.quick:
            self.say(f"QUICK left out {left_out(o)}")
        verdicts = [v for v in musts.judged(report.Findings(self.taken).by_case) if v.ratio is not None]
        unmet = [verdict.must.what for verdict in verdicts if verdict.status == "NOT MET"]
        self.say(f"musts not met: {'; '.join(unmet) or 'none'}, of {len(verdicts)} that were measured")
        self.say(f"{took:.0f} s; JSON: {os.path.relpath(path)}; tables: {os.path.relpath(path.with_suffix('.md'))}")
        return exit_code(o, unmet, self.failed)

    def show(self, text: str) -> None:
        """The tables: drawn on a terminal, as Markdown in a log."""
        if self.console.is_terminal:
            self.console.print(Markdown(text), soft_wrap=False)
        else:
            self.say(text)


def left_out(options: Options) -> str:
    """What a quick run does not measure, in words."""
    words = []
    for name in (name for name in options.measures if name in MEASURES):
        module = MEASURES[name]
        whole = Options(systems=options.systems)
        missing = len(module.cases(whole, options.systems)) - len(module.cases(options, options.systems))
        rounds = getattr(module, "LESS", f"{module.ROUNDS['quick']} rounds instead of {module.ROUNDS['full']}")
        words.append(f"{name}: {missing} of its cases, and {rounds}" if missing else f"{name}: no case, but {rounds}")
    words += ["scale"] if "scale" in options.measures else []
    return "; ".join(words)


def exit_code(options: Options, unmet: Sequence[str], failed: dict[str, str]) -> int:
    """1 when ours could not be measured; where the musts are checked, also for what is not met and for peers."""
    ours = [name for name in failed if any(name.endswith(system.name) for system in systems.ALL if system.ours)]
    return 1 if ours or (options.check_musts and (unmet or failed)) else 0
