"""What processes cost, as Linux counts it: time on a processor, and memory that is theirs alone or shared in parts."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from tests.chaos.children import living

TICK = os.sysconf("SC_CLK_TCK")


def trees(roots: Iterable[int]) -> list[int]:
    """These processes and all below them."""
    found, pairs = list(roots), living()
    for pid in found:
        found += [child for child, parent in pairs if parent == pid and child not in found]
    return found


def processor_seconds(pids: Iterable[int]) -> float:
    """Seconds that these processes, and their children that have ended, were on a processor. 0 where nobody counts."""
    return sum(_times(pid) for pid in pids) / TICK


def memory_mb(pids: Iterable[int]) -> float:
    """Megabytes of these processes, what they share divided among those who share it. 0 where nobody counts."""
    return sum(_proportional_kb(pid) for pid in pids) / 1024


def _times(pid: int) -> int:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return sum(int(word) for word in fields[11:15])


def _proportional_kb(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
