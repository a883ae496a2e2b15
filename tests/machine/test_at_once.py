"""The state machine of a job under real concurrency: a few actors, each with a connection of its own, on a few jobs.

Hypothesis draws who does what; the actors begin together. After each round every promise must hold, and in the end
every job must be final. A schedule of threads cannot be drawn, so a counterexample is shown as it was found.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import UUID

import pytest
from celery import chord
from django.db import connections
from hypothesis import given, seed
from hypothesis import strategies as st

from dlq import replay
from dlq.models import DeadLetter, Status
from jobs import control, lifecycle, publisher, release, rescue
from jobs.conductor import Conductor
from jobs.errors import Refused
from jobs.models import Job
from jobs.states import FINAL, UNFINISHED, State
from tests.machine import bodies, clock, ledger, promises
from tests.machine.bodies import Book, Ever, Hourly, Unfinished, gather, step
from tests.machine.broker import Bag, in_place_of
from tests.machine.profiles import SEED, profile, say
from tests.machine.promises import Chord, Memory
from tests.machine.runners import Runner, claim, finish
from tests.machine.tables import emptied

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

Act = Callable[[], Any]
PLANS = st.lists(
    st.lists(st.tuples(st.sampled_from([
        "deliver", "deliver", "end", "end", "die", "heartbeat", "rescue", "cancel", "replay", "resolve", "release",
        "force_cancel", "expire", "call with a key", "call a chord", "make due", "pause and resume",
    ]), st.integers(0, 5)), min_size=1, max_size=3),
    min_size=2, max_size=6,
)  # fmt: skip
CALLS = st.lists(st.sampled_from(["plain", "booking", "key", "chord", "expiring"]), min_size=1, max_size=3)
HOW = ["return", "return", "transient", "permanent", "snooze", "lose the lease"]


@pytest.fixture
def bag(transactional_db: None) -> Iterator[Bag]:
    """The broker of the test, and the ledger of what it does."""
    with ledger.kept(), in_place_of(publisher.in_use()) as bag:
        yield bag


def together(acts: Sequence[Act]) -> list[Any]:
    """Let each actor begin at the same moment, on a connection of its own; return what each came to."""
    ready = threading.Barrier(len(acts))

    def acted(act: Act) -> Any:
        try:
            lifecycle.database().ensure_connection()
            ready.wait(timeout=20)
            return act()
        finally:
            connections.close_all()

    with ThreadPoolExecutor(len(acts)) as actors:
        return list(actors.map(acted, acts))


@dataclass
class Scene:
    """A few jobs, those who run some of them, and what the test remembers."""

    bag: Bag
    memory: Memory = field(default_factory=Memory)
    runners: list[Runner] = field(default_factory=list)
    conductor: Conductor = field(default_factory=Conductor)
    _turn: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        emptied()
        self.bag.empty()

    def call(self, what: str) -> None:
        match what:
            case "plain":
                step.delay("plain")
            case "booking":
                Book.delay("a booking")
            case "key":
                Unfinished.delay("a")
            case "expiring":
                step.apply_async(("soon",), expires=60)
            case "chord":
                result: Any = chord([step.s("member"), Unfinished.s("a"), Book.s("member")], gather.s()).apply_async()
                members = tuple(UUID(member.id) for member in result.parent.results)
                self.memory.chords.append(Chord(UUID(result.parent.id), members, UUID(result.id)))

    def begin(self) -> None:
        """Some jobs run already, some of them with a lease that has ended; one letter is open."""
        for job_id in self.bag.waiting[::2]:
            runner = claim(job_id)
            if runner is not None:
                self.runners.append(runner)
        doomed = step.delay("doomed")
        runner = claim(UUID(doomed.id))
        if runner is not None:
            finish(runner, "permanent")
        for ended in self.runners[::2]:
            Job.objects.filter(pk=ended.job.pk).update(lease_until=ended.job.created_at)

    def act_all(self, acts: list[tuple[str, int]]) -> None:
        for verb, which in acts:
            self.act(verb, which)

    def act(self, verb: str, which: int) -> None:
        """One act of one actor, which may find that others were faster."""
        if verb == "end":
            self.end(which)
            return
        job_id = self.one(which)
        verbs: dict[str, Act] = {
            "deliver": lambda: self.run(job_id, which), "die": lambda: self.die(which),
            "heartbeat": lambda: self.renew(which), "rescue": rescue.rescue,
            "cancel": lambda: control.cancel(job_id, reason="not wanted", by="person"),
            "replay": lambda: self.on_letter(replay.replay), "resolve": lambda: self.on_letter(replay.resolve),
            "release": release.release, "force_cancel": rescue.force_cancel, "expire": control.expire,
            "call with a key": lambda: [Unfinished, Hourly, Ever][which % 3].delay("a"),
            "call a chord": lambda: self.call("chord"),
            "make due": lambda: control.retry(job_id, by="person"), "pause and resume": self.pause_and_resume,
        }  # fmt: skip
        try:
            verbs[verb]()
        except Refused:
            return

    def one(self, which: int) -> UUID:
        ids = list(self.memory.entered)
        return ids[which % len(ids)]

    def run(self, job_id: UUID, which: int) -> None:
        runner = claim(job_id)
        if runner is not None:
            finish(runner, HOW[which % len(HOW)])

    def end(self, which: int) -> None:
        with self._turn:
            runner = self.runners.pop(which % len(self.runners)) if self.runners else None
        if runner is not None:
            finish(runner, HOW[which % len(HOW)])

    def die(self, which: int) -> None:
        if self.runners:
            job = self.runners[which % len(self.runners)].job
            rescue.lost_child(str(job.pk), job.worker, job.pid, "signal 9")

    def renew(self, which: int) -> None:
        if self.runners:
            lease = lifecycle.Clock(timedelta(seconds=20))
            lifecycle.amend(self.runners[which % len(self.runners)].job, lease_until=lease)

    def on_letter(self, act: Callable[..., Any]) -> None:
        letter = DeadLetter.objects.filter(status=Status.OPEN).first()
        if letter is not None:
            act(letter.pk, by="person", reason="seen to")

    def pause_and_resume(self) -> None:
        control.pause(task=step.name, reason="a deploy", by="person")
        control.resume(task=step.name, by="person")

    def end_all(self) -> None:
        """With nobody else about, every job comes to its end."""
        verbs = {name: verb for name, _, verb in self.conductor.chores()}
        for number in range(60):
            clock.advance(2 if number % 6 else 700, self.conductor._reconciler)
            for chore in ("release", "rescue", "force_cancel", "expire", "reconcile"):
                verbs[chore]()
            for job_id in list(self.bag.messages.elements()):
                self.bag.hand_out(job_id)
                self.run(job_id, 0)
            world = promises.keep(self.memory)
            if all(job.state in FINAL for job in world.jobs.values()):
                return
        raise AssertionError([(str(j), j.state, j.reason) for j in world.jobs.values() if j.state in UNFINISHED])


def test_every_promise_is_kept_whoever_acts_at_once(bag: Bag) -> None:
    bodies.told("return")

    @seed(SEED)
    @profile(examples=25, steps=1, shrink=False)
    @given(calls=CALLS, plans=st.lists(PLANS, min_size=1, max_size=3))
    def explored(calls: list[str], plans: list[Any]) -> None:
        scene = Scene(bag)
        for what in calls:
            scene.call(what)
        promises.keep(scene.memory)
        scene.begin()
        promises.keep(scene.memory)
        for plan in plans:
            together([partial(scene.act_all, acts) for acts in plan])
            promises.keep(scene.memory)
        scene.end_all()

    say(SEED, "25 examples")
    explored()


# --- The races that matter most, again and again -------------------------------------------------------

TIMES = 15


@pytest.mark.parametrize("conductors", [2, 5])
def test_conductors_that_release_at_once_send_each_due_job_once(bag: Bag, conductors: int) -> None:
    for _ in range(TIMES):
        scene = Scene(bag)
        bag.resting = True
        for _ in range(10):
            step.delay("due")
        bag.resting = False
        clock.advance(5)
        released = together([lambda: release.release(4)] * conductors)
        assert max(Counter(job_id for job_id, _ in bag.sent).values()) == 1
        assert sum(released) == len(bag.sent)
        promises.keep(scene.memory)


@pytest.mark.parametrize("task", [Unfinished, Hourly, Ever])
def test_calls_with_one_key_at_once_return_one_job(bag: Bag, task: Any) -> None:
    for _ in range(TIMES):
        scene = Scene(bag)
        assert len({result.id for result in together([lambda: task.delay("a")] * 5)}) == 1
        assert Job.objects.count() == 1
        promises.keep(scene.memory)


def test_a_key_changes_hands_at_the_moment_that_its_job_ends(bag: Bag) -> None:
    for _ in range(TIMES):
        scene = Scene(bag)
        runner = claim(UUID(Unfinished.delay("a").id))
        assert runner is not None
        together([partial(finish, runner, "return"), *[lambda: Unfinished.delay("a")] * 3])
        assert Job.objects.filter(state__in=UNFINISHED).count() <= 1
        promises.keep(scene.memory)


def test_the_last_members_of_a_chord_recorded_at_once_release_its_body_once(bag: Bag) -> None:
    for _ in range(TIMES):
        scene = Scene(bag)
        scene.call("chord")
        promises.keep(scene.memory)
        runners = [runner for runner in map(claim, bag.waiting) if runner is not None]
        together([partial(finish, runner, "return") for runner in runners])
        body = Job.objects.get(pk=scene.memory.chords[0].body)
        assert (body.state, [job_id for job_id, _ in bag.sent].count(body.pk)) == (State.RESERVED, 1)
        promises.keep(scene.memory)


def test_a_member_that_fails_while_the_others_complete_fails_the_body_once(bag: Bag) -> None:
    for _ in range(TIMES):
        scene = Scene(bag)
        scene.call("chord")
        promises.keep(scene.memory)
        cancels = [partial(control.cancel, job_id, reason="not wanted", by="person") for job_id in bag.waiting[:1]]
        runners = [runner for runner in map(claim, bag.waiting[1:]) if runner is not None]
        together([*cancels, *(partial(finish, runner, "return") for runner in runners)])
        assert Job.objects.get(pk=scene.memory.chords[0].body).state == State.FAILED
        promises.keep(scene.memory)


@pytest.mark.parametrize("task", [step, Book])
def test_a_job_that_completes_while_it_is_cancelled_rescued_and_lost_ends_once(bag: Bag, task: Any) -> None:
    for _ in range(TIMES):
        scene = Scene(bag)
        job_id = UUID(task.delay("a").id)
        runner = claim(job_id)
        assert runner is not None
        Job.objects.update(lease_until=runner.job.created_at)
        promises.keep(scene.memory)
        scene.runners = [runner]
        together(
            [partial(finish, runner, "return"), *(partial(scene.act, verb, 0) for verb in ("cancel", "rescue", "die"))]
        )
        scene.runners = []
        promises.keep(scene.memory)
        scene.end_all()


def test_a_letter_that_many_replay_at_once_is_replayed_once(bag: Bag) -> None:
    for _ in range(TIMES):
        scene = Scene(bag)
        scene.begin()
        promises.keep(scene.memory)
        together([partial(scene.act, verb, 0) for verb in ("replay", "replay", "replay", "resolve")])
        assert Job.objects.filter(replay_of_id__isnull=False).count() <= 1
        promises.keep(scene.memory)


def test_a_message_that_arrives_many_times_at_once_begins_one_attempt(bag: Bag) -> None:
    for _ in range(TIMES):
        scene = Scene(bag)
        job_id = UUID(step.delay("a").id)
        claims = together([partial(claim, job_id)] * 6)
        assert sum(runner is not None for runner in claims) == 1
        promises.keep(scene.memory)
