"""How hard the machine is tried: a seed that is printed, and no more than a bounded number of examples."""

from __future__ import annotations

import os
import sys
from collections import Counter

from hypothesis import HealthCheck, Phase, seed
from hypothesis import settings as hypothesis
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

SEED = int(os.environ.get("MACHINE_SEED", "20261122"))
# MACHINE_EFFORT=20 tries twenty times as many examples.
EFFORT = float(os.environ.get("MACHINE_EFFORT", "1"))
# MACHINE_SHRINK=0 shows the first counterexample as it was found: a shorter one can take minutes.
SHRINK = os.environ.get("MACHINE_SHRINK", "1") != "0"

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
    """Run a machine, and say with which seed."""
    say(f"{examples} examples of {steps} steps")
    tally.clear()
    run_state_machine_as_test(seed(SEED)(machine), settings=profile(examples, steps))
    say(*(f"{count:5} times {kind}" for kind, count in tally.most_common()))


def say(*lines: str) -> None:
    """Tell how to repeat a run, and what it came to; pytest shows it when the test fails, or with -s."""
    sys.stdout.write("\n".join(["", f"MACHINE_SEED={SEED} MACHINE_EFFORT={EFFORT:g}", *lines, ""]))
