"""The state machine of a job, step by step in any order, through the doors that the platform uses itself.

Hypothesis draws the steps; the broker is a bag that fails as it likes; time passes when a step says so. After each step
every promise is checked, and at the end, with all faults over, every job must come to a final state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from celery import chain, chord
from django.db import connection
from django.db.models import Q
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from dlq import replay
from dlq.models import DeadLetter, Status
from jobs import control, lifecycle, publisher, rescue, retention
from jobs.conductor import Conductor
from jobs.conf import current as settings
from jobs.errors import Refused
from jobs.lifecycle import Clock
from jobs.models import Job, Key, Pause
from jobs.states import FINAL, UNFINISHED, WAITING, State
from tests.machine import bodies, clock, ledger, promises
from tests.machine.bodies import KEYED, MAY_BECOME, Book, gather, mourn, step, then
from tests.machine.broker import MOODS, Bag, Died, in_place_of
from tests.machine.profiles import explore, tally
from tests.machine.promises import Chord, Memory, World
from tests.machine.runners import Runner, claim, dying, finish
from tests.machine.tables import emptied

TIMES = st.sampled_from([2, 25, 100, 4000])
NAMES = st.sampled_from(["a", "b"])
WHICH = st.integers(0, 5)
OPTIONS = st.sampled_from([{}, {}, {"countdown": 60}, {"expires": 90}, {"countdown": 60, "expires": 90}])
ENDS = st.sampled_from(["return"] * 10 + ["permanent"] * 4 + sorted(bodies.ENDS))
MEMBERS = st.lists(st.sampled_from(["plain", "key", "booking", "chain"]), min_size=1, max_size=3)
ENOUGH = 6  # jobs that are unfinished at once
STATEMENTS = st.integers(1, 14)
CHORES = ("release", "rescue", "force_cancel", "expire", "reconcile")
ROUNDS = 80

Entered = MultipleResults[UUID]


class Platform(RuleBasedStateMachine):
    """Everything that may happen to a few jobs."""

    jobs = Bundle("jobs")
    runners = Bundle("runners")

    def __init__(self) -> None:
        super().__init__()
        emptied()
        self.memory = Memory()
        bag = publisher.in_use()
        assert isinstance(bag, Bag)
        self.bag = bag
        self.bag.empty()
        self.conductor = Conductor(name="the conductor")
        self.look()

    @initialize(target=jobs, chord_of=MEMBERS, member_ends=st.sampled_from(["return", "permanent"]))
    def begin(self, chord_of: list[str], member_ends: str) -> Entered:
        """There is always something to do."""

        def act() -> None:
            step.delay("first of all")
            Book.delay("a booking")
            self.end_next("permanent")
            self.enter_chord(chord_of)
            self.end_next(member_ends, -1)

        return self.entering(act)

    @initialize(target=runners)
    def begin_to_run(self) -> Any:
        """Somebody runs a job that has a key, which others will want too."""
        job_id = UUID(bodies.Unfinished.delay("a").id)
        self.look()
        return self.arrives(job_id)

    # --- What goes in ---

    @precondition(lambda self: self.room)
    @rule(target=jobs, what=st.sampled_from(["plain", "linked", "booking"]), options=OPTIONS)
    def enqueue(self, what: str, options: dict[str, Any]) -> Entered:
        calls = {
            "plain": lambda: step.apply_async(("plain",), **options),
            "linked": lambda: step.apply_async(("linked",), link=then.s("link"), link_error=mourn.s(), **options),
            "booking": lambda: Book.apply_async(("a booking",), **options),
        }
        return self.entering(calls[what])

    @precondition(lambda self: self.room)
    @rule(target=jobs, holds=st.sampled_from(sorted(KEYED)), name=NAMES, options=OPTIONS)
    def enqueue_with_key(self, holds: str, name: str, options: dict[str, Any]) -> Entered:
        task = KEYED[holds]
        owner = self.owner_of(task.name, name)
        given: list[Any] = []
        entered = self.entering(lambda: given.append(task.apply_async((name,), **options)))
        if given and owner is not None:
            assert given[0].id == str(owner), "a call returns the job that has its key"
        return entered

    @precondition(lambda self: self.room)
    @rule(target=jobs, middle=st.sampled_from(["plain", "key"]))
    def enqueue_chain(self, middle: str) -> Entered:
        second = bodies.Unfinished.si("a") if middle == "key" else then.s("second")
        return self.entering(lambda: self.remember_chain(chain(step.s("first"), second, then.s("third")).apply_async()))

    @precondition(lambda self: self.room)
    @rule(target=jobs, members=MEMBERS)
    def enqueue_chord(self, members: list[str]) -> Entered:
        return self.entering(lambda: self.enter_chord(members))

    # --- The broker ---

    @precondition(lambda self: self.bag.mood == "well" and self.room)
    @rule(mood=st.sampled_from(MOODS[1:]))
    def broker_turns(self, mood: str) -> None:
        """Until it was asked for something, or time passes."""
        self.bag.mood = mood

    @precondition(lambda self: self.bag.waiting)
    @rule()
    def broker_loses_everything(self) -> None:
        self.bag.messages.clear()

    @precondition(lambda self: self.bag.waiting)
    @rule(target=runners, which=WHICH)
    def message_arrives(self, which: int) -> Any:
        runner = self.arrives(chosen(self.bag.waiting, which))
        return multiple() if runner is None else runner

    @rule(target=runners, job=jobs)
    def old_message_arrives_again(self, job: UUID) -> Any:
        """A copy of a message that arrived before, or whose job was decided otherwise since."""
        runner = self.arrives(job) if self.bag.knows(job) else None
        return multiple() if runner is None else runner

    @precondition(lambda self: self.bag.waiting)
    @rule(target=jobs)
    def message_arrives_and_body_returns(self) -> Entered:
        return self.message_arrives_and_body_ends(0, "return")

    @precondition(lambda self: self.bag.waiting)
    @rule(target=jobs, which=WHICH, end=ENDS)
    def message_arrives_and_body_ends(self, which: int, end: str) -> Entered:
        return self.entering(lambda: self.end_next(end, which))

    @precondition(lambda self: self.bag.waiting)
    @rule(target=runners)
    def runner_stops_is_overtaken_and_continues(self) -> Any:
        """Two runners of one job, of which only the second holds it."""
        job_id = self.bag.waiting[0]
        first = self.arrives(job_id)
        self.pass_time(25)
        self.do("rescue")
        self.pass_time(100)
        self.do("release")
        second = self.arrives(job_id) if job_id in self.bag.waiting else None
        return multiple(*(runner for runner in (first, second) if runner is not None))

    # --- Those who run it ---

    @rule(target=jobs, runner=consumes(runners), end=ENDS)
    def body_ends(self, runner: Runner, end: str) -> Entered:
        return self.entering(lambda: self.end(runner, end))

    @rule(target=jobs, runner=consumes(runners), end=ENDS, statement=STATEMENTS)
    def runner_dies_while_it_ends(self, runner: Runner, end: str, statement: int) -> Entered:
        def act() -> None:
            with dying(statement):
                finish(runner, end)

        entered = self.entering(act)
        self.excuse(runner, end)
        return entered

    @rule(runner=runners)
    def heartbeat(self, runner: Runner) -> None:
        holds = runner.holds
        lease = Clock(timedelta(seconds=settings().LEASE))
        assert lifecycle.amend(runner.job, lease_until=lease, progress={"done": 1}) == holds

    @rule(target=jobs, runner=runners)
    def pool_child_dies(self, runner: Runner) -> Entered:
        def act() -> None:
            holds, job = runner.holds, runner.job
            assert rescue.lost_child(str(job.pk), job.worker, job.pid, "signal 9") == holds

        return self.entering(act)

    # --- Time, and the loop ---

    @rule(seconds=TIMES)
    def time_passes(self, seconds: int) -> None:
        self.pass_time(seconds)

    @rule(target=jobs, seconds=TIMES)
    def time_passes_and_conductor_ticks(self, seconds: int) -> Entered:
        self.pass_time(seconds)
        return self.entering(self.tick)

    @rule(target=jobs, chore=st.sampled_from(CHORES))
    def conductor_does(self, chore: str) -> Entered:
        return self.entering(lambda: self.do(chore))

    @rule(target=jobs, chore=st.sampled_from(CHORES), statement=STATEMENTS)
    def conductor_dies(self, chore: str, statement: int) -> Entered:
        def act() -> None:
            with dying(statement):
                self.do(chore)

        return self.entering(act)

    # --- People ---

    @precondition(lambda self: self.in_state(*UNFINISHED))
    @rule(target=jobs, which=WHICH)
    def cancel_unfinished(self, which: int) -> Entered:
        job = chosen(self.in_state(*UNFINISHED), which)
        return self.entering(lambda: control.cancel(job.pk, reason="not wanted", by="person"))

    @precondition(lambda self: self.in_state(State.RUNNING))
    @rule(which=WHICH)
    def cancel_running(self, which: int) -> None:
        control.cancel(chosen(self.in_state(State.RUNNING), which).pk, reason="not wanted", by="person")

    @rule(job=jobs)
    def cancel_any(self, job: UUID) -> None:
        finished = job not in self.world.jobs or self.world.jobs[job].finished
        if finished:
            with pytest.raises(Refused):
                control.cancel(job, reason="not wanted", by="person")

    @precondition(lambda self: self.in_state(*WAITING))
    @rule(which=WHICH)
    def make_due(self, which: int) -> None:
        refusable(lambda: control.retry(chosen(self.in_state(*WAITING), which).pk, by="person"))

    @precondition(lambda self: not self.paused)
    @rule(what=st.sampled_from([{"task": step.name}, {"queue": "default"}]))
    def pause(self, what: dict[str, str]) -> None:
        control.pause(**what, reason="a deploy", by="person")

    @precondition(lambda self: self.paused)
    @rule(target=jobs)
    def resume(self) -> Entered:
        return self.entering(self.resume_all)

    @precondition(lambda self: self.open_letters())
    @rule(target=jobs, which=WHICH)
    def replay_letter(self, which: int) -> Entered:
        letter = chosen(self.open_letters(), which)
        return self.entering(lambda: refusable(lambda: replay.replay(letter.pk, by="person", reason="repaired")))

    @precondition(lambda self: self.open_letters() and not self.paused)
    @rule(target=jobs, which=WHICH)
    def replay_letter_and_it_completes(self, which: int) -> Entered:
        letter = chosen(self.open_letters(), which)
        replays: list[Job] = []

        def act() -> None:
            refusable(lambda: replays.append(replay.replay(letter.pk, by="person", reason="repaired")))
            if replays and replays[0].pk in self.bag.waiting:
                self.end_next("return", self.bag.waiting.index(replays[0].pk))

        return self.entering(act)

    @precondition(lambda self: self.open_letters())
    @rule(which=WHICH, close=st.sampled_from([replay.resolve, replay.discard]))
    def close_letter(self, which: int, close: Any) -> None:
        letter = chosen(self.open_letters(), which)
        close(letter.pk, by="person", reason="settled elsewhere")
        with pytest.raises(replay.NotOpen):
            replay.replay(letter.pk, by="person")

    @precondition(lambda self: self.in_state(*FINAL))
    @rule(older_than=st.sampled_from([1, 3600]))
    def prune(self, older_than: int) -> None:
        before = [letter.job_id for letter in self.open_letters()]
        retention.prune(timedelta(seconds=older_than), FINAL)
        assert Job.objects.filter(pk__in=before).count() == len(before), "no job with an open letter is pruned"

    # --- What holds ---

    @invariant()
    def every_promise_is_kept(self) -> None:
        self.look()

    def teardown(self) -> None:
        """With the faults over, every job comes to its end."""
        self.bag.mood, self.bag.resting = "well", False
        self.resume_all()
        for number in range(ROUNDS):
            self.pass_time(2 if number % 6 else 700)
            self.tick()
            for job_id in list(self.bag.messages.elements()):
                self.bag.hand_out(job_id)
                runner = claim(job_id)
                if runner is not None:
                    finish(runner, "return")
            world = promises.keep(self.memory)
            if all(job.state in FINAL for job in world.jobs.values()):
                self.tell(world)
                return
        raise AssertionError(
            f"never ended: {[(str(j), j.state, j.reason) for j in world.jobs.values() if j.state in UNFINISHED]}"
        )

    def tell(self, world: World) -> None:
        """What the examples came to."""
        for kind, found in {
            "a replay": world.replays, "a follower": [job for job in world.jobs.values() if job.follows_id],
            "a chord's body that ran": [c for c in self.memory.chords if any(j.attempt for j in world.line(c.body))],
            "a chain that was gone through": [c for c in self.memory.chains if c[-1] in self.memory.entered],
            "a job rescued": [job for job in world.jobs.values() if job.losses],
            "a job of three attempts": [job for job in world.jobs.values() if job.attempt > 2],
            "a job pruned": self.memory.pruned, "five jobs": list(world.jobs)[4:], "ten jobs": list(world.jobs)[9:],
        }.items():  # fmt: skip
            if found:
                tally[kind] += 1

    # --- How it is done ---

    def look(self) -> None:
        self.world = promises.keep(self.memory)
        self.paused = Pause.objects.exists()
        self.room = len(self.in_state(*UNFINISHED)) < ENOUGH

    def in_state(self, *states: State) -> list[Job]:
        return [job for job in self.world.jobs.values() if job.state in states]

    def arrives(self, job_id: UUID) -> Runner | None:
        """A message arrives at a worker, which claims the job if and only if nothing speaks against it."""
        self.bag.hand_out(job_id)
        may = self.may_start(job_id)
        runner = claim(job_id)
        assert (runner is not None) == may
        return runner

    def end_next(self, end: str, which: int = 0) -> None:
        runner = self.arrives(chosen(self.bag.waiting, which))
        if runner is not None:
            self.end(runner, end)

    def entering(self, act: Callable[[], Any]) -> Entered:
        """Do an act; return the jobs that went in by it."""
        serial = ledger.last()
        try:
            act()
        except Died:
            connection.run_on_commit = []
        new = dict.fromkeys(change.job for change in ledger.changes(serial) if change.old is None)
        return multiple(*new)

    def end(self, runner: Runner, end: str) -> None:
        tally["a body that ended in time" if runner.holds else "a body that ended late"] += 1
        if not runner.holds:
            before = promises.everything(), ledger.last()
            end = "return" if end == "enqueue" and runner.job.task != Book.name else end
            finish(runner, end)
            assert (promises.everything(), ledger.last()) == before, "a late runner changes nothing"
            return
        stops = Job.objects.get(pk=runner.job.pk).cancel_requested_at is not None
        self.excuse(runner, end)
        finish(runner, end)
        now = Job.objects.get(pk=runner.job.pk)
        may = MAY_BECOME[end]
        if stops and end not in ("shut down", "replace"):
            may = may - WAITING | {State.CANCELLED}
        assert now.state in may, (end, now.state, now.reason)

    def excuse(self, runner: Runner, end: str) -> None:
        """A job that was handed back or over has no record of that attempt."""
        if end in ("shut down", "replace"):
            self.memory.unrecorded.add((runner.job.pk, runner.job.attempt))

    def do(self, chore: str) -> None:
        verbs = {name: verb for name, _, verb in self.conductor.chores()}
        # It rests as long as its look took: which step would find something would differ by machine.
        self.conductor._reconciler.resting_until = 0.0
        verbs[chore]()

    def pass_time(self, seconds: float) -> None:
        clock.advance(seconds, self.conductor._reconciler)
        self.bag.mood, self.bag.resting = "well", False

    def tick(self) -> None:
        for chore in CHORES:
            self.do(chore)

    def resume_all(self) -> None:
        for pause in Pause.objects.all():
            control.resume(**{pause.kind: pause.name}, by="person")

    def may_start(self, job_id: UUID) -> bool:
        job = lifecycle.seen(job_id)
        if job is None or job.state != State.RESERVED:
            return False
        paused = Pause.objects.filter(Q(kind="task", name=job.task) | Q(kind="queue", name=job.queue)).exists()
        expired = job.expires_at is not None and job.expires_at <= lifecycle.database_now()
        return not paused and not expired

    def owner_of(self, task: str, name: str) -> UUID | None:
        """The job that has a key: for as long as its task says, or while it is unfinished."""
        held = Key.objects.filter(task=task, key=name).exclude(expires_at__lte=lifecycle.database_now()).first()
        if held is not None:
            return held.job_id
        return Job.objects.filter(task=task, key=name, state__in=UNFINISHED).values_list("pk", flat=True).first()

    def open_letters(self) -> list[DeadLetter]:
        return [one for letters in self.world.letters.values() for one in letters if one.status == Status.OPEN]

    def enter_chord(self, members: list[str]) -> Any:
        kinds: dict[str, Callable[[], Any]] = {
            "plain": lambda: step.s("member"), "key": lambda: bodies.Unfinished.s("a"),
            "booking": lambda: Book.s("in a chord"), "chain": lambda: chain(step.s("head"), then.s("tail")),
        }  # fmt: skip
        self.remember_chord(chord([kinds[member]() for member in members], gather.s()).apply_async())

    def remember_chain(self, result: Any) -> None:
        line = [UUID(result.id)]
        while result.parent is not None:
            result = result.parent
            line.insert(0, UUID(result.id))
        self.memory.chains.append(tuple(line))

    def remember_chord(self, result: Any) -> None:
        header = result.parent
        members = tuple(UUID(member.id) for member in header.results)
        heads = {UUID(member.id): UUID(member.parent.id) for member in header.results if member.parent is not None}
        self.memory.chords.append(Chord(UUID(header.id), members, UUID(result.id), heads))


def chosen(among: list[Any], which: int) -> Any:
    """One of several."""
    return among[which % len(among)]


def refusable(act: Callable[[], Any]) -> None:
    """Do what a person asked for, if it can be done."""
    try:
        act()
    except Refused:
        return


@pytest.fixture
def bag(transactional_db: None) -> Iterator[Bag]:
    """The broker of the test, and the ledger of what it does."""
    with ledger.kept(), in_place_of(publisher.in_use()) as bag:
        yield bag


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_every_promise_is_kept_whatever_happens_to_a_few_jobs(bag: Bag) -> None:
    explore(Platform, examples=50, steps=40)
