"""The scheduler of beat: it sleeps until the next fire and lets the ledger decide. Any number of beats is safe.

It goes on when the database or the broker is away, and looks again until they are back.
"""

from __future__ import annotations

import logging
import time
from datetime import datetime, timedelta
from typing import Any, Final

from django.db import Error, InterfaceError, OperationalError, connections
from django_celery_beat.schedulers import DatabaseScheduler, ModelEntry

from jobs.models import Schedule
from jobs.schedule import ledger
from jobs.schedule.agenda import Agenda
from jobs.schedule.rules import Unschedulable

logger = logging.getLogger("jobs.schedule")

# In seconds: between two looks for changes, between two looks at all schedules, and after something failed.
LOOK: Final = 1.0
LOOK_AT_ALL: Final = 5.0
PAUSE: Final = 1.0
FORGET: Final = 600.0


class Entry(ModelEntry):  # type: ignore[misc]
    """An entry of ``beat_schedule`` on its way into the admin's schedules."""

    @classmethod
    def from_entry(cls, name: str, app: Any = None, **entry: Any) -> Any:
        """Keep it as a periodic task; its option ``misfire`` sets the policy."""
        options = dict(entry.pop("options", None) or {})
        misfire = options.pop("misfire", None)
        if misfire is not None and misfire not in Schedule.Misfire.values:
            raise ValueError(f"misfire must be one of {', '.join(Schedule.Misfire.values)}, not {misfire!r}")
        kept = super().from_entry(name, app=app, options=_with_expiry(options), **entry)
        if misfire is not None:
            ledger.rows().update_or_create(name=name, defaults={"misfire": misfire})
        return kept


def _with_expiry(options: dict[str, Any]) -> dict[str, Any]:
    """Celery's ``expires`` as django-celery-beat calls it, which would drop it without a word."""
    expires = options.pop("expires", None)
    if isinstance(expires, timedelta):
        expires = expires.total_seconds()
    if isinstance(expires, int | float) and options.get("expire_seconds") is None:
        options["expire_seconds"] = int(expires)
    return options


class Scheduler(DatabaseScheduler):  # type: ignore[misc]
    """Fires the periodic tasks of the admin: set ``CELERY_BEAT_SCHEDULER = "jobs.schedule.scheduler:Scheduler"``."""

    Entry = Entry
    sync_every = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.agenda = Agenda()
        self._installed = False
        self._looked = self._read = self._forgot = float("-inf")
        # By how much the database's clock is ahead of this process's monotonic one.
        self._clock: datetime | None = None
        self._clock_read = 0.0
        super().__init__(*args, **kwargs)

    def setup_schedule(self) -> None:
        """Nothing yet: a database that is away must not end beat. The first tick does it."""

    def tick(self, *args: Any, **kwargs: Any) -> float:
        """Fire what is due; return in how many seconds to come again. Whatever goes wrong, come again."""
        try:
            return self._tick()
        except Error as error:
            logger.warning("Beat could not reach the database, and tries again: %s", error)
            self._reconnect()
        except Exception:
            logger.exception("A tick of beat failed; it goes on.")
            self._reconnect()
        return PAUSE

    def _tick(self) -> float:
        self._look()
        self._fire()
        if time.monotonic() - self._forgot >= FORGET:
            self._forgot = time.monotonic()
            ledger.forget_old()
        return self._pause()

    def _look(self) -> None:
        """Read what people may have changed: the marker each second, everything each five."""
        if time.monotonic() - self._looked < LOOK:
            return
        self._read_clock()
        if not self._installed:
            self._install()
        if self.agenda.changed() or time.monotonic() - self._read >= LOOK_AT_ALL:
            self.agenda.read()
            self._read = time.monotonic()
        self._looked = time.monotonic()

    def _install(self) -> None:
        """Bring the entries of ``beat_schedule`` into the admin."""
        self.install_default_entries({})
        self.update_from_dict(self.app.conf.beat_schedule)
        self._installed = True

    def update_from_dict(self, mapping: dict[str, Any]) -> None:
        """Keep these entries as periodic tasks; one that cannot be kept is reported, the others go on."""
        for name, entry in mapping.items():
            try:
                self.Entry.from_entry(name, app=self.app, **entry)
            except (OperationalError, InterfaceError):
                raise
            except Exception:
                logger.exception("The entry %r of beat_schedule cannot be kept.", name)

    def _fire(self) -> None:
        """Decide each schedule whose time has come; one that fails waits, and the others go on."""
        now = self._now()
        for task_id, at in sorted(self.agenda.due.items(), key=lambda item: item[1]):
            if at > now:
                break
            try:
                decided = ledger.decide(task_id)
            except Unschedulable:
                self.agenda.put(task_id, None)  # the next look at all schedules says why
                continue
            except (OperationalError, InterfaceError):
                raise
            except Exception:
                logger.exception("The schedule %s could not be fired; it is tried again.", task_id)
                self.agenda.put(task_id, now + timedelta(seconds=LOOK_AT_ALL))
                continue
            self.agenda.put(task_id, decided.next_at)
            if decided.fired:
                logger.info("Fired %d of schedule %s.", decided.fired, task_id)

    def _pause(self) -> float:
        """Until the next fire, but not longer than until the next look."""
        now = self._now()
        waits = [(at - now).total_seconds() for at in self.agenda.due.values()]
        return max(0.005, min([LOOK, float(self.max_interval), *waits]))

    def _read_clock(self) -> None:
        self._clock, self._clock_read = ledger.clock(), time.monotonic()

    def _now(self) -> datetime:
        """About what the database's clock shows; what is due is decided by the clock itself."""
        assert self._clock is not None
        return self._clock + timedelta(seconds=time.monotonic() - self._clock_read)

    def _reconnect(self) -> None:
        self._looked = self._read = float("-inf")
        for connection in connections.all(initialized_only=True):
            connection.close()

    @property
    def schedule(self) -> dict[str, Any]:
        """Nothing is kept in memory: the rows are the schedule."""
        return {}

    def sync(self) -> None:
        """Nothing is left to write: what fired was written with its job."""

    def should_sync(self) -> bool:
        """Never."""
        return False

    @property
    def info(self) -> str:
        """A line for beat's greeting."""
        return "    . ledger -> the database of jobs"
