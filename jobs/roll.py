"""The roll of workers: one row for each process that lives, also where two of them were given the same name.

The first has the row of its name. One that finds it taken enters itself beside it, and takes it over when nobody keeps
it any more. So what each of them holds can be read, and neither is taken for dead.
"""

from __future__ import annotations

import logging
import os
import socket
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

from django.db.models import QuerySet

from jobs import lifecycle, reconcile
from jobs.models import Worker

logger = logging.getLogger("jobs.worker")

BESIDE = " #"  # between the name of a worker, and what tells it from another one of that name
SILENT = timedelta(seconds=7)  # longer than between three reports


def workers() -> QuerySet[Worker]:
    """The rows of all workers."""
    return Worker.objects.using(lifecycle.alias())


@dataclass(slots=True)
class Entry:
    """A process's own row, from its first report to its last."""

    name: str
    started_at: datetime | None = None
    row: str = ""
    held_at: datetime | None = field(default=None)
    told: bool = False

    def write(self, seen: dict[str, Any]) -> None:
        """Report this worker, in the row of its name unless another process keeps that one."""
        first, now = self.started_at is None, seen["seen_at"]
        self.started_at = self.started_at or now
        other = self._other()
        if other is None or not _may_live(other, now, first):
            self._take(other, seen["holds"])
        else:
            self.row = self.row if self.row not in ("", self.name) else f"{self.name}{BESIDE}{uuid4().hex[:6]}"
        self._tell(other, now)
        workers().update_or_create(name=self.row, defaults=seen | {"started_at": self.started_at})

    def strike(self) -> None:
        """This worker is gone, and holds nothing."""
        if self.started_at is not None:
            workers().filter(name=self.row, pid=os.getpid(), started_at=self.started_at).delete()

    def _other(self) -> Worker | None:
        """Another process that has reported itself in the row of our name."""
        row = workers().filter(name=self.name).first()
        return None if row is None or (row.pid, row.started_at) == (os.getpid(), self.started_at) else row

    def _take(self, predecessor: Worker | None, holds: list[str]) -> None:
        """Report in the row of our name from now on; what its last owner held, and did not begin, is sent again."""
        if predecessor is not None:
            reconcile.give_up_hold(predecessor, frozenset(holds), limit=len(predecessor.holds) + 1)
        if self.row not in ("", self.name):
            workers().filter(name=self.row).delete()
        self.row, self.held_at = self.name, None

    def _tell(self, other: Worker | None, now: datetime) -> None:
        """Say once that another live worker has our name; one that was killed lately does not report again."""
        if self.row == self.name:
            beside = workers().filter(name__startswith=self.name + BESIDE, seen_at__gt=now - SILENT)
            rival = None if self.told else beside.first()
        else:
            moved = other is not None and self.held_at is not None and other.seen_at > self.held_at
            self.held_at = other.seen_at if other is not None else None
            rival = other if moved else None
        if rival is not None and not self.told:
            self.told = True
            logger.warning(alike(self.name, os.getpid(), rival.pid))


def _may_live(row: Worker, now: datetime, first: bool) -> bool:
    """Whether the process that keeps a row may still do so. One that we replace at our start often does not."""
    if row.seen_at <= now - SILENT:
        return False
    if not first:
        return True
    here = row.name.rpartition("@")[2] == socket.gethostname()
    return not (row.pid == os.getpid() or (here and _is_gone(row.pid)))


def _is_gone(pid: int) -> bool:
    with suppress(OSError):
        os.kill(pid, 0)
        return False
    return not os.path.exists(f"/proc/{pid}")  # noqa: PTH110 (a process of somebody else's may not be signalled)


def alike(name: str, *pids: int) -> str:
    """What to do about workers that have the same name."""
    return (
        f"{len(pids)} live workers are called {name} (pid {', '.join(map(str, sorted(pids)))}): remote control and the "
        "history of jobs cannot tell them apart. Give each worker a name of its own, with -n."
    )


def named_alike(since: datetime) -> list[str]:
    """A sentence for each name that several workers have which reported themselves after ``since``."""
    pids: dict[str, list[int]] = {}
    for name, pid in workers().filter(seen_at__gt=since).values_list("name", "pid"):
        pids.setdefault(name.partition(BESIDE)[0], []).append(pid)
    return [alike(name, *several) for name, several in sorted(pids.items()) if len(several) > 1]
