"""The whole platform on one machine, for ``make demo``: private servers, every process, real work.

Everything listens on loopback, keeps its files in ``.demo/`` and ends with this process, however it ends.
"""

import argparse
import contextlib
import fcntl
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from types import FrameType

from rich.console import Console

from project.platform import ROOT, DemoFailed, Interrupted, Platform
from project.servers import ServerUnavailable

DIRECTORY = ROOT / ".demo"


def main(arguments: list[str] | None = None) -> int:
    """Run the demo; return the exit code."""
    options = parse(arguments)
    console = Console(highlight=False, soft_wrap=True)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    try:
        with alone(), Platform(DIRECTORY, options.database, console) as platform:
            return platform.settle() if options.once else platform.watch()
    except Interrupted:
        return 130 if options.once else 0
    except (DemoFailed, ServerUnavailable) as error:
        console.print(f"demo: {error}", markup=False)
        return 1


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser("python -m project.supervise", description="Run the whole platform.")
    parser.add_argument("--once", action="store_true", help="run the work, wait until it has settled, end")
    parser.add_argument("--database", choices=("sqlite", "postgres"), default="sqlite")
    return parser.parse_args(arguments)


def interrupt(number: int, frame: FrameType | None) -> None:
    """Turn a signal into the way out."""
    raise Interrupted


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Hold the demo's folder, emptied, for as long as the demo runs."""
    DIRECTORY.mkdir(exist_ok=True)
    handle = os.open(DIRECTORY, os.O_RDONLY)
    try:
        hold(handle)
        for entry in DIRECTORY.iterdir():
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        yield
    finally:
        os.close(handle)


def hold(folder: int) -> None:
    """Lock a folder against other demos of this checkout."""
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise DemoFailed("another demo of this checkout is running; end it with Ctrl-C first") from None


if __name__ == "__main__":
    sys.exit(main())
