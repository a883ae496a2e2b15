"""What must hold after every step, whatever the steps were: one function for each sentence."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any
from uuid import UUID

from django.contrib.auth.models import Group

from dlq.models import DeadLetter, Replay, Status
from jobs import payload
from jobs.models import Attempt, FanIn, Job, Key
from jobs.states import FINAL, MOVES, UNFINISHED, WAITING, State
from tests.machine import ledger
from tests.machine.bodies import Book, mourn, then
from tests.machine.ledger import Change


@dataclass(frozen=True, slots=True)
class Chord:
    """A chord as it was enqueued: its members' places, the heads of chains among them, and its body."""

    fanin: UUID
    members: tuple[UUID, ...]
    body: UUID
    heads: dict[UUID, UUID] = field(default_factory=dict)


@dataclass(slots=True)
class Memory:
    """What the test remembers by itself, apart from the rows."""

    serial: int = 0
    tokens: dict[tuple[UUID, int], UUID] = field(default_factory=dict)
    entered: dict[UUID, None] = field(default_factory=dict)  # in this order
    ended: dict[UUID, State] = field(default_factory=dict)
    pruned: set[UUID] = field(default_factory=set)
    unrecorded: set[tuple[UUID, int]] = field(default_factory=set)
    chains: list[tuple[UUID, ...]] = field(default_factory=list)
    chords: list[Chord] = field(default_factory=list)
    settled: dict[UUID, set[UUID]] = field(default_factory=lambda: defaultdict(set))
    completed: dict[UUID, set[UUID]] = field(default_factory=lambda: defaultdict(set))

    def learn(self, change: Change) -> None:
        """Take note of a change that was found in order."""
        self.serial = change.serial
        if change.old is None:
            self.entered[change.job] = None
        if change.claims:
            assert change.attempt is not None
            assert change.token is not None
            self.tokens[change.job, change.attempt] = change.token
        if change.new in FINAL and change.new is not None:
            self.ended[change.job] = change.new
        if change.new is None:
            self.pruned.add(change.job)


@dataclass(frozen=True, slots=True)
class World:
    """All rows, read at once."""

    jobs: dict[UUID, Job]
    attempts: dict[UUID, set[int]]
    letters: dict[UUID, list[DeadLetter]]
    replays: list[Replay]
    fanins: dict[UUID, FanIn]
    keys: list[Key]
    effects: list[str]

    @classmethod
    def seen(cls) -> World:
        attempts: dict[UUID, set[int]] = defaultdict(set)
        for job_id, number in Attempt.objects.values_list("job_id", "number"):
            attempts[job_id].add(number)
        letters: dict[UUID, list[DeadLetter]] = defaultdict(list)
        for letter in DeadLetter.objects.order_by("pk"):
            letters[letter.job_id].append(letter)
        return cls(
            {job.pk: job for job in Job.objects.order_by("created_at", "id")}, attempts, letters,
            list(Replay.objects.select_related("letter")), {fanin.pk: fanin for fanin in FanIn.objects.all()},
            list(Key.objects.all()), list(Group.objects.values_list("name", flat=True)),
        )  # fmt: skip

    def line(self, job_id: UUID) -> list[Job]:
        """A job and its replays."""
        return [job for job in self.jobs.values() if job_id in (job.pk, job.origin_id)]


def keep(memory: Memory) -> World:
    """Check every change since the last look, then every promise; return what was seen."""
    for change in ledger.changes(memory.serial):
        for rule in OF_CHANGES:
            rule(change, memory)
        memory.learn(change)
    world = World.seen()
    for promise in OF_WORLDS:
        promise(world, memory)
    return world


def everything() -> list[Any]:
    """All that is written anywhere, to compare."""
    models: list[Any] = [Job, Attempt, DeadLetter, Replay, FanIn, Key, Group]
    return [list(model.objects.order_by("pk").values()) for model in models]


# --- Of every change of a row ------------------------------------------------------------------------


def a_job_moves_only_along_its_moves(change: Change, memory: Memory) -> None:
    if change.old is not None and change.new is not None and change.old is not change.new:
        assert change.new in MOVES[change.old], change


def a_job_begins_unclaimed(change: Change, memory: Memory) -> None:
    if change.old is None:
        assert change.new in (State.PENDING, State.RESERVED, State.FAILED), change
        assert (change.attempt, change.token) == (0, None), change


def a_final_job_never_changes(change: Change, memory: Memory) -> None:
    assert change.old not in FINAL or change.new is None, change


def only_finished_jobs_are_pruned(change: Change, memory: Memory) -> None:
    assert change.new is not None or change.old in FINAL, change


def only_a_claim_begins_an_attempt_and_it_has_a_token_of_its_own(change: Change, memory: Memory) -> None:
    if change.old is None or change.new is None:
        return
    if not change.claims:
        assert (change.attempt, change.token) == (change.old_attempt, change.old_token), change
        return
    assert change.old is State.RESERVED, change
    assert change.attempt == (change.old_attempt or 0) + 1, change
    assert change.token not in (None, *memory.tokens.values()), change


def a_job_that_was_asked_to_stop_is_not_started(change: Change, memory: Memory) -> None:
    assert not (change.claims and change.asked_to_stop), change


OF_CHANGES: list[Callable[[Change, Memory], None]] = [
    a_job_moves_only_along_its_moves,
    a_job_begins_unclaimed,
    a_final_job_never_changes,
    only_finished_jobs_are_pruned,
    only_a_claim_begins_an_attempt_and_it_has_a_token_of_its_own,
    a_job_that_was_asked_to_stop_is_not_started,
]


# --- Of all rows --------------------------------------------------------------------------------------


def every_job_that_went_in_is_there_or_was_pruned(world: World, memory: Memory) -> None:
    assert set(world.jobs) == set(memory.entered) - memory.pruned


def every_attempt_that_did_not_complete_its_job_has_a_record(world: World, memory: Memory) -> None:
    for job in world.jobs.values():
        completing = job.state == State.RUNNING or (job.state == State.COMPLETED and job.follows_id is None)
        ended = set(range(1, job.attempt + (not completing)))
        unrecorded = {number for job_id, number in memory.unrecorded if job_id == job.pk}
        assert world.attempts[job.pk] - unrecorded == ended - unrecorded, (job.state, job.reason, job.attempt)


def a_job_has_failed_if_and_only_if_it_has_one_letter(world: World, memory: Memory) -> None:
    for job in world.jobs.values():
        assert len(world.letters[job.pk]) == (job.state == State.FAILED), (job, job.reason)


def a_letter_is_open_until_somebody_closes_it(world: World, memory: Memory) -> None:
    replayed = {replay.letter_id for replay in world.replays}
    for letter in (letter for letters in world.letters.values() for letter in letters):
        assert (letter.status == Status.OPEN) == (letter.closed_by == ""), letter.status
        assert (letter.status == Status.REPLAYED) == (letter.pk in replayed), letter.status
    assert {replay.job_id for replay in world.replays} <= set(memory.entered)


def a_key_has_one_unfinished_job(world: World, memory: Memory) -> None:
    held = Counter((job.task, job.key) for job in world.jobs.values() if job.key and job.state in UNFINISHED)
    assert not held or max(held.values()) == 1, held


def a_held_key_names_a_job_that_went_in(world: World, memory: Memory) -> None:
    assert {key.job_id for key in world.keys} <= set(memory.entered)


def a_job_that_waits_has_a_time_or_waits_for_something(world: World, memory: Memory) -> None:
    for job in world.jobs.values():
        if job.state in WAITING and job.due_at is None:
            assert waits_for_a_chord(world, job) or waits_for_a_job(world, job), (job.state, job.reason)


def waits_for_a_chord(world: World, job: Job) -> bool:
    fanin = world.fanins.get(job.waits_for_id) if job.waits_for_id else None
    return fanin is not None and fanin.remaining > 0


def waits_for_a_job(world: World, job: Job) -> bool:
    owner = world.jobs.get(job.follows_id) if job.follows_id else None
    return owner is not None and owner.state in UNFINISHED and owner.followed


def a_reserved_job_was_sent(world: World, memory: Memory) -> None:
    for job in world.jobs.values():
        if job.state == State.RESERVED:
            assert job.sends >= 1, job.reason
            assert job.sent_at is not None


def a_follower_settles_as_its_owner(world: World, memory: Memory) -> None:
    for job in world.jobs.values():
        owner = world.jobs.get(job.follows_id) if job.follows_id else None
        if owner is not None and owner.state in FINAL and "wait for itself" not in job.reason:
            assert job.state in (owner.state, State.CANCELLED), (job.state, job.reason, owner.state)


def the_next_of_a_chain_enters_with_the_end_of_the_one_before(world: World, memory: Memory) -> None:
    for chain in memory.chains:
        for before, after in pairwise(chain):
            line = world.line(before)
            if line and before not in memory.pruned:
                assert (after in memory.entered) == any(job.state == State.COMPLETED for job in line), line


def what_is_linked_enters_once_with_the_end(world: World, memory: Memory) -> None:
    children = Counter((job.parent_id, job.task) for job in world.jobs.values())
    for job in world.jobs.values():
        if '"links":[{' in job.canvas and not memory.pruned:
            assert children[job.pk, then.name] == (job.state == State.COMPLETED), job.state
            assert children[job.pk, mourn.name] == (job.state in (State.FAILED, State.CANCELLED)), job.state


def a_chord_counts_each_member_once(world: World, memory: Memory) -> None:
    for chord in memory.chords:
        settled, completed = memory.settled[chord.fanin], memory.completed[chord.fanin]
        for member in chord.members:
            _look_at(member, chord, world, memory)
        fanin = world.fanins.get(chord.fanin)
        if fanin is None:  # it goes with the last of its members; the end of a chain that broke never came
            assert settled == set(chord.members)
            assert memory.pruned & {chord.body, *chord.members}
            continue
        assert fanin.size == len(chord.members)
        assert fanin.remaining == fanin.size - len(settled), (fanin.remaining, fanin.size, settled)
        assert set(fanin.failed) == {str(member) for member in settled - completed}, (fanin.failed, settled, completed)


def _look_at(member: UUID, chord: Chord, world: World, memory: Memory) -> None:
    """Remember that a member has settled: as itself, as its replay, or because the chain never came to it."""
    states = {job.state for job in world.line(member)}
    head = chord.heads.get(member)
    # The chain before it ended for good without it. Its replay may still bring it; then it counts as repaired.
    stranded = head is not None and any(job.state in FINAL - {State.COMPLETED} for job in world.line(head))
    if stranded or states & FINAL:
        memory.settled[chord.fanin].add(member)
    if State.COMPLETED in states:
        memory.completed[chord.fanin].add(member)


def a_chord_releases_its_body_once_when_all_members_completed(world: World, memory: Memory) -> None:
    for chord in memory.chords:
        line = world.line(chord.body)
        released = [job for job in line if not payload.decode(job.payload).waits()]
        all_completed = memory.completed[chord.fanin] == set(chord.members)
        if chord.body in memory.pruned or any(job.state == State.CANCELLED for job in line):
            continue
        assert bool(released) == all_completed, [(job.state, job.reason, job.payload) for job in line]
        unfinished = [job for job in line if job.state in UNFINISHED]
        assert len(unfinished) <= 1, [(job.state, job.reason) for job in line]


def a_transactional_task_has_its_effect_once_and_only_if_it_completed(world: World, memory: Memory) -> None:
    effects = Counter(effect.split()[0] for effect in world.effects)
    assert not effects or max(effects.values()) == 1, effects
    for job in world.jobs.values():
        handed_over = job.follows_id is not None and job.attempt > 0  # its body ended, by naming another one
        if job.task == Book.name and not handed_over:
            assert effects[str(job.pk)] == (job.state == State.COMPLETED and job.follows_id is None), job.state


OF_WORLDS: list[Callable[[World, Memory], None]] = [
    every_job_that_went_in_is_there_or_was_pruned,
    every_attempt_that_did_not_complete_its_job_has_a_record,
    a_job_has_failed_if_and_only_if_it_has_one_letter,
    a_letter_is_open_until_somebody_closes_it,
    a_key_has_one_unfinished_job,
    a_held_key_names_a_job_that_went_in,
    a_job_that_waits_has_a_time_or_waits_for_something,
    a_reserved_job_was_sent,
    a_follower_settles_as_its_owner,
    the_next_of_a_chain_enters_with_the_end_of_the_one_before,
    what_is_linked_enters_once_with_the_end,
    a_chord_counts_each_member_once,
    a_chord_releases_its_body_once_when_all_members_completed,
    a_transactional_task_has_its_effect_once_and_only_if_it_completed,
]
