"""One row, in a process of its own: run its script, let the checker judge, write the verdict."""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from project import processes
from tests.chaos import checker, matrix
from tests.chaos.checker import Verdict
from tests.chaos.stage import OutOfTime, Stage
from tests.chaos.world import Options, Skipped, World

SHOWN = 12


class Interrupted(BaseException):
    """Somebody asked the run to end."""


@dataclass(slots=True)
class Outcome:
    """What came of a row: its counts and figures, and what was wrong."""

    row: int
    name: str
    fault: str
    must: str
    status: str
    why: str = ""
    counts: dict[str, Any] = field(default_factory=dict)
    recovery_s: float | None = None
    measures: dict[str, Any] = field(default_factory=dict)
    shortened: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    took_s: float = 0.0
    logs: str = ""


def main(directory: Path) -> int:
    """Run the row that ``order.json`` in ``directory`` names; leave ``outcome.json`` there."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    order = json.loads((directory / "order.json").read_text())
    importlib.import_module(order["module"])
    row, options = matrix.ROWS[order["row"]], Options(**order["options"])
    with contextlib.suppress(Interrupted):
        outcome = perform(row, options, directory, order["template"])
        (directory / "outcome.json").write_text(json.dumps(asdict(outcome), indent=1))
        return 0
    return 130


def perform(row: matrix.Row, options: Options, directory: Path, template: str) -> Outcome:
    """Run one row and judge it."""
    outcome = Outcome(row.number, row.name, row.fault, row.must, "ok")
    started = time.monotonic()
    try:
        with World(row, options, directory, template) as world, staged(world) as stage:
            run(row, stage, outcome)
            conclude(stage, outcome)
    except Skipped as skipped:
        outcome.status, outcome.why = "skipped", str(skipped)
    except Exception as error:
        outcome.problems.append(f"the row itself broke: {type(error).__name__}: {error}")
        traceback.print_exc()
    if outcome.problems and outcome.status == "ok":
        outcome.status = "failed"
    outcome.took_s = round(time.monotonic() - started, 1)
    return outcome


@contextlib.contextmanager
def staged(world: World) -> Iterator[Stage]:
    """A stage on which the producer is ready, and which is cleared in the end."""
    stage = Stage(world, say)
    try:
        assert stage.producer
        yield stage
    finally:
        stage.close()


def run(row: matrix.Row, stage: Stage, outcome: Outcome) -> None:
    """Play the script; what it waited for in vain is a problem of the row."""
    try:
        row.script(stage)
        say("waiting until all is final")
        stage.settle()
    except OutOfTime as late:
        outcome.problems.append(str(late))


def conclude(stage: Stage, outcome: Outcome) -> None:
    """Judge what the row has left."""
    say("judging")
    verdict = judge(stage)
    outcome.counts = verdict.counts()
    outcome.problems += [*verdict.problems, *stage.problems]
    outcome.measures, outcome.shortened = stage.measures, stage.shortened
    outcome.recovery_s = None if math.isinf(stage.recovery_s) else round(stage.recovery_s, 2)
    if outcome.problems:
        outcome.logs = _last_words(stage)


def judge(stage: Stage) -> Verdict:
    """The checker's verdict; of plain Celery after its workers are gone, so that nothing moves meanwhile."""
    world = stage.world
    evidence = checker.gather(world.database.url, world.ledger, world.intake)
    if not stage.celery:
        return checker.judge(evidence, may_refuse=world.row.may_refuse)
    for worker in stage.workers:
        worker.end()
    return checker.judge_celery(evidence, stage.celery_failures(), stage.celery_waiting())


def say(words: str) -> None:
    """Tell how far the row is; the last line is shown while it runs."""
    sys.stdout.write(words + "\n")
    sys.stdout.flush()


def _last_words(stage: Stage) -> str:
    return "\n".join(f"── {p.name}\n{processes.tail(p.log, SHOWN)}" for p in stage.processes)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise Interrupted


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
