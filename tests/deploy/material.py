"""The deployment files, and the tools that judge them."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
DOCKERFILE = DEPLOY / "Dockerfile"
COMPOSE = DEPLOY / "compose.yaml"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
GUIDE = ROOT / "docs" / "how-to" / "deploy.md"


def from_pip(name: str) -> str:
    """The path of a validator that the ``dev`` extra installs; without it, skip here and fail in CI."""
    beside = Path(sys.executable).parent / name
    if beside.exists():
        return str(beside)
    if found := shutil.which(name):
        return found
    missing = f"{name} is not installed: pip install -c constraints.txt -e '.[dev]'"
    if os.environ.get("CI"):
        pytest.fail(missing)
    pytest.skip(missing)


def from_debian(name: str) -> str:
    """The path of a validator that comes with the operating system; without it, skip, in CI too.

    Only an administrator can install it, and no step of this project asks for one. What matters most in the
    files is therefore also asserted in plain Python, which always runs.
    """
    if found := shutil.which(name):
        return found
    pytest.skip(f"{name} is not installed: it comes with the Debian package systemd")


def verdict(*command: str | Path, **options: Any) -> str:
    """What a validator has to say against a file: empty if it exits with 0."""
    run = subprocess.run(list(command), capture_output=True, text=True, check=False, **options)
    return "" if run.returncode == 0 else run.stdout + run.stderr or f"exit status {run.returncode}"


def compose() -> dict[str, Any]:
    """The compose file, anchors resolved."""
    return yaml.safe_load(COMPOSE.read_text())


def seconds(text: str) -> int:
    """A duration of compose or systemd as a number.

    >>> seconds("40s"), seconds("40"), seconds("2m")
    (40, 40, 120)
    """
    number, unit = re.fullmatch(r"(\d+)(s|m|)", text).groups()
    return int(number) * (60 if unit == "m" else 1)


def directives(unit: Path) -> dict[str, list[str]]:
    """Each directive of a unit with all its values, in order."""
    found: dict[str, list[str]] = {}
    for line in unit.read_text().splitlines():
        if line and line[0] not in "#[;":
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def example() -> dict[str, str]:
    """The variables of env.example with their values."""
    lines = (DEPLOY / "env.example").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
