"""Child processes that never outlive their parent: each leads its own group and is ended by its own pid."""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

PR_SET_PDEATHSIG = 1
# Loaded here because the child may not import anything between fork and exec.
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def start(
    command: Sequence[str],
    *,
    log: Path,
    environ: Mapping[str, str] | None = None,
    directory: Path | None = None,
    user: str | None = None,
    when_orphaned: signal.Signals = signal.SIGKILL,
) -> subprocess.Popen[bytes]:
    """Start ``command`` with its output appended to ``log``; Linux ends it if the starting thread dies."""
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=None if environ is None else dict(environ),
            cwd=directory,
            user=user,
            group=None if user is None else group_of(user),
            extra_groups=None if user is None else [],
            start_new_session=True,
            preexec_fn=dies_with_parent(os.getpid(), when_orphaned),
        )


def dies_with_parent(parent: int, how: signal.Signals) -> Callable[[], None] | None:
    """What a child does before it becomes the command, so that it is signalled when its parent dies."""
    if LIBC is None:
        return None

    def ask_the_kernel() -> None:
        LIBC.prctl(PR_SET_PDEATHSIG, int(how))
        if os.getppid() != parent:
            os._exit(1)

    return ask_the_kernel


def end(process: subprocess.Popen[bytes], how: signal.Signals = signal.SIGTERM, patience: float = 10) -> int:
    """Ask ``process`` to end, kill it after ``patience`` seconds, and end what is left of its group."""
    if process.poll() is None:
        process.send_signal(how)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
    end_group(process.pid)
    return process.wait()


def end_group(leader: int) -> None:
    """Kill every process that is still in the group of ``leader``."""
    # macOS answers EPERM for a group in which only a dead, unreaped process is left.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def wait_until(condition: Callable[[], object], timeout: float, every: float = 0.05) -> bool:
    """Whether ``condition`` became true within ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(every)
    return True


def tail(log: Path, lines: int = 15) -> str:
    """The last lines of a log."""
    with contextlib.suppress(FileNotFoundError):
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
    return ""


def listens(port: int) -> bool:
    """Whether somebody takes connections on a loopback port."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def group_of(user: str) -> int:
    """The main group of ``user``."""
    import pwd

    return pwd.getpwnam(user).pw_gid
