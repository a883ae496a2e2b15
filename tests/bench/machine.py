"""On what it was measured: processors, memory, versions, and whether somebody else was busy there too."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

BUSY = 0.5  # load per processor, from which a run is warned about
LISTING = (
    "import json, platform; from importlib.metadata import distributions as d; "
    "print(json.dumps({'Python': platform.python_version()} | {x.metadata['Name'].lower(): x.version for x in d()}))"
)
NAMED = (
    "Python", "django", "celery", "kombu", "redis", "psycopg", "django-celery-results", "rq", "procrastinate",
    "django-q2", "django-tasks-db", "dramatiq", "huey",
)  # fmt: skip


def described() -> dict[str, Any]:
    """The machine."""
    return {
        "processors": os.cpu_count(),
        "processor": _first("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "load": round(load(), 2),
    }


def load() -> float:
    """How many processes wanted to run, over the last minute."""
    return os.getloadavg()[0]


def warning(now: float, processors: int) -> str:
    """What to say of a load, if anything.

    >>> warning(0.2, 2)
    ''
    >>> warning(3.5, 2)
    'The machine is busy (load 3.50 on 2 processors): believe ratios only, and measure again when it is idle.'
    """
    if now < BUSY * processors:
        return ""
    return (
        f"The machine is busy (load {now:.2f} on {processors} processors): "
        "believe ratios only, and measure again when it is idle."
    )


def versions(python: Path | str) -> dict[str, str]:
    """What an environment has installed, as far as a report names it. Raises ``CalledProcessError``."""
    answer = subprocess.run([python, "-c", LISTING], capture_output=True, text=True, timeout=60, check=True)
    found = {name.replace("_", "-"): version for name, version in json.loads(answer.stdout).items()}
    return {name: found[name] for name in NAMED if name in found}


def _first(file: str, name: str) -> str:
    try:
        lines = Path(file).read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")
