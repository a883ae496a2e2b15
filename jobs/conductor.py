"""The loop that keeps jobs moving: releases what is due, rescues, reconciles. Any number of copies; one leads."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from uuid import uuid4

from django.db import Error, connections

from jobs import control, epoch, gathering, lanes, lifecycle, outage, release, rescue, tally
from jobs.conf import current as settings
from jobs.models import Leader
from jobs.reconcile import Reconciler
from jobs.retention import Retention

logger = logging.getLogger("jobs.conductor")

OFFICE = "conductor"
SILENCE = 15.0  # seconds that the database may take for a chore at first; twice as long each time that it does not
LONGEST_SILENCE = 300.0
BUSY_PAUSE = 2.0  # seconds that a chore waits for whoever was in its way
# After the database was away every lease has ended, and a crash may have made it forget claims: runners that wait to
# record what they did come first.
MERCY = 2 * outage.LONGEST_PAUSE
MERCIFUL = ("rescue", "expire", "reconcile")


def own_name() -> str:
    """A name for this copy that no other one has."""
    return f"{socket.gethostname()}:{os.getpid()}:{uuid4().hex[:8]}"


@dataclass(slots=True)
class Conductor:
    """One copy of the loop. ``chores`` are verbs, each with how often it runs, in seconds."""

    name: str = field(default_factory=own_name)
    stopping: threading.Event = field(default_factory=threading.Event)
    leading: bool = False
    _next: dict[str, float] = field(default_factory=dict)
    _releases: release.Releases = field(default_factory=release.Releases)
    _reconciler: Reconciler = field(default_factory=Reconciler)
    _retention: Retention = field(default_factory=Retention)
    _renewed: float = 0.0
    _database: outage.Outage = field(default_factory=lambda: outage.Outage(logger, "The conductor waits for it."))
    _pauses: Iterator[float] = field(default_factory=outage.pauses)
    _silence: float = SILENCE

    def chores(self) -> list[tuple[str, float, Callable[[], int]]]:
        """What a leader does, in this order."""
        return [
            ("let bursts go", settings().TICK / 2, gathering.let_go),
            ("release", 0.0, self._releases.release),
            ("mend the lanes", 60.0, lanes.mend),
            ("rescue", 1.0, rescue.rescue),
            ("force_cancel", 1.0, rescue.force_cancel),
            ("expire", 1.0, control.expire),
            ("look at the marker", 1.0, epoch.tick),
            ("reconcile", 1.0, self._reconciler.tick),
            ("tally", 5.0, tally.tick),
            ("keep to the retention", 1.0, self._retention.tick),
            ("bury_workers", 60.0, control.forget_workers),
        ]

    def run(self) -> None:
        """Tick until told to stop; whatever goes wrong, tick again."""
        outage.hurry_all(lifecycle.database())
        pause = settings().TICK
        while not self.stopping.wait(pause):
            try:
                pause = 0.0 if self.tick() else self._rest()
                self._reached()
            except Error as error:
                pause = self._missed(error)
            except Exception:
                logger.exception("A tick of the conductor failed; it goes on.")
                pause = 1.0
        self.resign()

    def _rest(self) -> float:
        """How long to wait for the next tick: less where jobs wait for others to end, which nobody tells."""
        return self._releases.rest() if self.leading else settings().TICK

    def _reached(self) -> None:
        """The database did all that it was asked."""
        self._database.over()
        self._pauses, self._silence = outage.pauses(), SILENCE

    def _missed(self, error: Error) -> float:
        """The database is away, busy or silent; return how long to leave it alone."""
        self._database.failed(error)
        if not outage.busy(error):
            connections[lifecycle.alias()].close()
            self._next |= dict.fromkeys(MERCIFUL, time.monotonic() + MERCY)
            self._silence = min(self._silence * 2, LONGEST_SILENCE)
        return next(self._pauses)

    def tick(self) -> int:
        """One round of chores if this copy leads; return how much was released, to come back at once for more."""
        if not self.lead():
            return 0
        released = 0
        for name, every, chore in self.chores():
            if time.monotonic() >= self._next.get(name, 0.0):
                self._next[name] = time.monotonic() + every
                done = self._done(name, chore)
                released += done if name == "release" else 0
        return released

    def _done(self, name: str, chore: Callable[[], int]) -> int:
        """Do a chore; one that fails waits a second and does not keep the others from their turn."""
        try:
            with outage.bounded(lifecycle.database(), self._silence):
                return chore()
        except Exception as error:
            if outage.busy(error):
                logger.warning("The conductor was kept from its chore %r, and comes back to it: %s", name, error)
            elif outage.passing(error):
                raise
            else:
                logger.exception("The conductor could not %s; it goes on.", name.replace("_", " "))
            self._next[name] = time.monotonic() + (BUSY_PAUSE if outage.busy(error) else 1.0)
            return 0

    def lead(self) -> bool:
        """Take or renew the office of the leader, a lease in the database; False while another one holds it."""
        lease = settings().LEADER_LEASE
        if self.leading and time.monotonic() - self._renewed < lease / 3:
            return True
        asked = time.monotonic()
        with outage.bounded(lifecycle.database(), self._silence):
            was, self.leading = self.leading, _take_office(self.name, timedelta(seconds=lease))
        self._renewed = asked if self.leading else 0.0
        if self.leading and not was:
            logger.info("This conductor leads now: %s", self.name)
        return self.leading

    def resign(self) -> None:
        """Give the office up, so that another copy need not wait for the lease."""
        with suppress(Error), outage.bounded(lifecycle.database(), outage.LONGEST_PAUSE):
            Leader.objects.using(lifecycle.alias()).filter(office=OFFICE, holder=self.name).delete()
        connections[lifecycle.alias()].close()


def _take_office(name: str, lease: timedelta) -> bool:
    table, until, now = Leader._meta.db_table, lifecycle.clock_sql(lease), lifecycle.clock_sql()
    sql = (
        f"INSERT INTO {table} (office, holder, until, ticked_at) VALUES (%s, %s, {until}, {now}) "
        "ON CONFLICT (office) DO UPDATE "
        "SET holder = excluded.holder, until = excluded.until, ticked_at = excluded.ticked_at "
        f"WHERE {table}.holder = excluded.holder OR {table}.until < {now}"
    )
    with lifecycle.database().cursor() as cursor:
        cursor.execute(sql, [OFFICE, name])
        return bool(cursor.rowcount == 1)


def start_in_background() -> Conductor:
    """Run a conductor as a thread of this process, as beat does."""
    conductor = Conductor()
    threading.Thread(target=conductor.run, name="mainstay-conductor", daemon=True).start()
    return conductor
