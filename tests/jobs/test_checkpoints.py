"""Steps and cursors: what a body has finished is kept, and given to its next attempt. Attempts run here."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from django.contrib.auth.models import Group
from django.db import OperationalError, transaction

from dlq.models import DeadLetter
from dlq.replay import replay
from jobs import checkpoints, lifecycle, retention
from jobs.errors import CheckpointError, JobCancelled, LeaseLost, TransientError
from jobs.models import Checkpoint, Job
from jobs.payload import Payload
from jobs.states import State
from tests.platform import attempt, drain, fresh, hurry
from tests.sample import tasks as sample

pytestmark = pytest.mark.django_db

Body = Callable[[Any], Any]
Act = Callable[[Body], Job]


class Gone(Exception):
    """What a body raises here to end its attempt without an end of its job."""


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> Act:
    """Enqueue a job with this body and run one attempt of it; with the same body again, the next attempt."""
    return lambda body: again(sample.Stepwise.delay(), body, monkeypatch)


@pytest.fixture
def resumed(monkeypatch: pytest.MonkeyPatch) -> Callable[[Job, Body], Job]:
    """Run the next attempt of a job, with this body."""
    return lambda job, body: again(job, body, monkeypatch)


def again(job: Any, body: Body, monkeypatch: pytest.MonkeyPatch) -> Job:
    from project.celery import app

    task = app.tasks[sample.Stepwise.name]
    monkeypatch.setattr(task, "run", lambda payload=None: body(task), raising=True)
    hurry()
    lifecycle.reserve_due(10)
    attempt(getattr(job, "pk", None) or job.id)
    found: Job = fresh(job)
    return found


def later() -> Any:
    raise TransientError("later")


def kept() -> dict[str, Any]:
    """What is kept, by name."""
    return {row.name: json.loads(row.value) for row in Checkpoint.objects.all()}


# --- Steps ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["step", "atomic_step"])
def test_a_step_is_done_once_and_its_result_given_back(ran: Act, resumed: Any, verb: str) -> None:
    calls, seen = [], []

    def charge(order: int) -> str:
        calls.append(order)
        return f"r-{order}"

    def body(task: Any) -> str:
        seen.append(getattr(task, verb)("charge", charge, order=7))
        return later() if len(seen) == 1 else str(seen[-1])

    job = ran(body)
    assert job.state == State.RETRYING
    job = resumed(job, body)
    assert (job.state, job.result, calls, seen) == (State.COMPLETED, '"r-7"', [7], ["r-7", "r-7"])


def test_a_step_that_raises_is_done_again(ran: Act, resumed: Any) -> None:
    calls: list[int] = []

    def charge() -> None:
        calls.append(1)
        if len(calls) == 1:
            later()

    job = resumed(ran(lambda task: task.step("charge", charge)), lambda task: task.step("charge", charge))
    assert (job.state, len(calls)) == (State.COMPLETED, 2)


@pytest.mark.parametrize("verb", ["step", "atomic_step"])
def test_a_body_may_try_a_step_again_that_raised(ran: Act, verb: str) -> None:
    calls: list[int] = []

    def charge() -> int:
        calls.append(1)
        if len(calls) == 1:
            raise ConnectionError
        return 7

    def body(task: Any) -> int:
        with suppress(ConnectionError):
            getattr(task, verb)("charge", charge)
        found: int = getattr(task, verb)("charge", charge)
        return found

    job = ran(body)
    assert (job.state, job.result, len(calls)) == (State.COMPLETED, "7", 2)


def test_a_step_that_was_refused_in_a_transaction_may_be_done_behind_it(ran: Act) -> None:
    def body(task: Any) -> None:
        with suppress(CheckpointError), transaction.atomic(durable=False):
            task.step("charge", int)
        task.step("charge", int)

    assert ran(body).state == State.COMPLETED


def test_a_result_of_none_is_a_result(ran: Act, resumed: Any) -> None:
    calls: list[int] = []

    def body(task: Any) -> None:
        task.step("tell", calls.append, 1)
        if len(calls) == 1 and task.request.retries == 0:
            later()

    assert resumed(ran(body), body).state == State.COMPLETED
    assert calls == [1]


@dataclass
class Receipt:
    """A result with a type of its own."""

    at: datetime
    amount: Decimal


RECEIPT = Receipt(datetime(2030, 1, 5, 12, tzinfo=UTC), Decimal("1.50"))


def as_receipt() -> Receipt:
    return RECEIPT


def as_pair() -> tuple[int, date]:
    return (1, date(2030, 1, 5))


def as_iterable() -> Iterable[int]:
    return [1, 2]


def as_promised_otherwise() -> str:
    return 7  # type: ignore[return-value]


def as_it_comes():  # type: ignore[no-untyped-def]
    return (1, {"at": UUID(int=7)})


@pytest.mark.parametrize(
    ("function", "given"),
    [
        (as_receipt, RECEIPT),
        (as_pair, (1, date(2030, 1, 5))),
        (as_promised_otherwise, 7),
        (as_iterable, [1, 2]),
        (as_it_comes, [1, {"at": UUID(int=7)}]),
        (lambda: Decimal("1.5"), Decimal("1.5")),
    ],
    ids=["dataclass", "tuple", "annotated wrongly", "iterable", "not annotated", "lambda"],
)
def test_the_first_attempt_is_given_what_later_ones_are(ran: Act, resumed: Any, function: Any, given: Any) -> None:
    seen: list[Any] = []

    def body(task: Any) -> None:
        seen.append(task.step("look", function))
        if len(seen) == 1:
            later()

    assert resumed(ran(body), body).state == State.COMPLETED
    assert seen == [given, given]


def test_the_writes_of_an_atomic_step_and_its_result_are_kept_together_or_not_at_all(ran: Act, resumed: Any) -> None:
    def enrol(fails: bool) -> str:
        Group.objects.create(name="readers")
        return later() if fails else "enrolled"

    job = ran(lambda task: task.atomic_step("enrol", enrol, fails=True))
    assert (Group.objects.count(), kept()) == (0, {})
    assert resumed(job, lambda task: task.atomic_step("enrol", enrol, fails=False)).state == State.COMPLETED
    assert (Group.objects.count(), kept()) == (1, {"enrol": "enrolled"})


def test_a_step_inside_a_step_is_kept_by_itself(ran: Act, resumed: Any) -> None:
    calls: list[str] = []

    def body(task: Any) -> None:
        def outer() -> None:
            task.step("inner", calls.append, "inner")
            calls.append("outer")
            if calls.count("outer") == 1:
                later()

        task.step("outer", outer)

    assert resumed(ran(body), body).state == State.COMPLETED
    assert calls == ["inner", "outer", "outer"]


def test_a_checkpoint_says_which_attempt_kept_it_and_when(ran: Act, resumed: Any) -> None:
    job = ran(lambda task: (task.step("a", int), later()))
    job = resumed(job, lambda task: [task.step("a", int), task.step("b", int)])
    first, second = Checkpoint.objects.order_by("name")
    assert (first.attempt, second.attempt, first.kind) == (1, 2, "step")
    assert job.created_at <= first.written_at <= second.written_at <= job.finished_at


# --- Cursors ----------------------------------------------------------------------------------------


def test_a_cursor_begins_at_its_start_and_goes_on_where_it_was(ran: Act, resumed: Any) -> None:
    seen: list[int] = []

    def body(task: Any) -> None:
        while (at := task.cursor("rows", 0)) < 4:
            seen.append(at)
            with task.advance("rows", at + 1):
                Group.objects.create(name=f"row {at}")
                if seen == [0, 1, 2]:
                    later()

    job = ran(body)
    assert (job.state, Group.objects.count(), kept()) == (State.RETRYING, 2, {"rows": 2})
    assert resumed(job, body).state == State.COMPLETED
    assert (seen, Group.objects.count()) == ([0, 1, 2, 2, 3], 4)
    assert Checkpoint.objects.get().kind == "cursor"


@pytest.mark.parametrize("value", ["key-7", ["a", 7], {"page": 2}, datetime(2030, 1, 5, tzinfo=UTC), None])
def test_a_cursor_may_be_any_json(ran: Act, resumed: Any, value: Any) -> None:
    seen: list[Any] = []

    def body(task: Any) -> None:
        seen.append(task.cursor("at", "start"))
        with task.advance("at", value):
            pass
        if len(seen) == 1:
            later()

    assert resumed(ran(body), body).state == State.COMPLETED
    assert seen == ["start", value]


def test_what_is_enqueued_in_an_advance_is_enqueued_with_it(ran: Act) -> None:
    def body(task: Any) -> None:
        with task.advance("rows", 1):
            sample.note.delay("kept")
        with task.advance("rows", 2):
            sample.note.delay("rolled back")
            later()

    ran(body)
    assert [job.payload for job in Job.objects.filter(task=sample.note.name)] == ['{"args":["kept"],"kwargs":{}}']


def test_two_cursors_of_a_job_do_not_know_of_each_other(ran: Act) -> None:
    def body(task: Any) -> list[int]:
        with task.advance("a", 1):
            pass
        return [task.cursor("a", 0), task.cursor("b", 0)]

    assert ran(body).result == "[1,0]"


def test_two_jobs_do_not_see_each_others_checkpoints(ran: Act) -> None:
    calls: list[int] = []
    for _ in range(2):
        ran(lambda task: task.step("charge", calls.append, 1))
    assert calls == [1, 1]


# --- The fence --------------------------------------------------------------------------------------


def overtake(job_id: Any) -> None:
    """Let somebody else take the job over, as a rescuer and the next worker do."""
    lifecycle.move_all([State.RUNNING], State.RETRYING, "TRUE", [], "overtaken", due_at=lifecycle.NOW)


@pytest.mark.parametrize("verb", ["step", "atomic_step", "advance"])
def test_an_attempt_that_was_overtaken_keeps_nothing(ran: Act, verb: str) -> None:
    raised: list[BaseException] = []

    def write(task: Any) -> None:
        if verb == "advance":
            with task.advance("rows", 1):
                Group.objects.create(name="late")
        else:
            getattr(task, verb)("late", lambda: Group.objects.create(name="late") and None)

    def body(task: Any) -> None:
        overtake(task.request.id)
        try:
            write(task)
        except LeaseLost as error:
            raised.append(error)
            raise

    job = ran(body)
    assert (job.state, job.losses, kept(), len(raised)) == (State.RETRYING, 0, {}, 1)
    assert Group.objects.count() == (verb == "step")


def test_a_cursor_that_was_overtaken_does_not_move_back(ran: Act) -> None:
    def body(task: Any) -> None:
        with task.advance("rows", 5):
            pass
        overtake(task.request.id)
        with pytest.raises(LeaseLost), task.advance("rows", 1):
            pass
        assert task.cursor("rows", 0) == 5

    ran(body)
    assert kept() == {"rows": 5}


@pytest.mark.parametrize("verb", ["step", "atomic_step", "advance"])
def test_a_body_that_is_to_stop_is_told_before_its_next_step(ran: Act, monkeypatch: Any, verb: str) -> None:
    calls: list[int] = []

    def body(task: Any) -> None:
        task._watched().stop = JobCancelled("not wanted")
        if verb == "advance":
            with task.advance("rows", 1):
                calls.append(1)
        getattr(task, verb)("late", calls.append, 1)

    assert ran(body).state == State.CANCELLED
    assert calls == []


# --- A database that goes away ----------------------------------------------------------------------


def test_what_a_step_did_is_kept_when_the_database_is_back(
    ran: Act, monkeypatch: pytest.MonkeyPatch, committed: None, sent: list[str]
) -> None:
    tries, calls, hold = [], [], lifecycle.hold

    def flaky(job: Job) -> bool:
        tries.append(1)
        if len(tries) < 3:
            raise OperationalError("the server closed the connection")
        return hold(job)

    monkeypatch.setattr(lifecycle, "hold", flaky)
    assert ran(lambda task: task.step("charge", calls.append, 7)).state == State.COMPLETED
    assert (len(tries), calls, kept()) == (3, [7], {"charge": None})


def test_a_step_does_not_wait_for_the_database_beyond_its_lease(
    ran: Act, monkeypatch: pytest.MonkeyPatch, committed: None, sent: list[str]
) -> None:
    def body(task: Any) -> None:
        def away(job: Job) -> bool:
            task._watched().stop = LeaseLost("the lease could not be renewed in time")
            raise OperationalError("the server closed the connection")

        monkeypatch.setattr(lifecycle, "hold", away)
        task.step("charge", int)

    assert ran(body).state == State.RETRYING
    assert kept() == {}


def test_an_advance_whose_commit_was_lost_on_its_way_back_counts(
    ran: Act, resumed: Any, monkeypatch: pytest.MonkeyPatch, committed: None, sent: list[str]
) -> None:
    """The rows are asked, not the memory of the attempt that did not hear the answer."""
    wrapper: Any = type(lifecycle.database())
    commit = wrapper._commit
    lost: list[int] = []

    def deaf(self: Any) -> None:
        commit(self)
        if Checkpoint.objects.exists() and not lost:
            lost.append(1)
            raise OperationalError("the answer to the commit was lost")

    def body(task: Any) -> int:
        try:
            with task.advance("rows", 1):
                Group.objects.create(name="row")
        except OperationalError:
            pass
        return int(task.cursor("rows", 0))

    monkeypatch.setattr(wrapper, "_commit", deaf)
    assert ran(body).result == "1"
    assert (lost, Group.objects.count()) == ([1], 1)


# --- What is refused --------------------------------------------------------------------------------


def refusal(job: Job) -> str:
    """Why a job failed for good, in its letter."""
    letter = DeadLetter.objects.get(job=job)
    assert (letter.error_type, letter.reason) == ("jobs.errors.CheckpointError", "permanent: CheckpointError")
    return letter.error_message


def twice(task: Any) -> None:
    task.step("charge", int)
    task.step("charge", int)


def mixed(task: Any) -> None:
    task.step("rows", int)
    task.cursor("rows", 0)


def in_a_transaction(task: Any) -> None:
    with transaction.atomic():
        task.step("charge", int)


def advance_in_a_transaction(task: Any) -> None:
    with transaction.atomic(), task.advance("rows", 1):
        pass


def in_an_advance(task: Any) -> None:
    with task.advance("rows", 1):
        task.step("charge", int)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (twice, 'in a loop, put into the name what differs: f"charge {order_id}"'),
        (mixed, "'rows' is the name of a step here; name the cursor otherwise"),
        (in_a_transaction, "must commit by itself, but a transaction is open"),
        (advance_in_a_transaction, "must commit by itself, but a transaction is open"),
        (in_an_advance, "must commit by itself, but a transaction is open"),
        (lambda task: task.step("", int), "needs a name of 1 to 200 printable characters, not ''"),
        (lambda task: task.step("x" * 201, int), "needs a name of 1 to 200"),
        (lambda task: task.step("a\nb", int), "needs a name of 1 to 200"),
        (lambda task: task.step(7, int), "needs a name of 1 to 200 printable characters, not '7'"),
        (lambda task: task.step("big", lambda: "x" * 70_000), "has 70,002 bytes; the limit is 65,536"),
        (lambda task: task.step("odd", object), "is not JSON: <object object at"),
        (lambda task: task.step("row", Group), "is not JSON: <Group: >. Return plain values, or the id of a record"),
        (lambda task: task.step("nan", lambda: float("nan")), "is not JSON: nan"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_with_the_remedy(ran: Act, body: Body, words: str) -> None:
    job = ran(body)
    assert job.state == State.FAILED
    assert words in refusal(job)


def test_a_job_has_only_so_many_checkpoints(ran: Act, settings: Any) -> None:
    settings.JOBS = {"MAX_CHECKPOINTS": 3}
    calls: list[int] = []
    job = ran(lambda task: [task.step(f"step {n}", calls.append, n) for n in range(4)])
    assert "has 3 checkpoints, which is the most (JOBS['MAX_CHECKPOINTS']). Use a cursor" in refusal(job)
    assert calls == [0, 1, 2]


def test_a_step_that_would_be_refused_is_not_done(ran: Act) -> None:
    calls: list[int] = []

    def body(task: Any) -> None:
        with transaction.atomic():
            task.step("charge", calls.append, 1)

    ran(body)
    assert calls == []


def test_a_transactional_task_is_told_that_it_is_one_transaction(monkeypatch: pytest.MonkeyPatch) -> None:
    from project.celery import app

    task = app.tasks[sample.Enrol.name]
    monkeypatch.setattr(task, "run", lambda name, how="fine": task.step("charge", int))
    job = sample.Enrol.delay("x")
    attempt(job.id)
    assert "that of a TransactionalTask, which is done as a whole or not at all" in refusal(fresh(job))


def test_a_name_that_changed_its_kind_between_attempts_is_refused(ran: Act, resumed: Any) -> None:
    job = ran(lambda task: (task.step("rows", int), later()))
    job = resumed(job, lambda task: task.cursor("rows", 0))
    assert "An earlier attempt kept a step called 'rows'" in refusal(job)


def test_a_cursor_may_move_although_the_job_has_all_the_checkpoints_it_may_have(ran: Act, settings: Any) -> None:
    settings.JOBS = {"MAX_CHECKPOINTS": 1}

    def body(task: Any) -> int:
        for to in (1, 2, 3):
            with task.advance("rows", to):
                pass
        return int(task.cursor("rows", 0))

    assert ran(body).result == "3"


# --- Tokens -----------------------------------------------------------------------------------------


def test_a_steps_token_is_its_own_and_the_same_in_all_attempts_and_replays(ran: Act, resumed: Any) -> None:
    seen: list[tuple[str, str]] = []

    def body(task: Any) -> None:
        seen.append((task.idempotency_token_for("charge"), task.idempotency_token_for("mail")))
        raise TransientError if len(seen) == 1 else ValueError

    job = resumed(ran(body), body)
    resumed(replay(DeadLetter.objects.get(job=job).pk, by="ann"), body)
    assert len(seen) == 3
    assert len(set(seen)) == 1
    charge, mail = seen[0]
    assert len({charge, mail, str(job.pk)}) == 3
    assert UUID(charge)


# --- Replays and other payloads ---------------------------------------------------------------------


@pytest.fixture
def failed(ran: Act) -> Job:
    """A job that failed after its first step and a part of its rows."""

    def body(task: Any) -> None:
        task.step("charge", lambda: "r-1")
        with task.advance("rows", 30):
            pass
        raise ValueError("odd")

    return ran(body)


def test_a_replay_goes_on_where_the_failed_job_left_off(failed: Job, resumed: Any) -> None:
    again = replay(DeadLetter.objects.get().pk, by="ann")
    job = resumed(again, lambda task: [task.step("charge", lambda: "r-2"), task.cursor("rows", 0)])
    assert (job.state, job.result) == (State.COMPLETED, '["r-1",30]')


def test_both_jobs_show_their_checkpoints(failed: Job) -> None:
    again = replay(DeadLetter.objects.get().pk, by="ann")
    assert [(c.name, c.attempt) for c in checkpoints.of_job(failed)] == [("charge", 1), ("rows", 1)]
    assert [(c.name, c.attempt) for c in checkpoints.of_job(again)] == [("charge", 0), ("rows", 0)]


def test_a_replay_with_another_payload_begins_anew(failed: Job, resumed: Any) -> None:
    again = replay(DeadLetter.objects.get().pk, by="ann", payload=Payload((), {"payload": "mended"}))
    job = resumed(again, lambda task: [task.step("charge", lambda: "r-2"), task.cursor("rows", 0)])
    assert (job.state, job.result) == (State.COMPLETED, '["r-2",0]')


def test_a_replay_whose_payload_was_looked_at_and_left_alone_goes_on(failed: Job) -> None:
    again = replay(DeadLetter.objects.get().pk, by="ann", payload=Payload((), {}))
    assert len(checkpoints.of_job(again)) == 2


@pytest.mark.parametrize(("args", "left"), [((2,), {}), ((1,), {"charge": 0})], ids=["another payload", "the same"])
def test_a_retry_with_another_payload_begins_anew(monkeypatch: Any, args: Any, left: Any) -> None:
    def body(value: int) -> None:
        sample.retry_with.step("charge", int)
        raise sample.retry_with.retry(args=args, countdown=0)

    monkeypatch.setattr(sample.retry_with, "run", body)
    attempt(sample.retry_with.delay(1).id)
    assert kept() == left


# --- Beside the route -------------------------------------------------------------------------------


def test_checkpoints_leave_with_their_job(ran: Act) -> None:
    ran(lambda task: task.step("charge", int))
    Job.objects.update(finished_at=lifecycle.database_now() - timedelta(days=2))
    assert retention.prune(timedelta(days=1)) == 1
    assert Checkpoint.objects.count() == 0


def test_a_plain_celery_task_has_steps_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample.celery_retry, "run", lambda name: sample.celery_retry.step("charge", int))
    job = sample.celery_retry.delay("x")
    attempt(job.id)
    assert (fresh(job).state, kept()) == (State.COMPLETED, {"charge": 0})


def test_a_bound_function_has_steps_too(witness: Any) -> None:
    job = sample.stepwise.delay("7")
    drain()
    assert fresh(job).result == '"charged 7"'
    assert kept() == {"charge": "charged 7"}


@pytest.fixture(params=["direct", "eager"])
def called(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Body], Any]]:
    """Run a body outside of any worker: there is no job."""
    from project.celery import app

    task = app.tasks[sample.Stepwise.name]

    def call(body: Body) -> Any:
        monkeypatch.setattr(task, "run", lambda payload=None: body(task))
        return task() if request.param == "direct" else task.apply().get(disable_sync_subtasks=False)

    yield call
    assert Checkpoint.objects.count() == 0


def test_without_a_job_steps_are_just_done(called: Any) -> None:
    calls: list[int] = []
    assert called(lambda task: task.step("charge", as_receipt)) == RECEIPT
    called(lambda task: task.step("charge", calls.append, 1))
    called(lambda task: task.step("charge", calls.append, 1))
    assert calls == [1, 1]


def test_without_a_job_a_cursor_lasts_for_the_call(called: Any) -> None:
    def body(task: Any) -> list[int]:
        seen = []
        while (at := task.cursor("rows", 0)) < 3:
            seen.append(at)
            with task.advance("rows", at + 1):
                Group.objects.create(name=f"row {at} {Group.objects.count()}")
        return seen

    assert called(body) == [0, 1, 2]
    assert called(body) == [0, 1, 2]


def test_without_a_job_an_advance_that_raises_rolls_back(called: Any) -> None:
    def body(task: Any) -> int:
        try:
            with task.advance("rows", 1):
                Group.objects.create(name="row")
                raise Gone
        except Gone:
            pass
        return int(task.cursor("rows", 0))

    assert (called(body), Group.objects.count()) == (0, 0)


def test_without_a_job_mistakes_are_told_all_the_same(called: Any) -> None:
    with pytest.raises(CheckpointError, match="in a loop"):
        called(twice)


def test_without_a_job_there_is_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """One token for all direct calls would make a gateway take the second for the first."""
    from project.celery import app

    task = app.tasks[sample.Stepwise.name]
    monkeypatch.setattr(task, "run", lambda payload=None: task.idempotency_token_for("charge"))
    assert task() == ""
