"""How hard the machine is tried: a seed that is printed, and no more than a bounded number of examples."""

from __future__ import annotations

import os
import sys
from collections import Counter

from hypothesis import HealthCheck, Phase, seed
from hypothesis import settings as hypothesis
from hypothesis.errors import FlakyStrategyDefinition
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

SEED = int(os.environ.get("MACHINE_SEED", "20261122"))
# MACHINE_EFFORT=20 tries twenty times as many examples.
EFFORT = float(os.environ.get("MACHINE_EFFORT", "1"))
# MACHINE_SHRINK=0 shows the first counterexample as it was found: a shorter one can take minutes.
SHRINK = os.environ.get("MACHINE_SHRINK", "1") != "0"
# How many seeds are tried, the next when one cannot be repeated.
TURNS = 3

# In how many examples there was what; a machine that never meets a case proves nothing of it.
tally: Counter[str] = Counter()


def profile(examples: int, steps: int, *, shrink: bool = SHRINK) -> hypothesis:
    """Bounded by examples, not by time: the same seed tries the same steps on every machine."""
    phases = (Phase.explicit, Phase.generate, Phase.shrink) if shrink else (Phase.explicit, Phase.generate)
    return hypothesis(
        max_examples=max(1, int(examples * EFFORT)), stateful_step_count=steps, deadline=None, database=None,
        print_blob=True, phases=phases, suppress_health_check=list(HealthCheck), report_multiple_bugs=False,
    )  # fmt: skip


def explore(machine: type[RuleBasedStateMachine], *, examples: int, steps: int) -> None:
    """Run a machine, and say with which seed.

    The steps use a real database and a real clock. Where a slow machine let a second pass between two steps of which
    one is repeated, what can be drawn differs, and hypothesis gives up; that says nothing of a promise. A broken one
    is another error.
    """
    for turn in range(TURNS):
        say(SEED + turn, f"{examples} examples of {steps} steps")
        tally.clear()
        try:
            run_state_machine_as_test(seed(SEED + turn)(machine), settings=profile(examples, steps))
        except FlakyStrategyDefinition as error:
            say(SEED + turn, f"cannot be repeated: {error}")
            continue
        say(SEED + turn, *(f"{count:5} times {kind}" for kind, count in tally.most_common()))
        return
    raise AssertionError(f"None of {TURNS} seeds could be repeated: something in a step is left to chance.")


def say(number: int, *lines: str) -> None:
    """Tell how to repeat a run, and what it came to; pytest shows it when the test fails, or with -s."""
    sys.stdout.write("\n".join(["", f"MACHINE_SEED={number} MACHINE_EFFORT={EFFORT:g}", *lines, ""]))
