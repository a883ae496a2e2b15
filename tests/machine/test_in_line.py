"""Order and limits, step by step in any order: jobs in lanes, with limits, tenants, priorities, pauses and a breaker.

After each step no limit is exceeded, and a reason that is told for a wait is true; a release lets go whoever nothing
holds up. In the end, with all faults over, every job comes to a final state.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from jobs import control, floods, lanes, lifecycle, limits, outbox, publisher, release, rescue, standing
from jobs.conductor import Conductor
from jobs.errors import Refused
from jobs.explain import explain, explain_queue
from jobs.flow import Flow
from jobs.models import Allotment, Arrival, Circuit, Job, Lane, Pause, Share, Slot, Worker
from jobs.retry import RetryPolicy
from jobs.states import UNFINISHED, WAITING, State
from jobs.task import Breaker, Concurrency, Rate, task
from tests.machine import bodies, clock, ledger
from tests.machine.broker import Bag, in_place_of
from tests.machine.profiles import explore, tally
from tests.machine.runners import Runner, claim, dying, finish
from tests.machine.tables import emptied

FEW = RetryPolicy(max_attempts=3, base=1, cap=60)
WORKER = "the@worker"
HANDS = 4
ENOUGH = 14


@task(bind=True, retry_policy=FEW)
def plain(self: Any, name: str) -> Any:
    """Nothing constrains it."""
    return bodies._act(self, name)


@task(bind=True, retry_policy=FEW, limits=[Concurrency("pair of {name}", 2), Concurrency("all", 3)])
def narrow(self: Any, name: str) -> Any:
    """Two at a time of one name, three of all."""
    return bodies._act(self, name)


@task(bind=True, retry_policy=FEW, limits=[Rate("well", "6/m", burst=2), Concurrency("all", 3)], retry_priority="low")
def dripping(self: Any, name: str) -> Any:
    """A few in a minute; it comes back lower when it fails."""
    return bodies._act(self, name)


@task(bind=True, retry_policy=FEW, breakers=[Breaker("wire", failures=2, park=60)], limits=[Concurrency("{queue}", 3)])
def wired(self: Any, name: str) -> Any:
    """After two failures in a row it is left alone."""
    return bodies._act(self, name)


TASKS = {"plain": plain, "narrow": narrow, "dripping": dripping, "wired": wired}
KINDS = st.sampled_from(["plain", "narrow", "narrow", "dripping", "wired", "wired"])
NAMES = st.sampled_from(["a", "b"])
QUEUES = st.sampled_from(["default", "mail"])
PRIORITIES = st.sampled_from(["normal", "normal", "high", "low"])
TENANTS = st.sampled_from(["", "", "acme", "bolt"])
ENDS = st.sampled_from(
    ["return"] * 6 + ["transient"] * 4 + ["permanent", "snooze", "shut down", "rate limited", "exit"]
)
SETTABLE: list[dict[str, Any]] = [
    {"name": "all", "slots": 1}, {"name": "all", "slots": 5}, {"name": "pair of {name}", "slots": 1},
    {"queue": "default", "slots": 1}, {"queue": "default", "slots": 2}, {"queue": "mail", "rate": "30/m", "burst": 1},
    {"task": narrow.name, "slots": 1}, {"task": plain.name, "slots": 1}, {"tenant": "acme", "slots": 1},
    {"name": "well", "rate": "60/m", "burst": 3}, {"name": "acme", "weight": 3},
]  # fmt: skip
PAUSABLE: list[dict[str, str]] = [{"queue": "default"}, {"queue": "mail"}, {"task": narrow.name}, {"task": plain.name}]
WHICH = st.integers(0, 7)
ROUNDS = 120


class InLine(RuleBasedStateMachine):
    """Everything that may happen to jobs that wait for their turn."""

    def __init__(self) -> None:
        super().__init__()
        emptied()
        bag = publisher.in_use()
        assert isinstance(bag, Bag)
        self.bag = bag
        self.bag.empty()
        for forgets in (lanes._flows, floods._looks, outbox._looks):
            forgets.clear()
        self.conductor = Conductor(name="the conductor")
        self.runners: list[Runner] = []
        self.alive()

    @initialize(kinds=st.lists(KINDS, min_size=3, max_size=6), said=st.lists(st.sampled_from(SETTABLE), max_size=2))
    def begin(self, kinds: list[str], said: list[dict[str, Any]]) -> None:
        """There is always something to do."""
        for what in said:
            control.allot(**what, by="person")
        for number, kind in enumerate(kinds):
            self.enqueue(kind, "a", "default", "normal", ["acme", "bolt", ""][number % 3], 0)
        self.conductor_releases_and_workers_claim()

    @precondition(lambda self: self.room)
    @rule(how=st.sampled_from(["transient", "transient", "return"]))
    def a_call_over_the_wire_ends(self, how: str) -> None:
        """So that circuits open."""
        wired.apply_async(("a",), priority="critical")
        release.release()
        for job_id in Job.objects.filter(task=wired.name, state=State.RESERVED).values_list("pk", flat=True):
            runner = claim(job_id, WORKER, breakers=True)
            if runner is not None:
                finish(runner, how)

    # --- What goes in ---

    @precondition(lambda self: self.room)
    @rule(
        kind=KINDS, name=NAMES, queue=QUEUES, priority=PRIORITIES, tenant=TENANTS, later=st.sampled_from([0, 0, 0, 30])
    )
    def enqueue(self, kind: str, name: str, queue: str, priority: str, tenant: str, later: int) -> None:
        options: dict[str, Any] = {"queue": queue, "priority": priority, "tenant": tenant}
        options |= {"countdown": later} if later else {}
        TASKS[kind].apply_async((name,), **options)

    @precondition(lambda self: self.room)
    @rule(kind=KINDS, queue=QUEUES, tenant=TENANTS, many=st.integers(2, 4))
    def enqueue_many(self, kind: str, queue: str, tenant: str, many: int) -> None:
        for _ in range(many):
            TASKS[kind].apply_async(("a",), queue=queue, tenant=tenant)

    # --- The loop ---

    @rule()
    def conductor_releases(self) -> None:
        release.release()

    @rule()
    def conductor_releases_and_workers_claim(self) -> None:
        release.release()
        for job_id in self.bag.waiting:
            if len(self.runners) < HANDS:
                self.arrives(job_id)

    @rule(statement=st.integers(1, 40))
    def conductor_dies(self, statement: int) -> None:
        with dying(statement):
            release.release()

    @rule(chore=st.sampled_from(["rescue", "force_cancel", "expire", "reconcile", "mend the lanes"]))
    def conductor_does(self, chore: str) -> None:
        self.do(chore)

    @rule(seconds=st.sampled_from([1, 6, 25, 70, 400]))
    def time_passes(self, seconds: int) -> None:
        clock.advance(seconds, self.conductor._reconciler)
        self.alive()

    # --- Those who run them ---

    @precondition(lambda self: self.bag.waiting)
    @rule(which=WHICH)
    def message_arrives(self, which: int) -> None:
        self.arrives(chosen(self.bag.waiting, which))

    @precondition(lambda self: self.bag.waiting)
    @rule()
    def broker_loses_everything(self) -> None:
        self.bag.messages.clear()

    @precondition(lambda self: self.runners)
    @rule(which=WHICH, end=ENDS)
    def body_ends(self, which: int, end: str) -> None:
        finish(self.taken(which), end)

    @precondition(lambda self: self.runners)
    @rule(which=WHICH, end=ENDS, statement=st.integers(1, 14))
    def runner_dies_while_it_ends(self, which: int, end: str, statement: int) -> None:
        with dying(statement):
            finish(self.taken(which), end)

    @precondition(lambda self: self.runners)
    @rule(which=WHICH)
    def child_dies(self, which: int) -> None:
        job = self.taken(which).job
        rescue.lost_child(str(job.pk), job.worker, job.pid, "signal 9")

    # --- People ---

    @precondition(lambda self: self.unfinished)
    @rule(which=WHICH)
    def cancel(self, which: int) -> None:
        refusable(lambda: control.cancel(chosen(self.unfinished, which), reason="not wanted", by="person"))

    @precondition(lambda self: self.unfinished)
    @rule(which=WHICH, how=st.sampled_from(["retry", "snooze"]))
    def put_off_or_make_due(self, which: int, how: str) -> None:
        job_id = chosen(self.unfinished, which)
        acts = {
            "retry": lambda: control.retry(job_id, by="person"),
            "snooze": lambda: control.snooze(job_id, timedelta(seconds=40), by="person"),
        }
        refusable(acts[how])

    @rule(what=st.sampled_from(PAUSABLE), on=st.booleans())
    def pause_or_resume(self, what: dict[str, Any], on: bool) -> None:
        if on:
            control.pause(**what, by="person", reason="")
        else:
            control.resume(**what, by="person")

    @rule(what=st.sampled_from(SETTABLE), on=st.booleans())
    def set_or_withdraw(self, what: dict[str, Any], on: bool) -> None:
        if on:
            control.allot(**what, by="person")
        else:
            withdraw(what)

    # --- What must hold ---

    @invariant()
    def no_limit_is_exceeded(self) -> None:
        """Those that were released count from then on. A limit that was lowered lets run what runs."""
        looking = lanes.Release(0)
        held: Counter[Any] = Counter()
        under_way: dict[Any, list[Job]] = {}
        for job in Job.objects.filter(state__in=[State.RESERVED, State.RUNNING]):
            if job.state == State.RESERVED and not job.lane:
                continue  # the claim asks for the limits of its whole queue and task
            for bind in looking.binds(job.bound, job.queue, job.task, job.tenant):
                if bind.kind is limits.Kind.SLOTS:
                    held[bind] += 1
                    under_way.setdefault(bind.key, []).append(job)
        for bind, many in held.items():
            allowed = looking.in_force(bind).amount
            jobs = under_way[bind.key]
            if any(job.state == State.RESERVED for job in jobs):
                assert many <= allowed, (bind.key, many, allowed, [(j.state, j.reason) for j in jobs])

    @invariant()
    def every_job_that_waits_in_a_lane_is_known_or_will_be(self) -> None:
        known = set(Lane.objects.values_list("pk", flat=True))
        arrived = set(Job.objects.filter(pk__in=Arrival.objects.values("job_id")).values_list("lane", flat=True))
        freed = set(
            Job.objects.filter(pk__in=Slot.objects.values("job_id"), state__in=WAITING).values_list("lane", flat=True)
        )
        for job in Job.objects.filter(state__in=WAITING, due_at__isnull=False).exclude(lane=""):
            assert job.lane in known | arrived | freed, (job.task, job.state, job.reason)
        shares = set(Share.objects.values_list("pk", flat=True))
        assert set(Lane.objects.values_list("share_id", flat=True)) <= shares

    @rule()
    def whoever_nothing_holds_up_goes(self) -> None:
        """Releases that change nothing any more have let go all for whom no reason to wait is told."""
        for _ in range(8):
            release.release()
        held_up_by_nothing = self.explained()
        for _ in range(4):
            if not held_up_by_nothing:
                break
            release.release()  # real time has passed: some may just have become due
            held_up_by_nothing &= self.explained()
        assert not held_up_by_nothing, f"{held_up_by_nothing} {rows()}"
        for queue in ("default", "mail"):
            assert explain_queue(queue).sentence

    def explained(self) -> set[UUID]:
        """Check what is told of all that wait; return those that nothing holds up, as it is told."""
        found = set()
        for job in Job.objects.filter(state__in=WAITING):
            words = {part.word for part in explain(job.pk).parts} - {"no conductor", "next"}
            tally[f"told: {', '.join(sorted(words))}"] += 1
            if words:
                self.true(job, words)
            else:
                found.add(job.pk)
        return found

    def true(self, job: Job, words: set[str]) -> None:
        """Whether what is told is so, by another way of counting."""
        now = lifecycle.database_now()
        looking = lanes.Release(0)
        binds = looking.binds(job.bound, job.queue, job.task, job.tenant)
        if "limit" in words:
            assert any(self.full(looking, bind) for bind in binds if bind.kind is limits.Kind.SLOTS)
        if "scheduled" in words:
            assert job.due_at is not None
            assert job.due_at > now - timedelta(seconds=5)
        if "paused" in words:
            assert Pause.objects.filter(name__in=[job.queue, job.task]).exists()
        if "circuit" in words:
            assert Circuit.objects.filter(open_until__isnull=False).exists()
        if not words & {"limit", "scheduled", "paused", "circuit", "rate", "priority", "line", "turns"}:
            assert words & {"busy", "broker"}, (words, explain(job.pk).sentence, rows())

    def full(self, looking: lanes.Release, bind: limits.Bind) -> bool:
        keys = [
            b.key for job in Job.objects.filter(state__in=[State.RESERVED, State.RUNNING])
            for b in set(looking.binds(job.bound, job.queue, job.task, job.tenant)) if b.kind is limits.Kind.SLOTS
        ]  # fmt: skip
        forced = Slot.objects.filter(key=bind.key).count()
        return max(keys.count(bind.key), forced) >= looking.in_force(bind).amount

    def teardown(self) -> None:
        """With all faults over, everything ends."""
        for pause in Pause.objects.all():
            control.resume(**{pause.kind: pause.name}, by="person")
        bodies.told("return")
        for _ in range(ROUNDS):
            if not Job.objects.filter(state__in=UNFINISHED).exists():
                break
            clock.advance(20, self.conductor._reconciler)
            self.alive()
            while self.runners:
                finish(self.taken(0), "return")
            for chore in ("rescue", "force_cancel", "expire", "reconcile"):
                self.do(chore)
            release.release()
            for job_id in self.bag.waiting:
                self.arrives(job_id)
        left = Job.objects.filter(state__in=UNFINISHED)
        assert not left.exists(), ([(j.task, j.state, j.reason, explain(j.pk).sentence) for j in left], rows())
        release.release()
        release.release()
        assert not Slot.objects.exists()
        assert not Lane.objects.exists(), rows()
        assert not Share.objects.exists(), rows()
        tally["an example"] += 1
        for kind, found in {
            "a circuit that opened": Circuit.objects.exclude(openings=0), "a rescue": Job.objects.exclude(losses=0),
            "ten jobs": Job.objects.all()[9:], "a retry": Job.objects.filter(attempt__gt=1),
        }.items():  # fmt: skip
            if found.exists():
                tally[kind] += 1

    # --- How it is done ---

    @property
    def room(self) -> bool:
        return Job.objects.filter(state__in=UNFINISHED).count() < ENOUGH

    @property
    def unfinished(self) -> list[UUID]:
        return list(Job.objects.filter(state__in=UNFINISHED).order_by("created_at", "pk").values_list("pk", flat=True))

    def arrives(self, job_id: UUID) -> None:
        self.bag.hand_out(job_id)
        runner = claim(job_id, WORKER, breakers=True)
        if runner is not None:
            self.runners.append(runner)

    def taken(self, which: int) -> Runner:
        return self.runners.pop(which % len(self.runners))

    def do(self, chore: str) -> None:
        self.conductor._reconciler.resting_until = 0.0
        {name: verb for name, _, verb in self.conductor.chores()}[chore]()

    def alive(self) -> None:
        """The workers have just reported themselves."""
        now = lifecycle.database_now()
        Worker.objects.update_or_create(
            name=WORKER, defaults={
                "pid": 1, "started_at": now, "seen_at": now, "queues": ["default", "mail"], "concurrency": HANDS,
            },
        )  # fmt: skip


def withdraw(what: dict[str, Any]) -> None:
    kind = next(kind for kind, said in (("slots", "slots"), ("tokens", "rate"), ("weight", "weight")) if said in what)
    scope = next((scope for scope in standing.SCOPES if scope in what), None)
    name = standing.name(scope, what[scope]) if scope else what["name"]
    control.withdraw(kind, name, by="person")


def rows() -> str:
    """What the tables of the lines say, for whoever reads a counterexample."""
    models: list[Any] = [Share, Lane, Slot, Arrival, Allotment]
    jobs = [
        f"{j.pk} {j.task} {j.queue} {j.priority} {j.tenant} {j.state} {j.lane} {j.due_at} {j.reason}"
        for j in Job.objects.all()
    ]
    return "\n".join(["", *jobs, *(str(row) for model in models for row in model.objects.values_list())])


def chosen(among: list[Any], which: int) -> Any:
    return among[which % len(among)]


def refusable(act: Any) -> None:
    try:
        act()
    except Refused:
        return


@pytest.fixture
def bag(transactional_db: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bag]:
    """The broker of the test; nothing depends on how fast the machine is."""
    monkeypatch.setattr(floods, "LOOK_EVERY", 0.0)
    monkeypatch.setattr(floods, "RESTING", 0.0)
    monkeypatch.setattr(floods, "DEEP", 4)
    monkeypatch.setattr(outbox, "LOOK_EVERY", -1.0)
    monkeypatch.setattr(Flow, "further", lambda self, reserved, now: 1)
    with ledger.kept(), in_place_of(publisher.in_use()) as bag:
        yield bag


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_order_and_limits_hold_whatever_happens_to_those_who_wait(bag: Bag) -> None:
    explore(InLine, examples=25, steps=40)
