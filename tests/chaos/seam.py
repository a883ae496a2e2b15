"""Dying at a seam: a process counts its statements and commits and kills itself before or after the n-th.

``CHAOS_DIE=4:before`` says where, ``CHAOS_ARMED`` names a file: the count begins when it appears. The file says who is
meant: ``child`` (of a pool), ``main`` or ``any``, and optionally, after a space, the name of the thread. Who dies
removes the file, so that one process dies, once. With ``CHAOS_DIE=armed`` the last word of the file says where
(``child MainThread 4:before``), so that one worker can be used for all seams.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

_in_child = False
_reached = 0
_counting_for = 0


def know_children() -> None:
    """Learn whether this process is a child of a pool."""
    from celery.signals import worker_process_init

    worker_process_init.connect(_now_a_child, weak=False, dispatch_uid="chaos")


def watch(connection: Any) -> None:
    """Count what is done through a connection, if this process was told to die."""
    if not os.environ.get("CHAOS_DIE") or getattr(connection, "chaos", False):
        return
    connection.chaos = True
    connection.execute_wrappers.append(lambda execute, *given: _at_seam(lambda: execute(*given)))
    commit = connection._commit
    connection._commit = lambda: _at_seam(commit)


def _now_a_child(**_: Any) -> None:
    global _in_child
    _in_child = True


def _at_seam(act: Callable[[], Any]) -> Any:
    global _reached
    where = _armed()
    if not where:
        return act()
    _reached += 1
    number, _, when = where.partition(":")
    here = _reached == int(number)
    if here and when == "before":
        _die()
    answer = act()
    if here:
        _die()
    return answer


def _armed() -> str:
    """Where this process and thread is to die; empty while the fault is not armed for it."""
    global _reached, _counting_for
    try:
        with Path(os.environ["CHAOS_ARMED"]).open() as file:
            who, *rest = file.read().split()
            this_time = os.fstat(file.fileno()).st_mtime_ns
    except FileNotFoundError:
        return ""
    if this_time != _counting_for:
        _reached, _counting_for = 0, this_time
    where = os.environ["CHAOS_DIE"] if os.environ["CHAOS_DIE"] != "armed" else rest.pop()
    if rest and threading.current_thread().name != rest[0]:
        return ""
    return where if who == "any" or (who == "child") is _in_child else ""


def _die() -> None:
    try:
        Path(os.environ["CHAOS_ARMED"]).unlink()
    except FileNotFoundError:
        return  # another process came first
    os.kill(os.getpid(), signal.SIGKILL)
