"""Why a job does not run, and when it may: read off the same rows by which the next release decides."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db.models import Q

from jobs import bursts, chunks, gauges, lifecycle, reasons, standing, stats
from jobs.conf import current as settings
from jobs.explain_queue import QueueExplanation, explain_queue
from jobs.limits import Kind, binds, gathers
from jobs.line import ONE_IN
from jobs.models import Burst, Call, Job, Lane, Pause, Share
from jobs.outbox import UNREACHABLE
from jobs.reasons import Part, time
from jobs.states import WAITING, Priority, State

__all__ = ["Explanation", "Part", "QueueExplanation", "explain", "explain_queue"]

MOST = 1000  # jobs before it that are counted


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


def explain(job_id: UUID | str | Job) -> Explanation:
    """Say why a job does not run, and when it may. Raises ``JobNotFound``."""
    job = stats.get(job_id.pk if isinstance(job_id, Job) else job_id)
    state = State(job.state)
    if job.finished:
        parts = list(_of_end(job))
    elif state is State.RUNNING:
        parts = list(_of_run(job, lifecycle.database_now()))
    else:
        parts = _of_waiting(job)
    return Explanation(job.pk, state, tuple(parts))


def _of_end(job: Job) -> Iterator[Part]:
    sentence = f"It is {job.state} since {time(job.finished_at)}{_because(job)}."
    if job.state == State.FAILED:
        sentence += " It does not run again by itself: replay its dead letter, resolve it or discard it."
    yield Part("finished", sentence)


def _of_run(job: Job, now: datetime) -> Iterator[Part]:
    where = f" on {job.worker}" if job.worker else ""
    yield Part("running", f"It runs since {time(job.started_at)}{where}, attempt {job.attempt}.")
    if job.cancel_requested_at:
        asked = f"{time(job.cancel_requested_at)}: {(job.cancel_reason or 'no reason given').rstrip('.')}"
        forced = job.cancel_requested_at + timedelta(seconds=settings().CANCEL_GRACE)
        sentence = f"A cancel was requested at {asked}. It is stopped by force at {time(forced)}."
        yield Part("cancelling", sentence, forced)
    if job.lease_until is not None and job.lease_until < now:
        yield Part(
            "lost",
            f"Its lease ended at {time(job.lease_until)}: the worker may have died. The conductor takes it back.",
        )
        yield from reasons.conductors(now)


def _of_waiting(job: Job) -> list[Part]:
    now = lifecycle.database_now()
    later = [*_of_bursts(job), *_of_others(job), *_of_time(job, now)]
    pauses, hands = _of_pauses(job), reasons.hands(job.queue, now, waiting=job.waiting)
    parts = [*later, *pauses]
    if not later and job.lane and job.waiting:
        gathering = _of_gathering(job, now)
        parts += [*gathering, *_of_limits(job, now), *([] if gathering else _of_order(job))]
    elif job.lane and job.waiting:
        parts += _of_circuits(job, now)
    if job.state == State.RESERVED:
        parts += _of_sent(job, now, pauses, hands)
    if not (later and job.due_at is None):
        parts += hands
    parts += _of_broker(job, now)
    if job.waiting:
        parts += reasons.conductors(now)
    return parts or [Part("next", "Nothing holds it up: the next release lets it go.", now)]


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
        sentence = f"It gathers {calls}: quiet until {time(until)}, at the latest {time(latest)}."
        return [Part("debounced", sentence, until, {**details, "at_latest": latest})]
    when = f"it goes at {time(until)}" if until else "it goes that long after the run before it has started"
    return [Part("throttled", f"It gathers {calls}: one run in {row.span:g} s, {when}.", until, details)]


def _of_time(job: Job, now: datetime) -> list[Part]:
    if not job.waiting or job.due_at is None or job.due_at <= now:
        return []
    what = f"Attempt {job.attempt + 1} is due" if job.state == State.RETRYING else "It is due"
    return [Part("scheduled", f"{what} at {time(job.due_at)}{_because(job)}.", job.due_at)]


def _of_pauses(job: Job) -> list[Part]:
    where = Q(kind=Pause.Kind.QUEUE, name=job.queue) | Q(kind=Pause.Kind.TASK, name=job.task)
    return [reasons.paused(pause) for pause in Pause.objects.using(lifecycle.alias()).filter(where).order_by("kind")]


def _of_gathering(job: Job, now: datetime) -> list[Part]:
    """For how many others it waits, and until when; nothing where its chunk may go."""
    bind = gathers(job.bound)
    found = chunks.ready(job.lane, chunks.numbers(job.task, bind), (), now) if bind else None
    if not isinstance(found, chunks.Gathering):
        return []
    sentence = f"It gathers with others: {found.many} of {found.size}, goes at the latest at {time(found.latest)}."
    return [Part("chunk", sentence, found.latest, {"gathered": found.many, "size": found.size})]


def _of_limits(job: Job, now: datetime) -> list[Part]:
    """Each key of the job that has nothing left."""
    all_keys = {bind.name: bind for bind in (*binds(job.bound), *standing.of_job(job))}
    full = [gauge for gauge in gauges.of(all_keys.values()) if gauge.full]
    return [
        *_of_circuits(job, now),
        *(reasons.no_token(gauge) if gauge.bind.kind is Kind.TOKENS else reasons.full(gauge) for gauge in full),
    ]


def _of_circuits(job: Job, now: datetime) -> list[Part]:
    """Those that are not closed, also for a job that waits for something else too: its next attempt, say."""
    held = [bind for bind in binds(job.bound) if bind.kind is Kind.CIRCUIT]
    return [part for bind in held for part in reasons.circuit(bind.key, now)]


def _of_order(job: Job) -> list[Part]:
    """How many go before it."""
    parts = []
    if sooner := _more_urgent(job):
        before, held_up = sooner
        themselves = f", of which {held_up:,} are held up themselves" if held_up else ""
        sentence = f"Behind {_many(before)} of a higher priority in {job.queue}{themselves}."
        late = (job.due_at or job.created_at) + timedelta(seconds=settings().AGEING)
        sentence += f" From {time(late)} on, one in {ONE_IN} releases goes to those who waited that long."
        parts.append(Part("priority", sentence, details={"before": before}))
    if own := _few(_due(job).filter(lane=job.lane).filter(_before(job)).order_by("due_at")):
        whose = f" of {job.tenant}" if job.tenant else ""
        not_before = _not_before(job, own)
        hence = f" By the rate of its line it goes at {time(not_before)} at the earliest." if not_before else ""
        sentence = f"Behind {_many(own)}{whose} in its own line.{hence}"
        parts.append(Part("line", sentence, not_before, {"before": own}))
    if others := _other_tenants(job):
        many = f"more than {MOST:,}" if others > MOST else f"{others:,}"
        sentence = (
            f"It takes turns with {many} other tenant{'s' if others != 1 else ''} of its priority in {job.queue}."
        )
        parts.append(Part("turns", sentence, details={"tenants": others}))
    return parts


def _not_before(job: Job, before: int) -> datetime | None:
    """When enough tokens will have come for it and for those before it in its line, None if there are enough."""
    now, times = lifecycle.database_now(), list[datetime]()
    for gauge in gauges.of(b for b in (*binds(job.bound), *standing.of_job(job)) if b.kind is Kind.TOKENS):
        short = before + 1 - gauge.left
        if short > 0:
            times.append(now + timedelta(seconds=short / gauge.numbers.amount))
    return max(times, default=None)


def _due(job: Job) -> Any:
    return Job.objects.using(lifecycle.alias()).filter(
        finished_at=None, queue=job.queue, state__in=WAITING, due_at__lte=lifecycle.database_now()
    )


def _before(job: Job) -> Q:
    # The first condition is for the index: with the other ones alone, it is read to its end.
    return Q(due_at__lte=job.due_at) & (Q(due_at__lt=job.due_at) | Q(pk__lt=job.pk))


def _more_urgent(job: Job) -> tuple[int, int] | None:
    """How many due jobs are more urgent, and how many of them a limit holds up; one look for each priority."""
    found: list[str] = []
    for priority in (p for p in Priority if p < job.priority):
        rows = _due(job).filter(priority=priority.value).order_by("due_at")
        found += rows.values_list("lane", flat=True)[: MOST + 1 - len(found)]
    if not found:
        return None
    closed_lanes = Lane.objects.using(lifecycle.alias()).filter(pk__in=set(found)).exclude(waits_on="")
    closed = set(closed_lanes.values_list("pk", flat=True))
    return len(found), sum(lane in closed for lane in found)


def _other_tenants(job: Job) -> int:
    """How many other tenants of its priority have a job that may go; of a queue with one tenant, none."""
    shares = Share.objects.using(lifecycle.alias()).filter(queue=job.queue, priority=job.priority, is_open=True)
    return _few(shares.exclude(tenant=job.tenant))


def _of_sent(job: Job, now: datetime, pauses: list[Part], hands: list[Part]) -> Iterator[Part]:
    """Where a job is that was handed to the broker, or the message that calls for it."""
    leader = chunks.leader_of(job.pk)
    holder = next((w for w in reasons.live_workers(now) if str(leader or job.pk) in map(str, w.holds or ())), None)
    then = "puts it back" if pauses else "starts it next"
    if holder is not None:
        yield Part(
            "received",
            f"The worker {holder.name} has received it, and {then}.",
            details={"worker": holder.name},
        )
        return
    no_worker = any(part.word == "no worker" for part in hands)
    whoever = "it waits there for a worker" if no_worker else f"the worker that gets it {then}"
    how = f" with the message of {leader}, as one of its chunk" if leader else ""
    yield Part("sent", f"It was handed to the broker at {time(job.sent_at)}{how}: {whoever}.")
    if job.due_at is None or leader:
        return
    same = Job.objects.using(lifecycle.alias()).filter(finished_at=None, queue=job.queue, priority=job.priority)
    if before := _few(same.filter(_before(job), state=State.RESERVED).order_by("due_at")):
        yield Part("line", f"Behind {_many(before)} that were handed over before it.", details={"before": before})


def _of_broker(job: Job, now: datetime) -> list[Part]:
    told = job.reason if job.waiting and job.reason.startswith(UNREACHABLE) else ""
    return reasons.unreachable(now, told)


def _few(rows: Any) -> int:
    return len(rows.values_list("pk", flat=True)[: MOST + 1])


def _many(jobs: int) -> str:
    return f"more than {MOST:,} jobs" if jobs > MOST else f"{jobs} job{'s' if jobs != 1 else ''}"


def _because(job: Job) -> str:
    return f" ({job.reason})" if job.reason else ""
