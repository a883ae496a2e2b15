"""Why a job does not run, and when it may: read off the same rows by which the next release decides."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db.models import Q

from jobs import bursts, circuits, lanes, lifecycle, publisher, stats
from jobs.breaker import Phase
from jobs.conf import current as settings
from jobs.limits import Bind, Kind, binds
from jobs.models import Burst, Call, Circuit, Job, Leader, Pause, Slot, Worker
from jobs.states import WAITING, Priority, State

MOST = 1000  # jobs before it that are counted
NAMED = 5  # jobs that are named
STALE = timedelta(seconds=5)


@dataclass(frozen=True, slots=True)
class Part:
    """One reason: a word for programs, a sentence for people, until when if that is known, and what it is about."""

    word: str
    sentence: str
    until: datetime | None = None
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Explanation:
    """All that is to be said of a job's wait; the first part is what must change first."""

    job_id: UUID
    state: State
    parts: tuple[Part, ...]

    @property
    def sentence(self) -> str:
        """All parts as text."""
        return " ".join(part.sentence for part in self.parts)

    @property
    def until(self) -> datetime | None:
        """When it may go at the earliest, as far as that is known."""
        return max((part.until for part in self.parts if part.until), default=None)

    def __str__(self) -> str:
        return self.sentence


def explain(job_id: UUID | str) -> Explanation:
    """Say why a job does not run, and when it may. Raises ``JobNotFound``."""
    job = stats.get(job_id)
    state = State(job.state)
    if job.finished:
        parts = [Part("finished", f"It is {state.value} since {_time(job.finished_at)}{_because(job)}.")]
    elif state is State.RUNNING:
        parts = [Part("running", f"It runs since {_time(job.started_at)} on {job.worker}, attempt {job.attempt}.")]
        if job.cancel_requested_at:
            parts.append(Part("cancelling", f"It was asked to stop: {job.cancel_reason}."))
    else:
        parts = _of_waiting(job)
    return Explanation(job.pk, state, tuple(parts))


def _of_waiting(job: Job) -> list[Part]:
    now = lifecycle.database_now()
    parts = [*_of_bursts(job), *_of_others(job), *_of_time(job, now), *_of_pauses(job)]
    if not parts and job.lane and job.waiting:
        parts += _of_limits(job, now)
        parts += _of_order(job)
    if job.state == State.RESERVED:
        parts.append(Part("sent", f"It was handed to the broker at {_time(job.sent_at)}: a worker starts it next."))
    parts += [*_of_workers(job, now), *_of_broker(job)]
    if job.waiting:
        parts += _of_conductors(now)
    return parts or [Part("next", "Nothing holds it up: the next release lets it go.")]


def _of_others(job: Job) -> list[Part]:
    if job.waiting and job.due_at is None and not bursts.gathers(job):
        other = job.follows_id or job.waits_for_id
        return [Part("waits for others", f"It {job.reason or 'waits for other jobs'}.", details={"other": other})]
    return []


def _of_bursts(job: Job) -> list[Part]:
    """That it gathers the calls of a burst, and until when."""
    row = Burst.objects.using(lifecycle.alias()).filter(job_id=job.pk, went=False).first()
    if row is None or not bursts.gathers(job):
        return []
    around = bursts.seen(row.task, row.key)
    here = next((one for one in around if one.id == row.pk), None)
    if here is None:
        return []
    until, many = bursts.due(here, around), Call.objects.using(lifecycle.alias()).filter(burst_id=row.pk).count()
    calls = f"{many} call{'s' if many != 1 else ''} of {row.key}"
    latest = here.first + timedelta(seconds=row.span)
    details = {"key": row.key, "calls": many, "first_at": here.first, "last_at": here.last}
    if row.quiet is not None:
        sentence = f"It gathers {calls}: quiet until {_time(until)}, at the latest {_time(latest)}."
        return [Part("debounced", sentence, until, {**details, "at_latest": latest})]
    when = f"it goes at {_time(until)}" if until else "it goes that long after the run before it has started"
    return [Part("throttled", f"It gathers {calls}: one run in {row.span:g} s, {when}.", until, details)]


def _of_time(job: Job, now: datetime) -> list[Part]:
    if not job.waiting or job.due_at is None or job.due_at <= now:
        return []
    return [Part("scheduled", f"It is due at {_time(job.due_at)}{_because(job)}.", job.due_at)]


def _of_pauses(job: Job) -> list[Part]:
    where = Q(kind=Pause.Kind.QUEUE, name=job.queue) | Q(kind=Pause.Kind.TASK, name=job.task)
    return [
        Part(
            "paused",
            f"The {pause.kind} {pause.name} is paused since {_time(pause.created_at)}"
            f"{f' by {pause.by}' if pause.by else ''}{f': {pause.reason}' if pause.reason else ''}.",
            details={"kind": pause.kind, "name": pause.name, "by": pause.by},
        )
        for pause in Pause.objects.using(lifecycle.alias()).filter(where)
    ]


def _of_limits(job: Job, now: datetime) -> list[Part]:
    """Each key of the job that has nothing left."""
    looking, parts = lanes.Release(0), []
    wanted = binds(job.bound)
    looking.learn(wanted)
    for bind in wanted:
        closed = looking.allowance.refusal([bind])
        if closed is None:
            continue
        if bind.kind is Kind.CIRCUIT:
            parts += _of_circuit(bind.key, now)
        elif bind.kind is Kind.TOKENS:
            sentence = f"The rate {bind.key} has no token left; the next comes at {_time(closed.until)}."
            parts.append(Part("rate", sentence, closed.until, {"key": bind.key}))
        else:
            parts.append(_full(bind, looking.allowance.used[bind.key], looking.in_force(bind).amount))
    return parts


def _of_circuit(key: str, now: datetime) -> list[Part]:
    """Until when a circuit is open and why; or that its probes are on their way."""
    row = Circuit.objects.using(lifecycle.alias()).filter(key=key, open_until__isnull=False).first()
    if row is None:
        return []
    phase = circuits.phase(row, now)
    opened = f"opened at {_time(row.opened_at)} by {_failures(row)}"
    details = {"key": key, "phase": phase.value, "failures": len(row.failed_at), "error": row.error}
    if phase is Phase.OPEN:
        sentence = f"The circuit {key} is open until {_time(row.open_until)}: {opened}."
        return [Part("circuit", sentence, row.open_until, details)]
    probes = f"{row.succeeded} of {row.probes} probes have completed, and the others wait for that"
    return [Part("circuit", f"The circuit {key} is half-open: {opened}; {probes}.", None, details)]


def _failures(row: Circuit) -> str:
    many = len(row.failed_at)
    how = " in a row" if row.in_a_row and many > 1 else ""
    last = f", last {row.error}" if row.error else ""
    again = f", {row.openings} times without closing" if row.openings > 1 else ""
    return f"{many} failure{'s' if many != 1 else ''}{how}{last}{again}"


def _full(bind: Bind, used: int, most: float) -> Part:
    slots = Slot.objects.using(lifecycle.alias()).filter(key=bind.key).order_by("pk")
    ids = [str(job_id) for job_id in slots.values_list("job_id", flat=True)[:NAMED]]
    others = f" and {used - len(ids)} more" if used > len(ids) else ""
    sentence = f"The limit {bind.key} is full: {used} of {most:g}, by {', '.join(ids)}{others}."
    return Part("limit", sentence, details={"key": bind.key, "used": used, "limit": most, "jobs": ids})


def _of_order(job: Job) -> list[Part]:
    """How many go before it."""
    waiting = Job.objects.using(lifecycle.alias()).filter(
        finished_at=None, queue=job.queue, state__in=WAITING, due_at__lte=lifecycle.database_now()
    )
    sooner = _few(waiting.filter(priority__lt=job.priority))
    own = _few(waiting.filter(lane=job.lane).filter(Q(due_at__lt=job.due_at) | Q(due_at=job.due_at, pk__lt=job.pk)))
    parts = []
    if sooner:
        sentence = f"Behind {_many(sooner)} of a higher priority in {job.queue}."
        if job.priority > Priority.CRITICAL:
            late = (job.due_at or job.created_at) + timedelta(seconds=settings().AGEING)
            sentence += f" From {_time(late)} on, one in {lanes.ONE_IN} releases goes to those who waited that long."
        parts.append(Part("priority", sentence, details={"before": sooner}))
    if own:
        whose = f" of {job.tenant}" if job.tenant else ""
        parts.append(Part("line", f"Behind {_many(own)}{whose} in its own line.", details={"before": own}))
    return parts


def _of_workers(job: Job, now: datetime) -> list[Part]:
    alive = now - timedelta(seconds=settings().LEASE)
    workers = [w for w in Worker.objects.using(lifecycle.alias()).filter(seen_at__gt=alive) if job.queue in w.queues]
    if not workers:
        return [Part("no worker", f"No live worker takes jobs of the queue {job.queue}.")]
    hands = sum(max(0, worker.concurrency - worker.stuck) for worker in workers)
    running = Job.objects.using(lifecycle.alias()).filter(finished_at=None, state=State.RUNNING, queue=job.queue)
    busy = _few(running)
    if hands and busy >= hands:
        return [Part("busy", f"All {hands} hands for {job.queue} are busy.", details={"hands": hands})]
    return []


def _of_broker(job: Job) -> list[Part]:
    if publisher.in_use().paused or (job.waiting and job.reason.startswith("the broker could not be reached")):
        return [Part("broker", f"The broker could not be reached when it was last tried{_because(job)}.")]
    return []


def _of_conductors(now: datetime) -> list[Part]:
    if Leader.objects.using(lifecycle.alias()).filter(office="conductor", until__gt=now - STALE).exists():
        return []
    return [Part("no conductor", "No conductor runs: start beat, or manage.py conductor.")]


def _few(rows: Any) -> int:
    return len(rows.order_by().values_list("pk", flat=True)[: MOST + 1])


def _many(jobs: int) -> str:
    return f"more than {MOST:,} jobs" if jobs > MOST else f"{jobs} job{'s' if jobs != 1 else ''}"


def _because(job: Job) -> str:
    return f" ({job.reason})" if job.reason else ""


def _time(when: datetime | None) -> str:
    return f"{when:%Y-%m-%d %H:%M:%S}" if when else "some time"
