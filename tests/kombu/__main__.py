"""``python -m tests.kombu``, which ``make kombu`` calls: kombu's tests of its Redis transport, run against ours.

They come with the source of the installed version, which the package index is asked for. Whatever fails and is not
expected to, and whatever is expected to fail and does not, is an error.
"""

import os
import re
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

from project.servers import RedisServer
from tests.kombu.expected import EXPECTED

ROOT = Path(__file__).resolve().parent.parent.parent
UNIT = ("t/unit/transport/test_redis.py",)  # in a process of their own: they replace the poller
INTEGRATION = ("t/integration/test_redis.py", "t/integration/test_redis_brpop_qos.py")
PYTEST = ("-m", "pytest", "-c", os.devnull, "-o", "python_classes=test_*", "-W", "ignore", "--timeout=120", "-q", "-rf")
WITHOUT = ("-p", "no:cacheprovider", "-p", "no:randomly", "-p", "no:django")


def main(arguments: list[str]) -> int:
    """Run them; 0 if only what is expected failed. ``--stock`` leaves kombu's transport in its place."""
    with tempfile.TemporaryDirectory(prefix="mainstay-kombu-") as directory:
        here = Path(directory)
        unpack(download(here), here)
        with RedisServer(here / "redis") as server:
            found = [failures(run(here, server, tests, stock="--stock" in arguments)) for tests in (UNIT, INTEGRATION)]
    failed = None if None in found else set().union(*(one or set() for one in found))
    return verdict(failed, {} if "--stock" in arguments else EXPECTED)


def download(here: Path) -> Path:
    """The source of the kombu that is installed."""
    wanted = f"kombu=={version('kombu')}"
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    build = ["--no-deps", "--no-binary", ":all:", "--no-build-isolation", "--dest", str(here), wanted]
    subprocess.run([*pip, *build], check=True)
    return next(here.glob("kombu-*.tar.gz"))


def unpack(source: Path, here: Path) -> None:
    """The tests alone, so that the kombu which they import is the one that is installed."""
    with tarfile.open(source) as archive:
        prefix = source.name.removesuffix(".tar.gz")
        tests = [member for member in archive if member.name.startswith(f"{prefix}/t/")]
        for member in tests:
            member.name = member.name.removeprefix(f"{prefix}/")
        archive.extractall(here, tests, filter="data")


def run(here: Path, server: RedisServer, tests: tuple[str, ...], *, stock: bool) -> str:
    """What pytest prints, which is shown too."""
    plugin = () if stock else ("-p", "tests.kombu.ours")
    places = {"REDIS_HOST": "127.0.0.1", "REDIS_6379_TCP": str(server.port), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *PYTEST, *WITHOUT, *plugin, "--rootdir", str(here), *tests]
    lines = []
    with subprocess.Popen(command, cwd=here, env={**os.environ, **places}, stdout=subprocess.PIPE, text=True) as pytest:
        for line in pytest.stdout or ():
            lines.append(line)
            print(line, end="", flush=True)
    return "".join(lines)


def failures(printed: str) -> set[str] | None:
    """The tests that failed; None where they did not run to their end."""
    if not re.search(r"^\d+ (passed|failed).* in [\d.]+s", printed, re.MULTILINE):
        return None
    return set(re.findall(r"^(?:FAILED|ERROR) (\S+)", printed, re.MULTILINE))


def verdict(failed: set[str] | None, expected: dict[str, str]) -> int:
    """Say what is not as it should be."""
    if failed is None:
        print("The tests did not run to their end.", file=sys.stderr)
        return 2
    for test in sorted(failed & expected.keys()):
        print(f"as expected, {test} fails: {expected[test]}")
    for test in sorted(failed - expected.keys()):
        print(f"fails: {test}", file=sys.stderr)
    for test in sorted(expected.keys() - failed):
        print(f"passes, although it is expected to fail: {test}", file=sys.stderr)
    return int(failed != expected.keys())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
