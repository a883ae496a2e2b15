"""The broker's epoch: the marker left in it tells when the broker, or the database, was set back in time."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from django.db import transaction

from jobs import audit, ids, lifecycle, marker
from jobs.errors import BrokerUnavailable
from jobs.marker import Marker, Place
from jobs.models import Epoch, Job, Leader
from jobs.states import State

logger = logging.getLogger("jobs.epoch")

# The rows: of the broker's marker, of what this installation is called, of when another one was seen beside it.
BROKER = "default"
INSTALLATION = "installation"
BESIDE = "beside"
NEIGHBOUR = timedelta(seconds=60)  # one that has not moved its marker on for longer is gone
SHARED = (
    "Another installation uses the same database of Redis: workers of each take messages of the other, which then wait "
    "to be sent again. Give each one a database number of its own in the broker's URL, or a global_keyprefix in "
    "broker_transport_options."
)
BY = "conductor"
BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)
# What went out this long before the marker did is in the broker if the marker is.
MARGIN = timedelta(seconds=60)
# As long may a marker on RabbitMQ be in the hands of a process that stands still: see ``broker_heartbeat``.
HELD = timedelta(seconds=30)
# A conductor moves the marker on each second. One that ticked so long after the last time did not reach the broker.
SILENCE = timedelta(seconds=4)
# How far the clock of a host may be off: ids are made there.
CLOCKS = timedelta(minutes=10)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a marker tells: since when the broker may have lost what was sent, and the database what happened."""

    lost_since: datetime | None = None
    forgotten_since: datetime | None = None


def judge(kept: Epoch, found: Marker | None, server: str) -> Verdict:
    """Compare the marker that the broker has with the one that the database remembers.

    The database is written first, the broker second: a crash in between leaves the broker one behind.
    """
    if kept.marked_at is None:
        return Verdict(forgotten_since=BEGINNING if found else None)
    if found is None:
        return Verdict(lost_since=BEGINNING)
    if found.serial > kept.serial:
        # The rows are older than their messages, any of which may have been consumed since.
        return Verdict(lost_since=BEGINNING, forgotten_since=kept.marked_at)
    if found.serial < kept.serial - 1 or (server and kept.server and server != kept.server):
        return Verdict(lost_since=found.at - MARGIN)
    return Verdict()


def tick() -> int:
    """Look at the marker, note what it tells, and move it on; return how many jobs may have lost their message."""
    try:
        with marker.place(_installation()) as place:
            moved = 0 if place is None else _moved_on(place)
            others = None if place is None else place.others
    except BrokerUnavailable as error:
        _tell(f"The marker in the broker cannot be looked at, or moved on: {error}")
        return 0
    _tell(SHARED if _noticed(others) else "")
    return moved


def _installation() -> str:
    """What tells the rows of this installation from those of others: they may share a broker by mistake."""
    rows = Epoch.objects.using(lifecycle.alias())
    return str(rows.get_or_create(broker=INSTALLATION, defaults={"server": uuid4().hex})[0].server)


def _noticed(others: Marker | None) -> bool:
    """Note that another installation moves a marker of its own on, in the same broker; whether it does so now."""
    now = lifecycle.database_now()
    if others is None or abs(now - others.at) > NEIGHBOUR:
        return False
    rows = Epoch.objects.using(lifecycle.alias())
    if not rows.filter(broker=BESIDE, marked_at__gt=now - NEIGHBOUR / 4).exists():
        rows.update_or_create(broker=BESIDE, defaults={"marked_at": now})
    return True


def shared() -> str:
    """A sentence where another installation uses the same broker; empty where none was seen lately."""
    since = lifecycle.database_now() - NEIGHBOUR
    return SHARED if Epoch.objects.using(lifecycle.alias()).filter(broker=BESIDE, marked_at__gt=since).exists() else ""


def silent_since(now: datetime) -> datetime | None:
    """Since when a conductor that ticks has not reached the broker; None while it does, or while none ticks."""
    marked = Epoch.objects.using(lifecycle.alias()).filter(broker=BROKER).values_list("marked_at", "server").first()
    if marked is None or marked[0] is None:
        return None
    patience = SILENCE if marked[1] else HELD + SILENCE  # RabbitMQ names no run of a server
    ticking = Leader.objects.using(lifecycle.alias()).filter(until__gt=now, ticked_at__gt=marked[0] + patience)
    return marked[0] if ticking.exists() else None


_told = ""


def _tell(trouble: str) -> None:
    """Say it once, as long as it is the same."""
    global _told
    if trouble and trouble != _told:
        logger.warning(trouble)
    _told = trouble


def _moved_on(place: Place) -> int:
    kept = Epoch.objects.using(lifecycle.alias()).get_or_create(broker=BROKER)[0]
    now = lifecycle.database_now()
    if place.marker is None and place.perhaps_held and kept.marked_at is not None and now - kept.marked_at < HELD:
        return 0
    # To a database that remembers nothing, the marker of whoever used the broker before it is one of its own.
    verdict = judge(kept, place.marker or (None if kept.marked_at else place.others), place.server)
    following = Marker(_next_serial(kept, place.marker), now)
    # Somebody else may lead by now: then it is theirs to move the marker on.
    mine = Epoch.objects.using(lifecycle.alias()).filter(broker=BROKER, serial=kept.serial)
    # What is noted and what is told commit together, before the broker is asked: the next look no longer sees it.
    with transaction.atomic(using=lifecycle.alias()):
        if not mine.update(serial=following.serial, server=place.server, marked_at=now, **_noted(kept, verdict, now)):
            return 0
        lost = _reported(kept, verdict, now)
    place.leave(following)
    return lost


def _next_serial(kept: Epoch, found: Marker | None) -> int:
    """The number that the marker moves on to; the same once more, where it did not arrive the last time.

    A broker that refuses it for a while, because it is full, must not seem to have been set back.
    """
    return kept.serial + 1 if found is None else max(kept.serial, found.serial + 1)


def _noted(kept: Epoch, verdict: Verdict, now: datetime) -> dict[str, Any]:
    """The spans of the verdict, joined to those that were noted before."""
    noted: dict[str, Any] = {}
    for name, since in (("lost", verdict.lost_since), ("forgotten", verdict.forgotten_since)):
        if since is not None:
            before = getattr(kept, f"{name}_since")
            noted |= {f"{name}_since": min(since, before) if before else since, f"{name}_until": now}
    return noted


def _reported(kept: Epoch, verdict: Verdict, now: datetime) -> int:
    """Tell people what is uncertain; return how many jobs may have lost their message."""
    waiting = Job.objects.using(lifecycle.alias()).filter(finished_at__isnull=True)
    if verdict.forgotten_since is not None and kept.marked_at is not None:
        unsure = waiting.count()
        logger.warning(
            "The database is older than its broker: what happened between %s and %s is not in it. "
            "%d unfinished jobs may have run already, and run again; what only the broker knows becomes a dead letter.",
            kept.marked_at, now, unsure,
        )  # fmt: skip
        reason = f"{unsure} unfinished jobs may have run already, and run again"
        audit.record_act("database set back", BY, BROKER, reason=reason, last_marked=kept.marked_at.isoformat())
    if verdict.lost_since is None:
        return 0
    lost = waiting.filter(state=State.RESERVED, sent_at__gte=verdict.lost_since, sent_at__lte=now).count()
    if kept.lost_until is None:  # else the marker did not arrive since, and it is told already
        logger.warning("The broker has lost what it held, or the last of it: %d jobs may have to be sent again.", lost)
        audit.record_act("broker set back", BY, BROKER, reason=f"{lost} jobs may have to be sent again")
    return lost


def lost() -> Epoch | None:
    """The epoch with a span whose messages are to be sent again, None where there is none."""
    return Epoch.objects.using(lifecycle.alias()).filter(lost_until__isnull=False).first()


def made_good(epoch: Epoch) -> None:
    """Everything of the span is on its way again."""
    same = Epoch.objects.using(lifecycle.alias()).filter(broker=epoch.broker, lost_until=epoch.lost_until)
    same.update(lost_since=None, lost_until=None)


def is_forgotten(job_id: UUID) -> bool:
    """Whether a job without a row may have been lost with the database; otherwise it was pruned."""
    created_at = ids.created_at(job_id)
    kept = Epoch.objects.using(lifecycle.alias()).filter(broker=BROKER).first()
    if created_at is None or kept is None or kept.marked_at is None or created_at + CLOCKS >= kept.marked_at:
        return True
    if kept.forgotten_since is None or kept.forgotten_until is None:
        return False
    return kept.forgotten_since <= created_at + CLOCKS and created_at - CLOCKS <= kept.forgotten_until
