"""Circuit breakers on the database: what is parked, what is let through, and that no attempt is lost by it."""

import json
import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from celery import chord
from django.contrib.auth.models import Group
from django.db import connection, connections, transaction
from django.db.models import F

from dlq import replay
from dlq.models import DeadLetter
from jobs import bulk, circuits, control, handover, lanes, lifecycle, rescue
from jobs.breaker import Breaker, Phase
from jobs.errors import PermanentError, Refused
from jobs.explain import explain
from jobs.failures import Failure, Kind
from jobs.messages import HEADER
from jobs.models import Act, Attempt, Circuit, Job, Lane, Share, Slot, Worker
from jobs.states import Priority, State
from tests.jobs.cli import run
from tests.platform import Witness, attempt, drain, fresh, hurry, running
from tests.sample.tasks import Book, collect, note, pay, picky, serve, sinking

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def around(sent: list[str]) -> Iterator[None]:
    """A worker with many hands; nothing goes to a broker."""
    lanes._flows.clear()
    now = lifecycle.database_now()
    Worker.objects.create(name="w", pid=1, started_at=now, seen_at=now, queues=["default"], concurrency=50)
    yield
    lanes._flows.clear()


def passed(seconds: float) -> None:
    """Let circuits and closed lanes have waited for so long."""
    ago = timedelta(seconds=seconds)
    Circuit.objects.exclude(open_until=None).update(open_until=F("open_until") - ago, opened_at=F("opened_at") - ago)
    Circuit.objects.exclude(wake_at=None).update(wake_at=F("wake_at") - ago)
    Lane.objects.update(open_at=F("open_at") - ago)
    Share.objects.update(open_at=F("open_at") - ago)


def name(job: Any) -> str:
    content = json.loads(Job.objects.get(pk=job.pk).payload)
    return str((content.get("args") or [*content["kwargs"].values()])[0])


def released(limit: int = 1000) -> list[str]:
    return [name(job) for job in lanes.release(limit)]


def failing(many: int, how: str = "transient", task: Any = pay) -> list[Any]:
    """So many jobs have failed once."""
    jobs = [task.delay(f"fails {number}", how=how) for number in range(many)]
    lanes.release(1000)
    for job in jobs:
        attempt(job.id)
    return jobs


def phase(key: str = "gateway") -> Phase:
    return circuits.phase(Circuit.objects.get(key=key))


# --- It opens ---------------------------------------------------------------------------------------


def test_jobs_that_wait_are_parked_and_those_of_other_keys_go_on() -> None:
    failing(3)
    pay.delay("waits")
    serve.delay("goes on", "ann")
    assert phase() is Phase.OPEN
    hurry()
    assert released() == ["goes on"]


def test_fewer_failures_do_not_open_it() -> None:
    failing(2)
    pay.delay("goes on")
    assert "goes on" in released()


def test_failures_of_long_ago_do_not_count() -> None:
    failing(2)
    Circuit.objects.update(failed_at=[at - 61 for at in Circuit.objects.get().failed_at])
    failing(1)
    assert phase() is Phase.CLOSED


def test_what_was_handed_to_the_broker_is_taken_back_and_loses_no_attempt() -> None:
    held = [pay.delay(f"held {number}") for number in range(3)]
    other = serve.delay("other", "ann")
    lanes.release(1000)
    failing(3)
    assert [(fresh(job).state, fresh(job).attempt, fresh(job).reason) for job in held] == [
        (State.PENDING, 0, circuits.PARKED)
    ] * 3
    assert fresh(other).state == State.RESERVED


def test_a_job_whose_turn_comes_while_it_is_open_is_not_run(witness: Witness) -> None:
    job = pay.delay("late")
    failing(3)
    # As where a release chose it just before, and its message is on its way.
    Job.objects.filter(pk=job.id).update(state=State.RESERVED)
    Slot.objects.get_or_create(job_id=job.id, key=circuits.slot("gateway"))
    attempt(job.id)
    assert (fresh(job).state, fresh(job).attempt) == (State.PENDING, 0)
    assert fresh(job).reason == circuits.PARKED
    assert "pay:late" not in witness.lines


def test_a_claim_for_another_task_does_not_look_at_circuits() -> None:
    job = note.delay("x")
    with CaptureStatements() as statements:
        running(job.id)
    assert not any("jobs_circuit" in statement for statement in statements)


class CaptureStatements:
    """The statements of this connection."""

    def __enter__(self) -> list[str]:
        self.seen: list[str] = []

        def keep(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
            self.seen.append(sql)
            return execute(sql, params, many, context)

        self.wrapper = connection.execute_wrapper(keep)
        self.wrapper.__enter__()
        return self.seen

    def __exit__(self, *error: Any) -> None:
        self.wrapper.__exit__(*error)


def test_a_task_without_breakers_pays_nothing() -> None:
    job = note.delay("x")
    with CaptureStatements() as statements:
        attempt(job.id)
    assert not any("jobs_circuit" in sql or "jobs_slot" in sql for sql in statements)


def test_a_job_that_waits_for_its_retry_is_parked_and_keeps_its_attempts() -> None:
    jobs = failing(3)
    hurry()
    assert released() == []
    assert [(fresh(job).state, fresh(job).attempt, fresh(job).max_attempts) for job in jobs] == [
        (State.RETRYING, 1, 4)
    ] * 3


@pytest.mark.parametrize(("how", "counts"), [("permanent", False), ("rate", False), ("snooze", False),
                                             ("unclassified", True), ("ambiguous", True)])  # fmt: skip
def test_what_a_body_raises_counts_as_its_kind_says(how: str, counts: bool) -> None:
    failing(3, how)
    assert Circuit.objects.exclude(open_until=None).exists() == counts


def test_only_what_on_names_counts() -> None:
    for how in ("transient", "unclassified", "permanent"):
        job = picky.delay(how)
        lanes.release(10)
        attempt(job.id)
    assert len(Circuit.objects.get(key="nobody").failed_at) == 1


def test_each_failed_attempt_of_one_job_counts() -> None:
    pay.delay("again", how="transient")
    assert drain() == 3
    assert phase() is Phase.OPEN
    assert Job.objects.get().attempt == 3


def test_a_success_in_between_begins_the_row_anew() -> None:
    for number in range(4):
        serve.delay(f"x{number}", "ann", "unclassified")
    drain()
    assert len(Circuit.objects.get(key="user:ann").failed_at) == 4
    serve.delay("good", "ann")
    drain()
    assert Circuit.objects.get(key="user:ann").failed_at == []
    serve.delay("bad again", "ann", "unclassified")
    drain()
    assert phase("user:ann") is Phase.CLOSED
    assert len(Circuit.objects.get(key="shop").failed_at) == 5  # within a minute, whatever succeeds


def test_a_lost_worker_does_not_count() -> None:
    jobs = [pay.delay(str(number)) for number in range(3)]
    lanes.release(10)
    for job in jobs:
        running(job.id, lease=-1)
    assert rescue.rescue() == 3
    assert not Circuit.objects.exists()


# --- It is probed -----------------------------------------------------------------------------------


def parked(many: int = 5) -> list[Any]:
    """So many jobs are parked by a circuit that is half-open now."""
    failing(3, "unclassified")
    jobs = [pay.delay(f"waits {number}") for number in range(many)]
    assert released() == []
    passed(301)
    return jobs


def test_after_its_time_one_probe_is_let_through() -> None:
    parked()
    assert phase() is Phase.HALF_OPEN
    assert released() == ["waits 0"]
    assert released() == []


def test_a_look_before_a_release_sees_that_its_time_has_come() -> None:
    failing(3, "unclassified")
    pay.delay("waits")
    released()
    released()
    assert not lanes.changes(0.1)[0]
    Circuit.objects.update(open_until=lifecycle.database_now(), wake_at=lifecycle.database_now())
    assert lanes.changes(0.1)[0]


def test_nothing_is_let_through_before() -> None:
    failing(3, "unclassified")
    pay.delay("waits")
    released()
    passed(290)
    assert released() == []


def test_a_probe_that_completes_lets_all_others_go() -> None:
    jobs = parked()
    released()
    attempt(jobs[0].id)
    assert phase() is Phase.CLOSED
    assert released() == ["waits 1", "waits 2", "waits 3", "waits 4"]


def test_a_probe_that_fails_parks_the_others_for_longer() -> None:
    parked(2)
    pay.apply_async(("bad",), {"how": "transient"}, priority="high")
    assert released() == ["bad"]
    attempt(Job.objects.get(state=State.RESERVED).pk)
    circuit = Circuit.objects.get()
    assert (phase(), circuit.openings) == (Phase.OPEN, 2)
    assert circuit.open_until - circuit.opened_at == timedelta(seconds=600)
    hurry()
    assert released() == []
    passed(601)
    assert len(released()) == 1


def test_a_probe_that_says_nothing_makes_room_for_the_next() -> None:
    jobs = parked()
    released()
    running(jobs[0].id, lease=-1)
    rescue.rescue()  # it was lost, and waits for its retry
    Job.objects.filter(pk=jobs[0].id).update(due_at=F("due_at") + timedelta(hours=1))
    assert released() == ["waits 1"]
    control.cancel(UUID(str(jobs[1].id)), reason="no more", by="ann")
    assert released() == ["waits 2"]
    assert phase() is Phase.HALF_OPEN


def test_a_job_that_comes_while_it_is_half_open_waits_for_the_probe() -> None:
    jobs = parked(1)
    released()
    pay.apply_async(("new",), tenant="new")
    assert released() == []
    attempt(jobs[0].id)
    assert released() == ["new"]


def test_a_probe_of_the_time_before_decides_nothing() -> None:
    for number in range(2):
        Book.delay(f"bad {number}", "unclassified")
    drain()
    passed(61)
    slow, bad = Book.delay("slow"), Book.delay("bad", "unclassified")
    assert len(lanes.release(10)) == 2
    running(slow.id)
    attempt(bad.id)
    assert phase(Book.name) is Phase.OPEN
    passed(121)
    circuits.note_success(UUID(str(slow.id)))
    circuit = Circuit.objects.get(key=Book.name)
    assert (phase(Book.name), circuit.succeeded) == (Phase.HALF_OPEN, 0)


def test_what_runs_since_before_it_opened_decides_nothing() -> None:
    slow = pay.delay("slow")
    lanes.release(10)
    claimed = running(slow.id)
    failing(3, "unclassified")
    passed(301)
    circuits.note_success(claimed.pk)
    assert phase() is Phase.HALF_OPEN
    circuits.note_failure(fresh(slow), pay.breakers, Failure(Kind.TRANSIENT, ""), OSError())
    assert phase() is Phase.HALF_OPEN


def test_the_first_probe_that_is_due_goes_though_others_are_before_it_in_line() -> None:
    failing(3, "unclassified")
    for number in range(30):
        pay.apply_async((f"later {number}",), tenant=f"t{number}", priority="high")
    pay.apply_async(("due",), tenant="z", priority="low")
    released()
    later = Job.objects.filter(priority=Priority.HIGH, state=State.PENDING)
    later.update(due_at=lifecycle.database_now() + timedelta(hours=1))
    Lane.objects.filter(priority=Priority.HIGH).update(head_at=lifecycle.database_now() + timedelta(hours=1))
    passed(301)
    assert released() == ["due"]


def test_no_lane_is_left_behind_when_a_circuit_closes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "ALL_AT_ONCE", 7)
    failing(3, "unclassified")
    for number in range(40):
        pay.apply_async((f"{number}",), tenant=f"t{number}")
    assert released() == []
    passed(301)
    lanes.release(100)
    attempt(Job.objects.get(state=State.RESERVED).pk)
    assert drain() == 39


def test_a_body_in_a_transaction_counts_with_its_rows() -> None:
    for number in range(2):
        Book.delay(f"bad {number}", "unclassified")
    drain()
    assert phase(Book.name) is Phase.OPEN
    Book.delay("first")
    Book.delay("second")
    Book.delay("third")
    lanes.release(10)
    passed(61)
    assert len(lanes.release(10)) == 2
    for job in Job.objects.filter(state=State.RESERVED):
        attempt(job.pk)
    assert phase(Book.name) is Phase.CLOSED
    assert Group.objects.count() == 2
    drain()
    assert Group.objects.count() == 3


def test_a_circuit_is_told_after_the_chord_whatever_becomes_of_a_job() -> None:
    for number in range(2):
        serve.delay(f"{number}", "ann", "unclassified")
    drain()
    for how in ("fine", "unclassified"):
        job = chord([serve.s(how, "ann", how)])(collect.s()).parent[0]
        lanes.release(10)
        with CaptureStatements() as statements:
            attempt(job.id)
        told = [place for place, sql in enumerate(statements) if sql.startswith('UPDATE "jobs_circuit"')]
        counted = [place for place, sql in enumerate(statements) if "jobs_fanin" in sql]
        assert told
        assert counted
        assert max(counted) < min(told)


def test_an_outcome_that_matters_to_a_circuit_is_not_left_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[Job] = []
    monkeypatch.setattr(handover, "take", lambda job, result: left.append(job) or not circuits.await_success(job.pk))
    probe, *others = parked()
    released()
    attempt(probe.id)
    assert (phase(), fresh(probe).state) == (Phase.CLOSED, State.COMPLETED)
    released()
    attempt(others[0].id)
    assert [job.pk for job in left if not circuits.await_success(job.pk)][-1:] == [UUID(str(others[0].id))]


def test_a_claim_ahead_of_its_turn_is_never_made_for_a_task_with_breakers() -> None:
    from jobs import grouped

    assert grouped._guarded(pay.name)
    assert not grouped._guarded(note.name)
    assert not grouped._guarded("of.nobody")
    asked = [Request(task.name, str(uuid4())) for task in (pay, note)]
    assert set(grouped.Grouped()._claimable(asked)) == {asked[1].id}


class Request:
    """A request of a worker that waits for its turn."""

    def __init__(self, task: str, job_id: str) -> None:
        self.id, self.request_dict = job_id, {"task": task, HEADER: {"job": job_id}}


def test_jobs_of_a_bulk_are_bound_too() -> None:
    failing(3)
    bulk.bulk(pay, [(f"{number}",) for number in range(20)])
    assert released() == []


# --- What people see and do -------------------------------------------------------------------------


def test_why_it_waits_is_explained() -> None:
    failing(3)
    job = pay.delay("waits")
    lanes.release(10)
    (part,) = [part for part in explain(job.id).parts if part.word == "circuit"]
    assert part.until == Circuit.objects.get().open_until
    assert part.sentence.startswith("The circuit gateway is open until ")
    assert "by 3 failures, last TransientError." in part.sentence
    Job.objects.filter(pk=job.id).update(due_at=F("due_at") + timedelta(hours=1))
    assert [part.word for part in explain(job.id).parts][:2] == ["scheduled", "circuit"]
    Job.objects.filter(pk=job.id).update(due_at=F("due_at") - timedelta(hours=1))
    passed(301)
    lanes.release(10)
    second = pay.delay("second")
    assert "The circuit gateway is half-open" in explain(second.id).sentence


def test_an_operator_closes_it_and_is_on_record() -> None:
    jobs = failing(3, "unclassified")
    pay.delay("waits")
    assert released() == []
    assert [row.key for row in control.breakers()] == ["gateway"]
    control.reset_breaker("gateway", by="ann", reason="they are back")
    assert phase() is Phase.CLOSED
    assert released() == ["waits"]
    act = Act.objects.get()
    assert (act.verb, act.by, act.target, act.reason) == ("reset breaker", "ann", "gateway", "they are back")
    assert len(jobs) == 3


def test_a_circuit_that_nobody_knows_cannot_be_reset() -> None:
    failing(1)
    with pytest.raises(Refused, match=r"'gate'\. There are: gateway\."):
        control.reset_breaker("gate", by="ann")
    assert not Act.objects.exists()


def test_the_command_line_lists_and_resets() -> None:
    assert run("jobs", "breakers").out.strip() == "No breaker knows of a failure."
    failing(3)
    assert "gateway  open" in run("jobs", "breakers").out
    told = json.loads(run("jobs", "breakers", "--json").out)["breakers"][0]
    assert (told["key"], told["circuit"], told["failures"]) == ("gateway", "open", 3)
    assert run("jobs", "reset-breaker", "gateway", "--by", "ann").out.strip() == "The circuit gateway is closed."
    assert run("jobs", "reset-breaker", "nobody").code == 1
    assert Act.objects.get().by == "ann"


def test_circuits_that_have_been_closed_for_long_are_forgotten() -> None:
    failing(1)
    lanes.mend()
    assert Circuit.objects.exists()
    Circuit.objects.update(changed_at=F("changed_at") - timedelta(days=8))
    lanes.mend()
    assert not Circuit.objects.exists()


def test_an_open_circuit_is_never_forgotten() -> None:
    failing(3)
    Circuit.objects.update(changed_at=F("changed_at") - timedelta(days=8), wake_at=None)
    lanes.mend()
    assert Circuit.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_an_outcome_is_recorded_though_somebody_keeps_the_circuit_locked(monkeypatch: pytest.MonkeyPatch) -> None:
    if connection.vendor != "postgresql":
        pytest.skip("SQLite has no locks of rows")
    monkeypatch.setattr(lifecycle, "LOCK_PATIENCE", 0.1)
    failing(1)
    job = pay.delay("second", how="transient")
    lanes.release(10)
    other = connections["default"].copy("other")
    try:
        with other.cursor() as cursor:
            cursor.execute("BEGIN")
            cursor.execute("SELECT 1 FROM jobs_circuit FOR UPDATE")
            attempt(job.id)
            cursor.execute("ROLLBACK")
    finally:
        other.close()
    assert fresh(job).state == State.RETRYING
    assert len(Circuit.objects.get().failed_at) == 1


@pytest.mark.django_db(transaction=True)
def test_failures_of_one_moment_are_all_counted() -> None:
    if connection.vendor != "postgresql":
        pytest.skip("SQLite has one writer")
    jobs = [picky.delay("permanent") for _ in range(6)]
    declared = Breaker("nobody", failures=100, on=(PermanentError,))
    ready = threading.Barrier(len(jobs))

    def fail(job_id: str) -> None:
        job = Job.objects.get(pk=job_id)
        ready.wait()
        with transaction.atomic():
            circuits.note_failure(job, [declared], Failure(Kind.PERMANENT, ""), PermanentError())
        connection.close()

    threads = [threading.Thread(target=fail, args=(job.id,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(Circuit.objects.get().failed_at) == len(jobs)


# --- A lower priority on retry ----------------------------------------------------------------------


def tried(job: Any) -> list[str]:
    """At which priorities a job was tried."""
    numbers = Attempt.objects.filter(job_id=job.id).order_by("number").values_list("priority", flat=True)
    return [Priority(number).name.lower() for number in numbers if number is not None]


def test_a_job_that_fails_comes_back_lower_and_then_is_dead() -> None:
    job = sinking.apply_async(("x",), priority="high")
    drain()
    assert tried(job) == ["high", "normal", "low"]
    assert fresh(job).state == State.FAILED
    assert DeadLetter.objects.filter(job_id=job.id).exists()


def test_a_job_that_went_directly_comes_back_in_a_lane() -> None:
    job = sinking.delay("x")
    assert fresh(job).lane == ""
    attempt(job.id)
    assert (fresh(job).priority, fresh(job).state) == (Priority.LOW, State.RETRYING)
    assert fresh(job).lane
    assert released() == ["x"]


def test_what_consumes_no_attempt_does_not_lower() -> None:
    for how in ("rate", "snooze"):
        job = sinking.apply_async((how, how), priority="high")
        lanes.release(10)
        attempt(job.id)
        assert fresh(job).priority == Priority.HIGH
    lost = sinking.apply_async(("lost",), priority="high")
    lanes.release(10)
    running(lost.id, lease=-1)
    rescue.rescue()
    assert fresh(lost).priority == Priority.HIGH


def test_a_replay_has_the_priority_that_the_job_began_with() -> None:
    job = sinking.apply_async(("x",), priority="high")
    drain()
    assert fresh(job).priority == Priority.LOW
    letter = DeadLetter.objects.get()
    repeated = replay.replay(letter.pk, by="ann")
    assert repeated.priority == Priority.HIGH


def test_a_replay_has_another_priority_where_one_is_said() -> None:
    for wanted in ("critical", "low"):
        sinking.apply_async((wanted,), priority="high")
    drain()
    first, second = DeadLetter.objects.order_by("pk")
    with pytest.raises(Refused, match="urgent"):
        replay.replay(first.pk, by="ann", priority="urgent")
    assert replay.replay(first.pk, by="ann", priority="critical").priority == Priority.CRITICAL
    assert run("dlq", "replay", second.pk, "--priority", "low").code == 0
    assert Job.objects.latest("created_at", "id").priority == Priority.LOW
