"""A burst of calls becomes one job: which calls, with which payload, and when it goes."""

from datetime import timedelta
from typing import Any

import pytest
from celery import chord, group
from django.db import transaction
from django.db.models import F

from jobs import bulk, bursts, control, gathering, lifecycle, release
from jobs.errors import DeclarationError, OptionError, Refused
from jobs.explain import explain
from jobs.models import Burst, Call, Job, Leader, Worker
from jobs.states import State
from jobs.task import Debounce, IdempotentTask, Task, Throttle, task
from project.celery import app
from tests import platform
from tests.platform import drain, fresh
from tests.sample.tasks import add, calmly, note, sparingly

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def nothing_leaves(sent: list[str]) -> None:
    """Nothing goes to a broker."""


def later(seconds: float) -> None:
    """Let time pass for all that gathers."""
    ago = timedelta(seconds=seconds)
    Burst.objects.update(first_at=F("first_at") - ago, look_at=F("look_at") - ago)
    Call.objects.update(at=F("at") - ago)
    Job.objects.exclude(started_at=None).update(started_at=F("started_at") - ago)


def attempt(job_id: Any) -> Any:
    """Run it here; what the body returned."""
    return platform.attempt(job_id).retval


# --- Debounce ---------------------------------------------------------------------------------------


def test_calls_with_one_key_are_one_job() -> None:
    first = calmly.delay(7, "a")
    assert calmly.delay(7, "b").id == first.id
    assert calmly.delay(customer=8).id != first.id
    assert Job.objects.count() == 2


def test_it_waits_while_calls_come_and_goes_once_it_is_quiet() -> None:
    job = calmly.delay(7)
    later(20)
    calmly.delay(7)
    later(20)
    assert gathering.let_go() == 0
    assert (fresh(job).state, fresh(job).reason) == (State.PENDING, "debounced: waits for a quiet moment")
    later(10.1)
    assert gathering.let_go() == 1
    assert release.release() == 1
    assert fresh(job).state == State.RESERVED


def test_it_does_not_wait_for_longer_than_the_longest_time() -> None:
    job = calmly.delay(7)
    for _ in range(14):
        later(20)
        assert gathering.let_go() == 0
        assert calmly.delay(7).id == job.id
    later(20)
    assert gathering.let_go() == 1


def test_it_runs_with_the_payload_of_the_latest_call() -> None:
    job = calmly.delay(7, "a")
    calmly.delay(7, "b")
    calmly.delay(7, what="c")
    later(31)
    gathering.let_go()
    release.release()
    assert attempt(job.id) == "7 c"


def test_it_runs_with_the_payload_of_the_first_call_where_that_is_asked_for() -> None:
    window = Debounce("customer:{customer}", 30, keep="first")
    job = calmly.apply_async((7, "a"), debounce=window)
    calmly.apply_async((7, "b"), debounce=window)
    later(31)
    gathering.let_go()
    release.release()
    assert attempt(job.id) == "7 a"


def test_a_call_after_its_time_is_over_begins_a_new_job_though_the_old_one_has_not_gone() -> None:
    job = calmly.delay(7, "a")
    later(31)
    second = calmly.delay(7, "b")
    assert second.id != job.id
    later(31)
    assert gathering.let_go() == 2
    assert not Burst.objects.exists()
    assert not Call.objects.exists()


def test_a_job_that_runs_is_not_extended_the_next_call_begins_a_new_one() -> None:
    job = calmly.delay(7, "a")
    later(31)
    gathering.let_go()
    release.release()
    second = calmly.delay(7, "b")
    assert second.id != job.id
    assert attempt(job.id) == "7 a"


def test_a_call_that_is_rolled_back_leaves_no_trace() -> None:
    with transaction.atomic():
        calmly.delay(7)
        transaction.set_rollback(True)
    assert not Job.objects.exists()
    assert not Burst.objects.exists()
    job = calmly.delay(7, "a")
    later(20)
    with transaction.atomic():
        assert calmly.delay(7, "b").id == job.id
        transaction.set_rollback(True)
    later(11)
    assert gathering.let_go() == 1
    release.release()
    assert attempt(job.id) == "7 a"


def test_a_cancelled_burst_takes_no_more_calls() -> None:
    job = calmly.delay(7)
    control.cancel(fresh(job).pk, reason="x", by="ann")
    second = calmly.delay(7)
    assert second.id != job.id
    later(31)
    assert gathering.let_go() == 1
    assert fresh(job).state == State.CANCELLED
    assert not Burst.objects.exists()
    assert not Call.objects.exists()


def test_an_operator_lets_it_go_at_once() -> None:
    job = calmly.delay(7, "a")
    calmly.delay(7, "b")
    control.retry(fresh(job).pk, by="ann")
    release.release()
    assert attempt(job.id) == "7 b"


def test_it_cannot_be_snoozed() -> None:
    with pytest.raises(Refused, match="debounced"):
        control.snooze(fresh(calmly.delay(7)).pk, timedelta(minutes=1), by="ann")


def test_jobs_with_a_tenant_go_in_line_when_they_go() -> None:
    job = calmly.apply_async((7,), tenant="acme")
    assert fresh(job).lane == ""
    later(31)
    gathering.let_go()
    assert (fresh(job).reason, bool(fresh(job).lane)) == ("waits for its turn", True)
    release.release()
    assert fresh(job).state == State.RESERVED


def test_the_keys_of_the_limits_are_those_of_the_payload_with_which_it_runs() -> None:
    from tests.sample.tasks import alone

    window = Debounce("all", 30)
    job = alone.apply_async(("a",), debounce=window)
    alone.apply_async(("b",), debounce=window)
    later(31)
    gathering.let_go()
    assert fresh(job).lane


def test_each_call_of_a_bulk_belongs_to_the_burst_of_its_key() -> None:
    before = calmly.delay(1, "before")
    done = bulk.bulk(calmly, [(1, "a"), (2, "b"), (2, "c"), (3, "d")])
    assert Job.objects.count() == 3
    assert str(done.ids[0]) == before.id
    assert done.ids[1] == done.ids[2]
    assert sorted(done.duplicates) == [0, 2]
    later(31)
    assert gathering.let_go() == 3
    release.release()
    assert [attempt(done.ids[n]) for n in (0, 2, 3)] == ["1 a", "2 c", "3 d"]


def test_a_bulk_may_say_it_for_its_calls() -> None:
    done = bulk.bulk(note, ["a", "b"], debounce=Debounce("{task}", 5))
    assert (done.inserted, Job.objects.count()) == (1, 1)


def test_a_call_by_name_belongs_to_the_burst_too() -> None:
    job = calmly.delay(7)
    assert app.send_task(calmly.name, (7, "b")).id == job.id


def test_a_call_may_say_that_it_is_not_debounced() -> None:
    assert fresh(calmly.apply_async((7,), debounce=False)).state == State.RESERVED


def test_a_member_of_a_group_settles_as_the_one_job_does() -> None:
    result = group(calmly.s(7, "a"), calmly.s(7, "b")).apply_async()
    later(31)
    gathering.let_go()
    drain()
    assert result.get(timeout=1) == ["7 b", "7 b"]
    assert Job.objects.filter(state=State.COMPLETED, attempt=1).count() == 1


def test_a_chord_goes_on_when_its_debounced_members_have_run_once() -> None:
    result = chord([calmly.s(7, "a"), calmly.s(7, "b")], count.s()).apply_async()
    later(31)
    gathering.let_go()
    drain()
    assert result.get(timeout=1) == 2


def test_what_is_linked_to_a_call_that_joins_follows_too() -> None:
    calmly.delay(7, "a")
    calmly.apply_async((7, "b"), link=note.s())
    later(31)
    gathering.let_go()
    drain()
    assert Job.objects.filter(task=note.name, state=State.COMPLETED).count() == 1


def test_a_replay_does_not_ask_for_the_burst() -> None:
    from dlq import replay
    from dlq.models import DeadLetter

    job = failing.delay(1)
    later(31)
    gathering.let_go()
    drain()
    again = replay.replay(DeadLetter.objects.get(job_id=job.id).pk, by="ann", reason="x")
    assert again.state == State.RESERVED


# --- Throttle ---------------------------------------------------------------------------------------


def started(job: Any) -> None:
    """Let go, release and run it."""
    gathering.let_go()
    release.release()
    attempt(job.id)


def test_the_first_call_goes_at_once() -> None:
    job = sparingly.delay(7)
    assert gathering.let_go() == 1
    release.release()
    assert fresh(job).state == State.RESERVED


def test_the_calls_of_the_span_are_one_run_at_its_end() -> None:
    first = sparingly.delay(7, "a")
    started(first)
    second = sparingly.delay(7, "b")
    assert second.id != first.id
    assert sparingly.delay(7, "c").id == second.id
    later(59)
    assert gathering.let_go() == 0
    later(1.1)
    assert gathering.let_go() == 1
    release.release()
    assert attempt(second.id) == "7 c"


def test_calls_before_the_first_one_has_gone_are_one_run_after_it() -> None:
    first, second, third = sparingly.delay(7, "a"), sparingly.delay(7, "b"), sparingly.delay(7, "c")
    assert first.id != second.id == third.id
    assert gathering.let_go() == 1
    assert fresh(second).due_at is None


def test_the_span_counts_from_when_the_run_before_has_started() -> None:
    first = sparingly.delay(7)
    second = sparingly.delay(7)
    gathering.let_go()
    release.release()
    later(600)
    assert gathering.let_go() == 0
    attempt(first.id)
    later(59)
    assert gathering.let_go() == 0
    later(600)
    assert gathering.let_go() == 1
    assert fresh(second).due_at is not None


def test_a_run_that_was_cancelled_before_it_started_holds_nobody_up() -> None:
    first, second = sparingly.delay(7), sparingly.delay(7)
    gathering.let_go()
    control.cancel(fresh(first).pk, reason="x", by="ann")
    later(61)
    assert gathering.let_go() == 1
    assert fresh(second).due_at is not None


def test_after_the_span_a_call_goes_at_once_again() -> None:
    started(sparingly.delay(7))
    later(61)
    job = sparingly.delay(7)
    assert gathering.let_go() == 1
    assert fresh(job).due_at is not None


def test_without_a_leading_run_the_first_call_waits_for_the_span() -> None:
    job = sparingly.apply_async((7,), throttle=Throttle("customer:{customer}", 60, leading=False))
    assert gathering.let_go() == 0
    later(60.1)
    assert gathering.let_go() == 1
    assert fresh(job).due_at is not None


def test_without_a_trailing_run_the_run_before_stands_for_the_calls_of_the_span() -> None:
    window = Throttle("customer:{customer}", 60, trailing=False)
    first = sparingly.apply_async((7, "a"), throttle=window)
    assert sparingly.apply_async((7, "b"), throttle=window).id == first.id
    started(first)
    assert sparingly.apply_async((7, "c"), throttle=window).id == first.id
    later(61)
    assert sparingly.apply_async((7, "d"), throttle=window).id != first.id
    assert bulk.bulk(sparingly, [(8, "a"), (8, "b")], throttle=window).inserted == 1


def test_what_is_long_past_is_forgotten() -> None:
    started(sparingly.delay(7))
    later(61)
    gathering.let_go()
    assert not Burst.objects.exists()


# --- What is refused --------------------------------------------------------------------------------


def test_a_key_and_a_window_do_not_go_together() -> None:
    with pytest.raises(DeclarationError, match="has a key and a debounce"):

        @task(key="x:{a}", debounce=Debounce("x:{a}", 1))
        def both(a: int) -> None: ...

    with pytest.raises(OptionError, match="given a key and has a debounce"):
        calmly.apply_async((7,), key="x")


def test_an_idempotent_task_that_is_debounced_needs_no_key() -> None:
    class Tidy(IdempotentTask):
        throttle = Throttle("{task}", 5)

        def run(self) -> None: ...

    assert Tidy.throttle is not None


@pytest.mark.parametrize("value", [30, "customer"])
def test_what_is_no_window_is_refused_where_it_is_declared(value: Any) -> None:
    with pytest.raises(DeclarationError, match="must be a Debounce"):

        class Wrong(Task):
            debounce = value

            def run(self) -> None: ...


def test_a_call_that_says_when_it_runs_is_refused() -> None:
    with pytest.raises(OptionError, match="give no countdown and no eta"):
        calmly.apply_async((7,), countdown=5)


# --- What is told -----------------------------------------------------------------------------------


def around() -> None:
    """A worker and a conductor."""
    now = lifecycle.database_now()
    Worker.objects.create(name="w", pid=1, started_at=now, seen_at=now, queues=["default"], concurrency=20)
    Leader.objects.create(office="conductor", holder="x", until=now + timedelta(hours=1))


def test_it_is_told_until_when_a_debounced_job_gathers() -> None:
    around()
    job = calmly.delay(7)
    calmly.delay(7)
    (part,) = explain(job.id).parts
    assert part.word == "debounced"
    assert part.sentence.startswith("It gathers 2 calls of customer:7: quiet until ")
    assert ", at the latest " in part.sentence
    assert part.until == part.details["last_at"] + timedelta(seconds=30)
    assert part.details["at_latest"] == part.details["first_at"] + timedelta(seconds=300)


def test_it_is_told_when_a_throttled_job_goes() -> None:
    around()
    first = sparingly.delay(7)
    second = sparingly.delay(7)
    assert "that long after the run before it has started" in explain(second.id).sentence
    started(first)
    (part,) = explain(second.id).parts
    assert (part.word, part.until) == ("throttled", fresh(first).started_at + timedelta(seconds=60))


# --- Where nobody debounces ---------------------------------------------------------------------------


def test_a_plain_call_asks_nothing_of_bursts(django_assert_num_queries: Any) -> None:
    add.delay(1, 1)
    with django_assert_num_queries(1) as asked:
        add.delay(1, 2)
    assert "jobs_burst" not in str(asked.captured_queries)


@task
def count(found: list[str]) -> int:
    return len(found)


@task(debounce=Debounce("x", 30))
def failing(number: int) -> None:
    raise ValueError(number)


def test_nothing_is_open_that_has_gone() -> None:
    calmly.delay(7)
    later(31)
    gathering.let_go()
    assert bursts.seen(calmly.name, "customer:7") == []
