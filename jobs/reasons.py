"""The reasons for which jobs wait, each told in one way: to who asks about a job, and to who asks about a queue."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from django.utils import timezone

from jobs import circuits, epoch, gauges, lifecycle, publisher
from jobs.backlog import Number
from jobs.breaker import Phase
from jobs.conf import current as settings
from jobs.gauges import Gauge
from jobs.models import Circuit, Job, Leader, Pause, Worker
from jobs.outbox import UNREACHABLE
from jobs.states import State

NAMED = 5  # jobs that are named, and keys of a queue
STALE = timedelta(seconds=5)


@dataclass(frozen=True, slots=True)
class Part:
    """One reason: a word for programs, a sentence for people, until when if that is known, and what it is about.

    In the explanation of a queue, ``jobs`` says how many it concerns.
    """

    word: str
    sentence: str
    until: datetime | None = None
    details: dict[str, Any] = field(default_factory=dict)
    jobs: Number | None = None


def paused(pause: Pause, jobs: Number | None = None) -> Part:
    """A pause: of what, by whom, since when, why."""
    by = f" by {pause.by}" if pause.by else ""
    why = f": {pause.reason}" if pause.reason else ""
    concerned = f" {capital(jobs_in_words(jobs))} {verb(jobs, 'wait')} for it." if jobs else ""
    return Part(
        "paused",
        f"The {pause.kind} {pause.name} is paused since {time(pause.created_at)}{by}{why.rstrip('.')}.{concerned}",
        details={
            "kind": pause.kind, "name": pause.name, "by": pause.by, "reason": pause.reason, "since": pause.created_at,
        },
        jobs=jobs,
    )  # fmt: skip


def no_token(gauge: Gauge) -> Part:
    """A rate of which nothing is left."""
    sentence = f"The rate {gauge.key} has no token left; the next comes at {time(gauge.next_at, exact=True)}."
    return Part("rate", sentence, gauge.next_at, {"key": gauge.key})


def full(gauge: Gauge) -> Part:
    """A limit whose slots are all taken, and by which jobs."""
    holders = gauges.holders(gauge.key, NAMED)
    ids = [str(job_id) for job_id, _, _ in holders]
    others = f" and {gauge.used - len(ids):,} more" if gauge.used > len(ids) else ""
    by = f", by {', '.join(ids)}{others}" if ids else ""
    details = {"key": gauge.key, "used": gauge.used, "limit": gauge.numbers.amount, "jobs": ids}
    return Part("limit", f"The limit {gauge.key} is full: {gauge.said}{by}.", details=details)


def circuit(key: str, now: datetime) -> list[Part]:
    """Until when a circuit is open and why; or that its probes are on their way."""
    row = Circuit.objects.using(lifecycle.alias()).filter(key=key, open_until__isnull=False).first()
    if row is None:
        return []
    phase = circuits.phase(row, now)
    opened = f"opened at {time(row.opened_at)} by {_failures(row)}"
    details = {"key": key, "phase": phase.value, "failures": len(row.failed_at), "error": row.error}
    if phase is Phase.OPEN:
        sentence = f"The circuit {key} is open until {time(row.open_until)}: {opened}."
        return [Part("circuit", sentence, row.open_until, details)]
    probes = f"{row.succeeded} of {row.probes} probes have completed, and the others wait for that"
    return [Part("circuit", f"The circuit {key} is half-open: {opened}; {probes}.", None, details)]


def _failures(row: Circuit) -> str:
    many = len(row.failed_at)
    how = " in a row" if row.in_a_row and many > 1 else ""
    last = f", last {row.error}" if row.error else ""
    again = f", {row.openings} times without closing" if row.openings > 1 else ""
    return f"{many} failure{'s' if many != 1 else ''}{how}{last}{again}"


def hands(queue: str, now: datetime, *, waiting: bool = True) -> list[Part]:
    """That nobody takes jobs of a queue, or that all who do have their hands full.

    For jobs that are ``waiting``, those that were handed over and start before them count too.
    """
    workers = [w for w in live_workers(now) if queue in w.queues]
    if not workers:
        return [Part("no worker", f"No live worker takes jobs of the queue {queue}.")]
    slots = sum(max(0, worker.concurrency - worker.stuck) for worker in workers)
    running = _running_on([worker.name for worker in workers], slots)
    ahead = _handed_over(queue, slots) if waiting else 0
    if running + ahead < slots or not any(worker.concurrency for worker in workers):
        return []
    hands = f"All {slots:,} hands for {queue} are" if slots != 1 else f"The one hand for {queue} is"
    soon = f" (with {ahead:,} that {'was' if ahead == 1 else 'were'} handed over)" if ahead else ""
    details = {"hands": slots, "running": running, "handed_over": ahead}
    return [Part("busy", f"{hands} busy{soon}.", details=details)]


def live_workers(now: datetime) -> list[Worker]:
    """Workers that reported themselves within a lease."""
    alive = now - timedelta(seconds=settings().LEASE)
    return list(Worker.objects.using(lifecycle.alias()).filter(seen_at__gt=alive).order_by("name"))


def _running_on(workers: list[str], most: int) -> int:
    """How many jobs these workers run, of whatever queue: found by their leases."""
    running = Job.objects.using(lifecycle.alias()).filter(finished_at=None, lease_until__isnull=False)
    found = running.filter(state=State.RUNNING, worker__in=workers).order_by()
    return len(found.values_list("pk", flat=True)[: most + 1])


def _handed_over(queue: str, most: int) -> int:
    """How many jobs that were released have not begun."""
    with lifecycle.database().cursor() as cursor:
        cursor.execute(
            "SELECT COUNT(*) FROM (SELECT 1 FROM jobs_slot s JOIN jobs_job j ON j.id = s.job_id WHERE s.key = '' "
            f"AND j.queue = %s AND j.state = 'reserved' LIMIT {most + 1}) x",
            [queue],
        )
        return int(cursor.fetchone()[0])


def unreachable(now: datetime, told: str = "") -> list[Part]:
    """That the broker does not answer: to the conductor, to whoever left word on a job, or to this process."""
    since = epoch.silent_since(now)
    if not (since or told or publisher.in_use().paused):
        return []
    why = told.removeprefix(UNREACHABLE).removeprefix(":").strip()
    when = (
        f"The conductor has not reached the broker since {time(since)}"
        if since
        else "The broker could not be reached when it was last tried"
    )
    return [Part("broker", f"{when}{f' ({why})' if why else ''}. It is tried again every few seconds.")]


def conductors(now: datetime) -> list[Part]:
    """That nobody releases jobs."""
    if Leader.objects.using(lifecycle.alias()).filter(office="conductor", until__gt=now - STALE).exists():
        return []
    return [Part("no conductor", "No conductor runs: start beat, or manage.py conductor.")]


# --- Words ------------------------------------------------------------------------------------------


def jobs_in_words(number: Number) -> str:
    """A number of jobs."""
    return f"{number} job{'' if str(number) == '1' else 's'}"


def verb(number: Number, verb: str) -> str:
    """A verb, as so many do it."""
    return f"{verb}s" if str(number) == "1" else verb


def are(number: Number) -> str:
    """Is, or are."""
    return "is" if str(number) == "1" else "are"


def capital(text: str) -> str:
    """With a capital letter first."""
    return text[:1].upper() + text[1:]


def time(when: datetime | None, *, exact: bool = False) -> str:
    """A time in the project's zone; to the tenth of a second where it is soon over."""
    if when is None:
        return "some time"
    local = timezone.localtime(when) if timezone.is_aware(when) else when
    tenths = f".{local.microsecond // 100_000}" if exact else ""
    return f"{local:%Y-%m-%d %H:%M:%S}{tenths} {local:%Z}".rstrip()
