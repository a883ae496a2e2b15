"""Chunks: gathered by the release, claimed and recorded together, each job with an outcome of its own."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from django.db import DataError, OperationalError
from django.db.models import F

from jobs import bulk, chunk_bodies, chunks, control, lanes, lifecycle, outbox, outcomes, publisher, reconcile, rescue
from jobs.errors import (
    BrokerUnavailable,
    DeclarationError,
    OptionError,
    OutcomesError,
    PayloadError,
    TransientError,
)
from jobs.explain import explain
from jobs.models import Attempt, ChunkMember, Job, Lane, Share, Slot, Worker
from jobs.retry import RetryPolicy
from jobs.states import State
from jobs.task import Breaker, ChunkTask, Debounce, TransactionalTask, chunk_task
from tests.platform import Witness, attempt, fresh, hurry
from tests.sample.tasks import Mail, answer_as_told, post

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def nothing_learned(sent: list[str]) -> Iterator[None]:
    """What other tests taught about how fast workers are does not count; nothing goes to a broker."""
    lanes._flows.clear()
    now = lifecycle.database_now()
    Worker.objects.create(
        name="many@here", pid=1, started_at=now, seen_at=now, queues=["default"], concurrency=50
    )  # fmt: skip
    yield
    lanes._flows.clear()


def waited(seconds: float) -> None:
    """Let everything wait for longer."""
    past = timedelta(seconds=seconds)
    Job.objects.filter(finished_at=None).update(due_at=F("due_at") - past)
    Lane.objects.update(head_at=F("head_at") - past, open_at=F("open_at") - past)
    Share.objects.update(open_at=F("open_at") - past)


def ids(jobs: Any) -> list[UUID]:
    """Which jobs they are."""
    return [UUID(str(getattr(job, "pk", None) or job.id)) for job in jobs]


def released() -> list[list[UUID]]:
    """The chunks that one release lets go."""
    return [
        [row.job_id for row in ChunkMember.objects.filter(leader_id=job.pk).order_by("job_id")]
        for job in lanes.release(1000)
    ]


def mail(*hows: str, **options: Any) -> list[Any]:
    """Calls of the sample."""
    return [Mail.apply_async((how,), **options) for how in hows]


def states(jobs: list[Any]) -> list[str]:
    """How they stand."""
    return [fresh(job).state for job in jobs]


def running(*hows: str) -> list[Any]:
    """Jobs of a chunk that a dead process had claimed."""
    jobs = mail(*hows)
    waited(61)
    leader = lanes.release(10)[0]
    claimed(leader.pk)
    return jobs


def claimed(leader: UUID, pid: int = 4242) -> list[Job]:
    """Claim a chunk for a runner that does nothing."""
    from uuid import uuid4

    return lifecycle.claim_chunk(leader, token=uuid4(), worker="w@here", pid=pid, lease=timedelta(seconds=20))


# --- Gathering --------------------------------------------------------------------------------------


def test_jobs_wait_until_there_are_enough() -> None:
    first = mail("a", "b")
    assert released() == []
    assert states(first) == [State.PENDING] * 2
    third = mail("c")
    assert released() == [sorted(ids([*first, *third]))]
    assert states([*first, *third]) == [State.RESERVED] * 3


def test_what_there_is_goes_when_the_first_has_waited_for_long_enough() -> None:
    jobs = mail("a", "b")
    assert released() == []
    waited(59)
    assert released() == []
    waited(2)
    assert released() == [sorted(ids(jobs))]


def test_a_chunk_of_one_goes_too(witness: Witness) -> None:
    (job,) = mail("a")
    waited(61)
    attempt(lanes.release(10)[0].pk)
    assert witness.lines == ["chunk:a"]
    assert (fresh(job).state, fresh(job).result) == (State.COMPLETED, '"A"')


def test_a_flood_goes_in_full_chunks_first_in_first_out() -> None:
    jobs = mail(*"abcdefgh")
    assert released() == [sorted(ids(jobs[:3])), sorted(ids(jobs[3:6]))]
    assert states(jobs[6:]) == [State.PENDING] * 2


def test_jobs_that_become_due_later_count_when_they_are() -> None:
    mail("a")
    mail("b", "c", countdown=20)
    assert released() == []
    waited(19)
    assert released() == []
    waited(2)
    assert [len(chunk) for chunk in released()] == [3]


def test_different_priorities_tenants_and_queues_do_not_go_together() -> None:
    mail("a")
    mail("b", priority="high")
    mail("c", tenant="acme")
    mail("d", queue="mail")
    assert released() == []
    waited(61)
    assert [len(chunk) for chunk in released()] == [1, 1, 1, 1]


def test_chunk_by_says_who_goes_together() -> None:
    jobs = [post.delay({"account": account, "n": 1}) for account in ("x", "y", "x")]
    assert released() == [sorted(ids([jobs[0], jobs[2]]))]


def test_a_chunk_takes_one_slot_of_a_limit() -> None:
    for account in ("x", "x", "y", "y"):
        post.delay({"account": account, "n": 1})
    assert [len(chunk) for chunk in released()] == [2]
    assert Slot.objects.filter(key="ledger").count() == 1
    assert released() == []
    attempt(ChunkMember.objects.values_list("leader_id", flat=True)[0])
    assert [len(chunk) for chunk in released()] == [2]


def test_a_chunk_counts_as_one_for_the_hands_of_a_worker() -> None:
    Worker.objects.update(concurrency=1)
    mail(*"abcdefghi")
    assert [len(chunk) for chunk in released()] == [3, 3]  # one, and one ahead


def test_a_paused_task_gathers_and_goes_when_it_is_resumed() -> None:
    control.pause(task=Mail.name, by="ann", reason="")
    mail("a", "b", "c")
    assert released() == []
    control.resume(task=Mail.name, by="ann")
    assert [len(chunk) for chunk in released()] == [3]


def test_a_job_that_was_cancelled_while_it_gathered_is_left_out() -> None:
    jobs = mail("a", "b", "c")
    control.cancel(UUID(jobs[1].id), reason="no", by="ann")
    assert released() == []
    more = mail("d")
    assert released() == [sorted(ids([jobs[0], jobs[2], *more]))]


def test_of_a_bulk_each_item_is_a_payload(witness: Witness) -> None:
    bulk.bulk(post, [{"account": "x", "n": n} for n in range(2)])
    attempt(lanes.release(10)[0].pk)
    assert witness.lines == ["post:0+1"]


def test_two_calls_with_one_key_are_one_job() -> None:
    first, again = Mail.apply_async(("a",), key="k"), Mail.apply_async(("b",), key="k")
    assert first.id == again.id


def test_explain_says_how_many_there_are_and_until_when() -> None:
    job = mail("a", "b")[0]
    told = explain(job.id)
    part = next(part for part in told.parts if part.word == "chunk")
    assert part.sentence.startswith("It gathers with others: 2 of 3, goes at the latest at ")
    assert part.until == fresh(job).due_at + timedelta(seconds=60)
    assert "line" not in [part.word for part in told.parts]


def test_explain_says_whose_message_calls_for_a_job() -> None:
    jobs = mail("a", "b", "c")
    leader = lanes.release(10)[0].pk
    other = next(job for job in jobs if job.id != str(leader))
    assert f"with the message of {leader}" in explain(other.id).sentence


def test_a_gathering_lane_does_not_make_the_conductor_hurry() -> None:
    mail("a")
    released()
    changed, waits, flies, soon = lanes.changes(1)
    assert (changed, waits and flies, soon) == (False, False, False)
    waited(59.5)
    assert lanes.changes(1)[3]


def test_one_message_is_sent_for_all(sent: list[str]) -> None:
    from jobs.release import release

    mail("a", "b", "c")
    assert release() == 1
    assert sent == [str(ChunkMember.objects.values_list("leader_id", flat=True)[0])]


def test_its_message_says_that_it_stands_for_others() -> None:
    from jobs.messages import HEADER, asked

    mail("a", "b", "c")
    (leader,) = lanes.release(10)
    assert asked(leader, 0, {})["headers"][HEADER]["chunk"] is True


def test_a_message_that_stands_for_others_is_not_claimed_alone_ahead_of_its_turn() -> None:
    from types import SimpleNamespace

    from jobs import grouped

    job_id = "0190a9b8-0000-7000-8000-000000000000"
    plain: Any = SimpleNamespace(id="x", request_dict={"mainstay": {"job": job_id}})
    of_many: Any = SimpleNamespace(id="x", request_dict={"mainstay": {"job": job_id, "chunk": True}})
    assert (grouped.job_of(plain), grouped.job_of(of_many)) == (UUID(job_id), None)


# --- One call, many outcomes --------------------------------------------------------------------------


def run_together(*hows: str) -> list[Any]:
    """Run the calls in one chunk."""
    jobs = mail(*hows)
    waited(61)
    attempt(lanes.release(10)[0].pk)
    return jobs


def test_each_job_has_its_own_result(witness: Witness) -> None:
    jobs = run_together("a", "b", "c")
    assert witness.lines == ["chunk:a,b,c"]
    assert [fresh(job).result for job in jobs] == ['"A"', '"B"', '"C"']
    assert states(jobs) == [State.COMPLETED] * 3
    assert [job.get(timeout=1) for job in jobs] == ["A", "B", "C"]


def test_each_failure_has_its_own_decision() -> None:
    jobs = run_together("transient", "permanent", "a")
    assert states(jobs) == [State.RETRYING, State.FAILED, State.COMPLETED]
    assert fresh(jobs[1]).dead_letter.error_message == "never"
    assert Attempt.objects.get(job_id=jobs[0].id).error_message == "try again"


def test_one_job_of_many_is_snoozed_at_no_cost() -> None:
    jobs = run_together("a", "snooze")
    job = fresh(jobs[1])
    assert (job.state, job.reason, job.snoozes) == (State.PENDING, "snoozed", 1)
    assert fresh(jobs[0]).state == State.COMPLETED


def test_an_error_that_is_raised_is_that_of_all() -> None:
    jobs = run_together("all transient", "a", "b")
    assert states(jobs) == [State.RETRYING] * 3
    assert [fresh(job).error_message for job in jobs] == [fresh(jobs[0]).error_message] * 3
    assert Attempt.objects.count() == 3


def test_those_that_are_tried_again_gather_again(witness: Witness) -> None:
    run_together("transient", "transient", "a")
    hurry()
    assert released() == []
    waited(61)
    attempt(lanes.release(10)[0].pk)
    assert witness.lines == ["chunk:transient,transient,a", "chunk:transient,transient"]


def test_a_dictionary_says_which_jobs_are_not_done() -> None:
    jobs = [post.delay({"account": "x", "n": n}) for n in (1, -1)]
    attempt(lanes.release(10)[0].pk)
    assert states(jobs) == [State.COMPLETED, State.FAILED]


def test_a_list_of_another_length_fails_all_and_says_what_to_return() -> None:
    jobs = [answer_as_told.delay({"returns": [1]}) for _ in range(2)]
    attempt(lanes.release(10)[0].pk)
    assert states(jobs) == [State.FAILED] * 2
    assert "returned 1 outcomes for 2 payloads. Return an outcome for each payload" in fresh(jobs[1]).error_message


def test_a_result_that_is_not_json_fails_that_job_alone() -> None:
    jobs = run_together("a", "not json", "b")
    assert states(jobs) == [State.COMPLETED, State.FAILED, State.COMPLETED]


def test_a_payload_that_no_longer_fits_the_code_fails_that_job_alone(witness: Witness) -> None:
    jobs = mail("a", "b", "c")
    Job.objects.filter(pk=jobs[1].id).update(payload='{"args":[[1]],"kwargs":{}}')
    attempt(lanes.release(10)[0].pk)
    assert states(jobs) == [State.COMPLETED, State.FAILED, State.COMPLETED]
    assert witness.lines == ["chunk:a,c"]


def test_what_follows_one_job_starts_when_that_job_completes() -> None:
    from tests.sample.tasks import note

    linked = Mail.apply_async(("a",), link=note.s())
    other = Mail.apply_async(("permanent",), link=note.s())
    waited(61)
    attempt(lanes.release(10)[0].pk)
    assert states([linked, other]) == [State.COMPLETED, State.FAILED]
    assert Job.objects.filter(task=note.name).count() == 1


def test_the_step_before_hands_its_result_to_a_chunk(witness: Witness) -> None:
    from celery import chain

    from tests.sample.tasks import note

    result = chain(note.s("x"), Mail.s()).apply_async()
    attempt(result.parent.id)
    waited(61)
    attempt(lanes.release(10)[0].pk)
    assert witness.lines == ["x", "chunk:x"]
    assert fresh(result).state == State.COMPLETED


def test_a_call_in_eager_mode_gets_a_list_of_one(witness: Witness) -> None:
    assert Mail.apply_async is not None
    task: Any = Mail()
    assert task.apply(("a",)).get() == "A"
    with pytest.raises(Exception, match="never"):
        task.apply(("permanent",)).get()


def test_the_body_has_a_token_for_each_payload() -> None:
    seen: list[Any] = []

    @chunk_task(name="tests.tokens", size=2, bind=True)
    def tokens(self: ChunkTask, payloads: list[int]) -> None:
        seen.append((payloads, self.job_ids, self.idempotency_tokens))

    jobs = [tokens.delay(n) for n in range(2)]
    attempt(lanes.release(10)[0].pk)
    assert seen == [([0, 1], [job.id for job in jobs], [job.id for job in jobs])]


# --- What may go wrong ----------------------------------------------------------------------------------


def test_a_job_that_was_cancelled_before_the_claim_is_left_out(witness: Witness) -> None:
    jobs = mail("a", "b", "c")
    leader = lanes.release(10)[0].pk
    control.cancel(leader, reason="no", by="ann")
    attempt(leader)
    assert sorted(states(jobs)) == [State.CANCELLED, State.COMPLETED, State.COMPLETED]
    assert len(witness.lines) == 1


def test_a_job_that_was_taken_over_meanwhile_refuses_its_outcome_alone(witness: Witness) -> None:
    from jobs import together

    jobs = mail("a", "b", "c")
    leader = lanes.release(10)[0].pk
    held = claimed(leader)
    lifecycle.move(held[1], State.RETRYING, "rescued", due_at=lifecycle.NOW)
    ended = together._recorded([together._Ending(job, result="1") for job in held])
    assert list(ended) == sorted([held[0].pk, held[2].pk])
    assert states(jobs) == [State.COMPLETED, State.RETRYING, State.COMPLETED]


def test_a_message_that_comes_twice_runs_nothing(witness: Witness) -> None:
    run_together("a", "b", "c")
    leader = Job.objects.order_by("pk").first()
    assert leader is not None
    attempt(leader.pk)
    assert len(witness.lines) == 1


def test_a_late_message_of_a_job_that_goes_with_others_now_takes_it_from_nobody() -> None:
    jobs = mail("a", "b", "c")
    leader = lanes.release(10)[0].pk
    led = next(UUID(job.id) for job in jobs if job.id != str(leader))
    assert claimed(led) == []
    assert len(claimed(leader)) == 3


def test_a_job_that_was_released_by_an_older_conductor_is_a_chunk_by_itself(witness: Witness) -> None:
    jobs = mail("a", "b")
    Job.objects.filter(pk=jobs[0].id).update(state=State.RESERVED, sent_at=lifecycle.database_now())
    attempt(jobs[0].id)
    assert witness.lines == ["chunk:a"]


def test_jobs_whose_leader_could_not_be_sent_go_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from jobs.release import release

    def unreachable(job: Job) -> None:
        raise BrokerUnavailable("away")

    jobs = mail("a", "b", "c")
    with monkeypatch.context() as patched:
        patched.setattr(publisher.in_use(), "publish", unreachable)
        assert release() == 0
    assert sorted(states(jobs)) == [State.PENDING, State.RESERVED, State.RESERVED]
    waited(61)
    assert [len(chunk) for chunk in released()] == [3]
    assert {job.sends for job in Job.objects.all()} == {1}


def test_a_lost_message_of_a_chunk_takes_all_of_it_back() -> None:
    jobs = mail("a", "b", "c")
    leader = lanes.release(10)[0]
    reconcile._lost(lifecycle.seen(leader.pk))  # type: ignore[arg-type]
    assert states(jobs) == [State.PENDING] * 3
    assert {fresh(job).reason for job in jobs} == {"its message was lost"}
    waited(61)
    assert [len(chunk) for chunk in released()] == [3]


def test_only_the_leader_is_suspected_to_have_lost_its_message() -> None:
    from jobs import evidence

    mail("a", "b", "c")
    leader = lanes.release(10)[0]
    assert [job.pk for job in evidence.reserved()] == [leader.pk]


def test_the_death_of_a_child_costs_each_job_of_its_chunk_one_attempt() -> None:
    jobs = running("a", "b", "c")
    leader = ChunkMember.objects.values_list("leader_id", flat=True)[0]
    assert rescue.lost_child(str(leader), "w@here", 4242, "signal 9 (SIGKILL)")
    assert [(fresh(job).state, fresh(job).losses, fresh(job).attempt) for job in jobs] == [(State.RETRYING, 1, 1)] * 3


def test_the_death_of_another_child_costs_nothing() -> None:
    jobs = running("a", "b", "c")
    leader = ChunkMember.objects.values_list("leader_id", flat=True)[0]
    assert not rescue.lost_child(str(leader), "w@here", 1, "signal 9 (SIGKILL)")
    assert states(jobs) == [State.RUNNING] * 3


def test_leases_that_end_give_each_job_back() -> None:
    jobs = running("a", "b", "c")
    Job.objects.update(lease_until=lifecycle.database_now() - timedelta(seconds=1))
    assert rescue.rescue() == 3
    assert states(jobs) == [State.RETRYING] * 3


def test_slots_of_a_leader_that_ended_are_those_of_another_while_its_chunk_runs() -> None:
    jobs = [post.delay({"account": "x", "n": n}) for n in (1, 2)]
    leader = lanes.release(10)[0]
    held = claimed(leader.pk)
    lifecycle.move(next(job for job in held if job.pk == leader.pk), State.CANCELLED, "forced")
    post.delay({"account": "y", "n": 3})
    post.delay({"account": "y", "n": 4})
    assert released() == []
    assert Slot.objects.filter(key="ledger").values_list("job_id", flat=True)[0] in ids(jobs)
    lifecycle.move(next(job for job in held if job.pk != leader.pk), State.CANCELLED, "forced")
    assert [len(chunk) for chunk in released()] == [2]


def test_after_a_loss_the_company_is_smaller_and_the_last_chance_is_alone() -> None:
    waiting = [chunks._Waiting(UUID(int=0), lifecycle.database_now(), losses, 0, 10) for losses in (0, 1, 2)]
    assert [one.company(100) for one in waiting] == [100, 10, 1]


def test_a_poison_pill_takes_no_others_to_the_dead_letters(witness: Witness) -> None:
    jobs = mail("a", "poison", "b")
    for _ in range(20):
        hurry()
        waited(61)
        for leader in lanes.release(100):
            _run_or_die(leader.pk)
    assert states(jobs) == [State.COMPLETED, State.FAILED, State.COMPLETED]
    assert fresh(jobs[1]).reason.startswith("poison: lost 3 times")
    assert max(fresh(job).losses for job in (jobs[0], jobs[2])) < 3


def _run_or_die(leader: UUID) -> None:
    """A worker that dies of one payload."""
    members = ChunkMember.objects.filter(leader_id=leader).values_list("job_id", flat=True)
    if Job.objects.filter(pk__in=list(members), payload__contains="poison").exists():
        claimed(leader)
        rescue.lost_child(str(leader), "w@here", 4242, "signal 9 (SIGKILL)")
    else:
        attempt(leader)


def test_suspects_do_not_wait_for_company() -> None:
    running("a", "b", "c")
    leader = ChunkMember.objects.values_list("leader_id", flat=True)[0]
    rescue.lost_child(str(leader), "w@here", 4242, "signal 9 (SIGKILL)")
    mail("d")
    assert sorted(len(chunk) for chunk in released()) == [1, 2]


def test_nothing_is_left_of_a_chunk_that_has_ended() -> None:
    run_together("a", "b", "c")
    lanes.release(10)
    assert [model.objects.count() for model in (ChunkMember, Slot, Lane, Share)] == [0, 0, 0, 0]


def test_one_heartbeat_renews_the_leases_of_all() -> None:
    from jobs import heartbeat

    jobs = running("a", "b", "c")
    held = list(Job.objects.filter(pk__in=ids(jobs)).order_by("pk"))
    Job.objects.update(lease_until=lifecycle.database_now() - timedelta(seconds=5))
    entry = heartbeat.Watched(held[0], 1, held)
    entry.renewed -= 100
    heartbeat._renew(entry)
    assert not Job.objects.filter(lease_until__lt=lifecycle.database_now()).exists()


def test_the_call_goes_on_while_one_job_is_left_that_nobody_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    from jobs import heartbeat

    stopped: list[Any] = []
    monkeypatch.setattr(heartbeat, "_interrupt", lambda entry, error: stopped.append(type(error).__name__))
    jobs = running("a", "b", "c")
    held = list(Job.objects.filter(pk__in=ids(jobs)).order_by("pk"))
    entry = heartbeat.Watched(held[0], 1, held)
    for job in held[:2]:
        control.cancel(job.pk, reason="no", by="ann")
    heartbeat._look([entry])
    assert stopped == []
    control.cancel(held[2].pk, reason="no", by="ann")
    heartbeat._look([entry])
    assert stopped == ["JobCancelled"]
    for job in held:
        lifecycle.move(job, State.CANCELLED, "forced")
    heartbeat._look([entry])
    assert stopped == ["JobCancelled", "LeaseLost"]


# --- Declarations -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"size": 0}, "how many payloads one call gets at most: a whole number from 1 to 1,000, not 0"),
        ({"size": 1001}, "from 1 to 1,000, not 1001"),
        ({"max_wait": -1}, "a number from 0 to 86,400 (a day), not -1"),
        ({"chunk_by": "{customer}"}, "uses customer, which its body does not take. It may use: payload, task"),
        ({"chunk_by": ""}, "The key of a chunk of tests.refused must be a text or a function"),
        ({"breakers": [Breaker("x")]}, "cannot be a ChunkTask with breakers: a circuit is about single jobs"),
        ({"debounce": Debounce("x", quiet=1, longest=2)}, "cannot be a ChunkTask with debounce"),
        ({"wait": 3}, "does not know wait"),
    ],
)
def test_a_declaration_that_can_never_work_is_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(DeclarationError) as refused:
        chunk_task(name="tests.refused", **options)(lambda payloads: None)
    assert sentence in str(refused.value)


def test_a_body_that_does_not_take_one_list_is_refused() -> None:
    with pytest.raises(DeclarationError, match="Its body takes one list"):

        @chunk_task
        def two(a: list[int], b: int) -> None: ...

    with pytest.raises(DeclarationError, match="Its body takes one list"):

        class OfOne(ChunkTask):
            def run(self, payload: int) -> None: ...


def test_a_chunk_cannot_be_transactional() -> None:
    with pytest.raises(DeclarationError, match="cannot be a ChunkTask and a TransactionalTask"):

        class Both(ChunkTask, TransactionalTask):
            def run(self, payloads: list[int]) -> None: ...


def test_a_payload_is_checked_against_what_is_in_the_list() -> None:
    with pytest.raises(PayloadError, match="payload: Input should be a valid string"):
        Mail.delay(7)  # type: ignore[arg-type]
    with pytest.raises(PayloadError):
        Mail.apply_async(("a", "b"))


def test_the_time_limit_of_a_call_is_not_that_of_one_job() -> None:
    with pytest.raises(OptionError, match="time_limit is that of a call for many jobs"):
        mail("a", time_limit=5)


@pytest.mark.parametrize("name", ["step", "progress", "cursor", "replace", "idempotency_token"])
def test_what_is_of_one_job_says_so_in_a_chunk(name: str) -> None:
    raised: list[str] = []

    @chunk_task(name=f"tests.of_one_{name}", size=1, bind=True)
    def body(self: Any, payloads: list[int]) -> None:
        with pytest.raises(OptionError) as refused:
            getattr(self, name)
        raised.append(str(refused.value))

    body.delay(1)
    attempt(lanes.release(10)[0].pk)
    assert f"self.{name} is of one" in raised[0]


@pytest.mark.parametrize("returned", [5, "ab", {5: 1}, {"a": 1}, [1, 2, 3], [ValueError, 1]])
def test_outcomes_that_say_nothing_are_refused(returned: Any) -> None:
    with pytest.raises(OutcomesError):
        outcomes.read(returned, 2, "x")


def test_failed_takes_an_error() -> None:
    with pytest.raises(OutcomesError, match="Failed takes an exception"):
        outcomes.Failed("no")  # type: ignore[arg-type]


def test_the_type_of_a_payload_may_be_defined_further_down() -> None:
    def body(payloads: "list[Later]") -> None: ...  # type: ignore[name-defined]  # noqa: F821

    chunk_bodies.check("x", {"payloads": next(iter(chunk_bodies.parameters().values()))}, body)


def test_a_new_size_holds_for_jobs_that_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    from project.celery import app

    mail("a", "b")
    assert released() == []
    monkeypatch.setattr(type(app.tasks[Mail.name]), "size", 2)
    Lane.objects.update(open_at=lifecycle.database_now())
    Share.objects.update(is_open=True)
    assert [len(chunk) for chunk in released()] == [2]


def test_a_retry_policy_holds_for_each_job(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(Mail.retry_policy, RetryPolicy)
    jobs = run_together("transient", "a")
    Job.objects.filter(pk=jobs[0].id).update(max_attempts=2)
    hurry()
    waited(61)
    attempt(lanes.release(10)[0].pk)
    assert fresh(jobs[0]).reason == "exhausted: transient, attempt 2 of 2"


def test_a_job_handed_back_gathers_again() -> None:
    from jobs import attempt as attempts

    jobs = running("a", "b", "c")
    for job in Job.objects.filter(state=State.RUNNING):
        attempts.hand_back(job)
    assert states(jobs) == [State.PENDING] * 3
    assert {fresh(job).losses for job in jobs} == {0}
    waited(61)
    assert [len(chunk) for chunk in released()] == [3]


def test_outbox_marks_what_a_chunk_waits_for() -> None:
    assert fresh(mail("a")[0]).reason == outbox.IN_LINE


def test_a_claim_whose_answer_was_lost_is_ours_all_the_same(
    monkeypatch: pytest.MonkeyPatch, witness: Witness, committed: None
) -> None:
    jobs = mail("a", "b", "c")
    leader = lanes.release(10)[0].pk
    claim, tries = lifecycle.claim_chunk, []

    def answer_is_lost(*args: Any, **options: Any) -> list[Job]:
        found = claim(*args, **options)
        tries.append(len(found))
        if len(tries) == 1:
            raise OperationalError("the connection was lost")
        return found

    monkeypatch.setattr(lifecycle, "claim_chunk", answer_is_lost)
    attempt(leader)
    assert tries == [3, 0]
    assert {(fresh(job).state, fresh(job).attempt) for job in jobs} == {(State.COMPLETED, 1)}


def test_outcomes_whose_commit_was_lost_on_its_way_back_are_recorded_once(
    monkeypatch: pytest.MonkeyPatch, witness: Witness, committed: None
) -> None:
    from jobs import together

    jobs = mail("a", "transient", "permanent")
    leader = lanes.release(10)[0].pk
    record, tries = together._recorded, []

    def answer_is_lost(endings: Any) -> Any:
        ended = record(endings)
        tries.append(len(ended))
        if len(tries) == 1:
            raise OperationalError("the connection was lost")
        return ended

    monkeypatch.setattr(together, "_recorded", answer_is_lost)
    attempt(leader)
    assert tries == [3, 0]
    assert states(jobs) == [State.COMPLETED, State.RETRYING, State.FAILED]
    assert Attempt.objects.count() == 2


def test_what_cannot_be_recorded_for_one_job_is_no_matter_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(completions: Any) -> Any:
        raise DataError("one of them is too much for the database")

    monkeypatch.setattr(lifecycle, "complete_many", refused)
    assert states(run_together("a", "b", "c")) == [State.COMPLETED] * 3


def test_those_whose_leader_was_cancelled_go_again_without_it() -> None:
    jobs = mail("a", "b", "c")
    leader = lanes.release(10)[0].pk
    control.cancel(leader, reason="no", by="ann")
    waited(61)
    others = sorted(one for one in ids(jobs) if one != leader)
    assert [*released(), *released()] == [others]
    assert {fresh(job).sends for job in jobs if UUID(job.id) != leader} == {1}


def test_a_job_of_a_chunk_that_left_it_alone_is_seen_before_its_chunk_ends() -> None:
    running("a", "b", "c")
    assert not lanes.changes(1)[0]
    leader = ChunkMember.objects.values_list("leader_id", flat=True)[0]
    other = Job.objects.exclude(pk=leader).first()
    assert other is not None
    lifecycle.move(other, State.RETRYING, "rescued", due_at=lifecycle.NOW)
    assert lanes.changes(1)[0]


def test_a_lower_priority_on_retry_is_that_of_each_job() -> None:
    @chunk_task(name="tests.lower", size=2, retry_priority="lower")
    def lower(payloads: list[str]) -> Any:
        return {0: TransientError("again")}

    jobs = [lower.delay(name) for name in "ab"]
    attempt(lanes.release(10)[0].pk)
    assert [(fresh(job).state, fresh(job).priority) for job in jobs] == [(State.RETRYING, 30), (State.COMPLETED, 20)]


def test_outcomes_that_say_nothing_are_not_tried_again_whatever_the_policy() -> None:
    @chunk_task(name="tests.misread", size=1, retry_policy=RetryPolicy(transient=(Exception,)))
    def misread(payloads: list[int]) -> Any:
        return [1, 2]

    job = misread.delay(1)
    attempt(lanes.release(10)[0].pk)
    assert (fresh(job).state, fresh(job).reason) == (State.FAILED, "its outcome could not be recorded")


def test_a_job_that_is_about_to_be_cancelled_does_not_count() -> None:
    jobs = mail("a", "b", "c")
    Job.objects.filter(pk=jobs[0].id).update(cancel_requested_at=lifecycle.database_now())
    assert released() == []


def test_explain_of_a_queue_says_how_many_wait_for_others() -> None:
    from jobs.explain import explain_queue

    jobs = mail("a", "b")
    lanes.release(10)
    part = next(part for part in explain_queue("default").parts if part.word == "chunk")
    assert part.sentence.startswith("2 jobs wait for others of their chunk; the first go at ")
    assert part.until == fresh(jobs[0]).due_at + timedelta(seconds=60)


def test_of_many_lanes_that_gather_a_release_leaves_some_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "COUNTING", 0.0)
    bulk.bulk(Mail, [f"{n}" for n in range(3)], tenant="x")
    bulk.bulk(post, [{"account": f"a{n % 10}", "n": n} for n in range(20)])
    sizes = []
    for _ in range(50):
        sizes += [len(chunk) for chunk in released()]
        for leader in set(ChunkMember.objects.values_list("leader_id", flat=True)):
            attempt(leader)
        if not lanes.unfinished() and not Job.objects.filter(finished_at=None).exists():
            break
    assert sorted(sizes) == [2] * 10 + [3]
