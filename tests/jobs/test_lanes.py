"""Who goes next: most urgent first, tenants in turn, within every limit; and no priority starves."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import timedelta
from itertools import count
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from django.db import connection, transaction
from django.db.models import F

from jobs import attempt as attempts
from jobs import bulk, control, floods, lanerows, lanes, lifecycle, limits, outbox, publisher
from jobs.models import Allotment, Arrival, Bucket, Job, Lane, Share, Slot, Worker
from jobs.states import State
from tests.platform import Witness, attempt, drain, fresh, running
from tests.sample.tasks import alone, for_user, note, three_at_a_time, through_gateway

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def nothing_learned(sent: list[str]) -> Iterator[None]:
    """What other tests taught about how fast workers are does not count; nothing goes to a broker."""
    lanes._flows.clear()
    floods._looks.clear()
    yield
    lanes._flows.clear()


def workers(hands: int, queue: str = "default") -> None:
    """A live worker that runs so many bodies at once."""
    now = lifecycle.database_now()
    Worker.objects.update_or_create(
        name=f"{queue}@here",
        defaults={"pid": 1, "started_at": now, "seen_at": now, "queues": [queue], "concurrency": hands},
    )


def name(job: Any) -> str:
    """The first argument of a job."""
    content = json.loads(Job.objects.get(pk=job.pk).payload)
    return str((content.get("args") or [*content["kwargs"].values()])[0])


def released(limit: int = 1000) -> list[str]:
    """What one release lets go."""
    return [name(job) for job in lanes.release(limit)]


def ended(jobs: Sequence[Job] | None = None) -> None:
    """All that was released has run."""
    for job in jobs or Job.objects.filter(state=State.RESERVED).order_by("sent_at"):
        attempt(job.pk)


def started_one_by_one(limit: int = 50) -> list[str]:
    """In which order a worker with one hand starts what waits."""
    order: list[str] = []
    waiting: list[Job] = []
    for _ in range(limit):
        waiting += lanes.release(10)
        if not waiting:
            return order
        first = min(waiting, key=publisher._urgency)  # the broker hands these out by priority
        waiting.remove(first)
        order.append(name(first))
        attempt(first.pk)
    raise AssertionError(f"{limit} were not enough")


def started_one_by_one_at_most(limit: int) -> list[str]:
    """The first of them."""
    order = []
    for _ in range(limit):
        (job,) = lanes.release(1)
        order.append(name(job))
        attempt(job.pk)
    return order


def aged(seconds: float) -> None:
    """Let everything wait for longer."""
    Job.objects.filter(finished_at=None).update(due_at=F("due_at") - timedelta(seconds=seconds))
    Lane.objects.update(
        head_at=F("head_at") - timedelta(seconds=seconds), open_at=F("open_at") - timedelta(seconds=seconds)
    )
    Share.objects.update(open_at=F("open_at") - timedelta(seconds=seconds))
    Bucket.objects.update(filled_at=F("filled_at") - timedelta(seconds=seconds))
    Bucket.objects.exclude(wake_at=None).update(wake_at=F("wake_at") - timedelta(seconds=seconds))


# --- What is in line, and what goes directly --------------------------------------------------------


def test_a_job_that_nothing_constrains_goes_directly() -> None:
    assert fresh(note.delay("x")).state == State.RESERVED
    assert not Arrival.objects.exists()


def test_a_plain_job_does_not_overtake_others_that_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        note.apply_async((f"high{number}",), priority="high")
    ended(lanes.release(1))
    assert fresh(note.delay("before it is known")).state == State.RESERVED
    monkeypatch.setattr(outbox, "LOOK_EVERY", 0.0)
    assert fresh(note.delay("after")).state == State.PENDING
    assert fresh(note.apply_async(("elsewhere",), queue="mail")).state == State.RESERVED
    assert started_one_by_one()[-1] == "after"
    assert fresh(note.delay("when nobody waits")).state == State.RESERVED


def test_a_plain_job_need_not_wait_for_less_urgent_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        note.apply_async((f"low{number}",), priority="low")
    lanes.release(1)
    note.delay("x")
    monkeypatch.setattr(outbox, "LOOK_EVERY", 0.0)
    assert fresh(note.delay("y")).state == State.RESERVED


@pytest.mark.parametrize("options", [{"priority": "critical"}, {"priority": "low"}, {"tenant": "acme"}])
def test_a_constrained_job_waits_for_its_turn(options: dict[str, Any]) -> None:
    job = fresh(note.apply_async(("x",), **options))
    assert (job.state, job.reason) == (State.PENDING, "waits for its turn")
    assert released() == ["x"]
    assert fresh(job).state == State.RESERVED


def test_jobs_of_a_bulk_wait_for_their_turn_with_one_arrival_for_all() -> None:
    from jobs import bulk

    bulk.bulk(note, [str(n) for n in range(5)], tenant="acme")
    assert Arrival.objects.count() == 1
    workers(10)
    assert released() == ["0", "1", "2", "3", "4"]


def test_what_is_rolled_back_leaves_nothing_in_line() -> None:
    with transaction.atomic():
        note.apply_async(("x",), tenant="acme")
        assert Arrival.objects.exists()
        transaction.set_rollback(True)
    assert not Arrival.objects.exists()


def test_a_job_for_later_goes_when_it_is_due() -> None:
    note.apply_async(("later",), tenant="acme", countdown=60)
    assert released() == []
    aged(61)
    assert released() == ["later"]


def test_a_job_that_failed_goes_again_when_it_is_due() -> None:
    from tests.sample.tasks import misbehave

    job = misbehave.apply_async(("transient",), tenant="acme")
    lanes.release(10)
    attempt(job.id)
    assert fresh(job).state == State.RETRYING
    aged(100)
    assert [one.pk for one in lanes.release(10)] == [UUID(job.id)]


def test_a_job_whose_arrival_was_lost_is_found() -> None:
    note.apply_async(("x",), tenant="acme")
    Arrival.objects.all().delete()
    assert released() == []
    assert lanes.mend() == 1
    assert released() == ["x"]


def test_a_job_that_is_due_before_its_lane_knows_is_found() -> None:
    job = note.apply_async(("x",), tenant="acme", countdown=3600)
    assert released() == []
    Job.objects.filter(pk=job.id).update(due_at=lifecycle.database_now())
    assert released() == []
    assert lanes.mend() == 1
    assert released() == ["x"]
    assert lanes.mend() == 0


def test_nothing_is_left_of_what_has_ended() -> None:
    for_user.apply_async(("a", "ann"), priority="low", tenant="acme")
    drain()
    lanes.release(10)
    assert [model.objects.count() for model in (Arrival, Share, Lane, Slot)] == [0, 0, 0, 0]


# --- Priorities ---------------------------------------------------------------------------------------


def test_higher_first_and_first_in_first_out_within() -> None:
    for number, priority in enumerate(["low", "high", "critical", "low", "high", "critical"]):
        note.apply_async((f"{priority}{number}",), priority=priority)
    assert started_one_by_one() == ["critical2", "critical5", "high1", "high4", "low0", "low3"]


def test_the_broker_holds_no_more_than_the_workers_can_soon_take() -> None:
    workers(3)
    for number in range(20):
        note.apply_async((str(number),), priority="low")
    assert len(released()) == 4
    assert released() == []


def test_more_is_sent_ahead_where_workers_take_all_of_it_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    hundredths = count()
    monkeypatch.setattr(lanes, "time", SimpleNamespace(monotonic=lambda: next(hundredths) / 100))
    workers(1)
    for number in range(100):
        note.apply_async((str(number),), priority="low")
    many = []
    for _ in range(4):
        many.append(len(released()))
        ended()
    assert many == [2, 3, 5, 9]


def test_one_in_eight_goes_to_whoever_waits_below_for_too_long() -> None:
    for number in range(40):
        note.apply_async((f"high{number}",), priority="high")
    for number in range(3):
        note.apply_async((f"low{number}",), priority="low")
    lanes.release(1)
    ended()
    aged(31)
    order = started_one_by_one()
    places = [place for place, one in enumerate(order) if one.startswith("low")]
    assert places[0] >= 5  # nor does it take more than its part
    assert [place // 8 for place in places] == [0, 1, 2]
    assert [one for one in order if one.startswith("high")] == [f"high{n}" for n in range(1, 40)]


def test_nobody_below_goes_before_having_waited_for_long() -> None:
    for number in range(20):
        note.apply_async((f"high{number}",), priority="high")
    note.apply_async(("low",), priority="low")
    assert started_one_by_one()[-1] == "low"


def test_what_has_waited_for_too_long_goes_first_in_the_broker_too() -> None:
    note.apply_async(("low",), priority="low")
    workers(20)
    for number in range(9):
        note.apply_async((f"high{number}",), priority="high")
    lanes.Release(0)._take_in([])
    aged(31)
    urgent = {name(job): publisher._urgency(job) for job in lanes.release(10)}
    assert urgent["low"] == 0
    assert urgent["high0"] == 10


def test_what_lies_in_the_broker_behind_more_urgent_jobs_is_taken_back_and_goes_first() -> None:
    low = note.apply_async(("low",), priority="low")
    lanes.release(1)
    workers(4)
    for number in range(3):
        note.apply_async((f"high{number}",), priority="high")
    lanes.release(1)
    Job.objects.filter(pk=low.id).update(
        sent_at=F("sent_at") - timedelta(seconds=31), due_at=F("due_at") - timedelta(seconds=31)
    )
    lanes.release(1)
    assert (fresh(low).state, fresh(low).reason) == (State.PENDING, "overtaken in the broker")
    (again,) = [job for _ in range(9) for job in lanes.release(1) if name(job) == "low"]
    assert publisher._urgency(again) == 0 or not Share.objects.filter(priority=10).exists()


def test_the_tokens_of_a_key_that_has_all_are_forgotten() -> None:
    through_gateway.delay("x")
    lanes.release(1)
    Bucket.objects.update(full_at=F("full_at") + timedelta(seconds=60))
    lanes.mend()
    assert Bucket.objects.filter(key="gateway").exists()
    Bucket.objects.update(full_at=F("full_at") - timedelta(seconds=61))
    lanes.mend()
    assert not Bucket.objects.filter(key="gateway").exists()


# --- Tenants --------------------------------------------------------------------------------------------


def test_tenants_take_turns() -> None:
    for number in range(4):
        note.apply_async((f"a{number}",), tenant="a")
    for number in range(2):
        note.apply_async((f"b{number}",), tenant="b")
    assert started_one_by_one() == ["a0", "b0", "a1", "b1", "a2", "a3"]


def test_a_flood_of_many_lanes_is_still_one_tenant() -> None:
    for number in range(6):
        for_user.apply_async((f"a{number}", f"user{number}"), tenant="a")
    note.apply_async(("b0",), tenant="b")
    assert "b0" in started_one_by_one()[:2]


def test_who_comes_later_has_saved_no_turns_up() -> None:
    for number in range(10):
        note.apply_async((f"a{number}",), tenant="a")
    for _ in range(4):
        lanes.release(1)
        ended()
    for number in range(3):
        note.apply_async((f"b{number}",), tenant="b")
    order = started_one_by_one()
    assert order[:6] in (["a4", "b0", "a5", "b1", "a6", "b2"], ["b0", "a4", "b1", "a5", "b2", "a6"])


@pytest.mark.parametrize("weight", [None, 4])
def test_who_comes_while_the_others_wait_for_a_limit_has_saved_no_turns_up(weight: int | None) -> None:
    if weight:
        control.allot("a", weight=weight, by="ann")
    for number in range(30):
        for_user.apply_async((f"a{number}", "ann"), tenant="a")
    started_one_by_one_at_most(20)
    workers(3)
    lanes.release(2)
    assert released() == []  # both run: nobody of this priority may go
    for number in range(30):
        note.apply_async((f"b{number}",), tenant="b")
    workers(1)
    ended()
    order = started_one_by_one_at_most(10)
    assert sum(one.startswith("a") for one in order) >= 4


def test_a_tenant_has_as_many_turns_as_it_has_weight() -> None:
    now = lifecycle.database_now()
    Allotment.objects.create(kind="weight", name="a", amount=3, burst=3, said="3", created_at=now)
    for number in range(9):
        note.apply_async((f"a{number}",), tenant="a")
        note.apply_async((f"b{number}",), tenant="b")
    order = started_one_by_one()
    assert sum(one.startswith("a") for one in order[:8]) == 6


def test_a_plain_flood_in_the_broker_is_put_in_line_when_somebody_else_is() -> None:
    from jobs import bulk

    bulk.bulk(note, [f"plain{n}" for n in range(60)])
    assert Job.objects.filter(state=State.RESERVED).count() == 60
    assert lanes.release(1) == []  # it is alone
    note.apply_async(("lone",), tenant="lone")
    (first,) = lanes.release(1)
    assert (name(first), publisher._urgency(first)) == ("lone", 10)
    assert not Job.objects.filter(lane="", state=State.RESERVED).exists()
    attempt(first.pk)
    assert [started_one_by_one_at_most(3), Job.objects.filter(state=State.COMPLETED).count()] == [
        ["plain0", "plain1", "plain2"], 4,
    ]  # fmt: skip


def test_a_plain_flood_is_in_line_though_the_first_of_it_began_just_now(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = [fresh(note.delay(f"plain{n}")) for n in range(60)]
    note.apply_async(("lone",), tenant="lone")
    move_all = lifecycle.move_all

    def beginning(*given: Any, **changes: Any) -> int:
        if given[4] == floods.IN_LINE:
            running(plain[0].pk)
        return move_all(*given, **changes)

    monkeypatch.setattr(lifecycle, "move_all", beginning)
    assert started_one_by_one_at_most(3) == ["lone", "plain1", "plain2"]


def test_a_few_plain_jobs_in_the_broker_are_overtaken_and_left_alone() -> None:
    for number in range(3):
        note.delay(f"plain{number}")
    note.apply_async(("lone",), tenant="lone")
    (first,) = lanes.release(10)
    assert publisher._urgency(first) == 10
    assert Job.objects.filter(lane="", state=State.RESERVED).count() == 3


# --- Limits ---------------------------------------------------------------------------------------------


def test_no_more_go_than_the_limit_says_and_the_next_when_one_has_ended() -> None:
    workers(10)
    for letter in "abcd":
        for_user.delay(letter, "ann")
    for_user.delay("e", "bob")
    assert released() == ["a", "b", "e"]
    assert released() == []
    attempt(Job.objects.get(state=State.RESERVED, payload__contains='"a"').pk)
    assert released() == ["c"]


def test_a_running_job_counts_until_it_is_taken_from_its_runner() -> None:
    from jobs import rescue

    workers(10)
    alone.delay("a")
    alone.delay("b")
    (first,) = lanes.release(10)
    running(first.pk, lease=-1)
    assert released() == []
    rescue.rescue()
    aged(60)
    assert len(released()) == 1


def test_tasks_that_write_one_template_with_their_own_names_in_it_have_each_their_own_number() -> None:
    workers(20)
    for number in range(5):
        alone.delay(f"alone {number}")
        three_at_a_time.delay(f"three {number}")
    assert Counter(name.split()[0] for name in released()) == {"alone": 1, "three": 3}


def test_several_limits_are_taken_all_or_none() -> None:
    workers(10)
    for number in range(3):
        through_gateway.apply_async((f"a{number}",), tenant="a")
    assert released() == ["a0", "a1"]  # two of a tenant
    assert Bucket.objects.get(key="gateway").tokens == pytest.approx(1, abs=0.3)  # the third took no token
    through_gateway.apply_async(("b0",), tenant="b")
    assert released() == ["b0"]


def test_a_rate_lets_a_burst_go_and_then_one_at_a_time() -> None:
    workers(100)
    for number in range(8):
        through_gateway.apply_async((str(number),), tenant=str(number))
    Allotment.objects.create(
        kind="slots", name="{queue}", amount=100, burst=100, said="100", created_at=lifecycle.database_now()
    )
    Allotment.objects.create(
        kind="tokens", name="gateway", amount=0.01, burst=3, said="1/100s", created_at=lifecycle.database_now()
    )
    assert len(released()) == 3
    assert released() == []
    aged(101)
    assert len(released()) == 1
    assert released() == []
    aged(201)
    assert len(released()) == 2


def test_a_job_takes_one_of_a_key_though_two_rules_make_it() -> None:
    workers(10)
    keys = [["slots", "purse", rule, 2.0, 2.0] for rule in ("{a}", "{b}")]
    keys += [["tokens", "purse", rule, 0.001, 2.0] for rule in ("{a}", "{b}")]
    for number in range(3):
        _bound(note, str(number), keys)
    assert released() == ["0", "1"]
    assert Bucket.objects.get(key="purse").tokens == pytest.approx(0, abs=0.01)


def test_what_is_closed_is_not_looked_at_until_something_is_left_again(
    django_assert_max_num_queries: Any,
) -> None:
    workers(100)
    for number in range(50):
        alone.apply_async((str(number),), tenant=str(number))
    assert len(released()) == 1
    while Share.objects.filter(is_open=True).exists():
        lanes.release(100)
    assert Lane.objects.filter(waits_on__startswith="slots ").count() == 49
    with django_assert_max_num_queries(16):
        assert released() == []
    ended()
    assert len(released()) == 1


def crowd(many: int) -> None:
    """So many tenants, each with a job that waits for the same key, which is taken."""
    workers(4)
    alone.apply_async(("first",), tenant="first")
    assert released() == ["first"]
    bulk.bulk(alone.s(f"{n}").set(tenant=f"t{n}") for n in range(many))


def looked_at() -> int:
    """How many lanes are closed, and not to be looked at now."""
    return Lane.objects.exclude(waits_on="").filter(open_at__gt=lifecycle.database_now()).count()


def test_a_crowd_that_may_not_go_holds_up_nobody_who_may(django_assert_max_num_queries: Any) -> None:
    crowd(390)
    note.apply_async(("lone",), tenant="lone")
    with django_assert_max_num_queries(70):
        assert released() == []
    assert lanes.unfinished()
    assert looked_at() == 200
    assert released() == ["lone"]


def test_a_few_of_a_crowd_that_waits_for_the_same_are_looked_at_soon_and_the_others_late(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lanes, "FEW", 10)
    crowd(150)
    released()
    aged(lanes.RECHECK.total_seconds() + 1)
    Worker.objects.update(seen_at=lifecycle.database_now())
    released()
    now = lifecycle.database_now()
    closed = Lane.objects.exclude(waits_on="")
    soon = closed.filter(open_at__lte=now + lanes.RECHECK).count()
    assert 1 <= soon <= 30
    assert closed.filter(open_at__gt=now + lanes.RECHECK, open_at__lte=now + lanes.LATE).count() == 150 - soon
    ended()
    assert len(released()) == 1


def test_one_release_opens_no_more_than_so_many_whose_time_has_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "OPENED", 20)
    crowd(50)
    opened = []
    for _ in range(4):
        released()
        opened.append(looked_at())
    assert opened == [20, 40, 50, 50]


def test_a_paused_task_holds_up_no_other_of_its_tenant() -> None:
    workers(10)
    control.pause(task=alone.name, reason="", by="ann")
    alone.apply_async(("a",), tenant="t")
    note.apply_async(("b",), tenant="t")
    assert released() == ["b"]
    control.resume(task=alone.name, by="ann")
    assert released() == ["a"]


@pytest.mark.parametrize("paused", [{"task": alone.name}, {"queue": "mail"}], ids=["task", "queue"])
def test_a_slot_that_is_free_again_goes_to_nobody_who_is_paused(paused: dict[str, str]) -> None:
    """However many of them wait for it, and however urgent they are."""
    workers(50)
    workers(50, "mail")
    key = [["slots", "shared", "shared", 1.0, 1.0]]
    first = _bound(note, "first", key)
    for number in range(30):
        _bound(alone, f"p{number}", key, queue="mail", tenant=str(number), priority="high")
    assert released() == ["first"]
    _bound(note, "next", key)
    assert released() == []
    while Share.objects.filter(is_open=True).exists():
        lanes.release(100)
    control.pause(**paused, reason="", by="ann")
    attempt(first)
    assert released() == ["next"]
    attempt(Job.objects.get(state=State.RESERVED).pk)
    lanes.release(1)
    control.resume(**paused, by="ann")
    assert released() == ["p0"]


def _bound(task: Any, name: str, keys: list[Any], **options: Any) -> UUID:
    """A job that has these keys and no others."""
    job = fresh(task.apply_async((name,), **{"tenant": "t"} | options))
    bound = json.dumps(keys)
    lane = limits.lane(job.queue, job.priority, job.tenant, job.task, bound)
    Job.objects.filter(pk=job.pk).update(bound=bound, lane=lane)
    return job.pk


@pytest.mark.parametrize("paused", [{"task": through_gateway.name}, {"queue": "default"}], ids=str)
def test_what_is_paused_takes_no_token(paused: dict[str, str]) -> None:
    control.pause(**paused, reason="", by="ann")
    through_gateway.apply_async(("a",), tenant="t")
    assert released() == []
    assert not Bucket.objects.filter(key="gateway").exists()


def test_a_direct_release_takes_nothing_out_of_its_line() -> None:
    note.apply_async(("x",), tenant="t")
    assert lifecycle.reserve_due(10) == []


def test_a_paused_queue_lets_nothing_go() -> None:
    job = note.apply_async(("x",), tenant="t")
    lanes.release(10)
    control.pause(queue="default", reason="", by="ann")
    assert fresh(job).state == State.PENDING
    assert released() == []
    control.resume(queue="default", by="ann")
    assert released() == ["x"]


def test_who_is_taken_back_by_a_pause_or_handed_back_keeps_his_place() -> None:
    for letter in "abc":
        note.apply_async((letter,), tenant="t")
    workers(1)
    assert released() == ["a", "b"]
    job = running(Job.objects.get(state=State.RESERVED, payload__contains='"a"').pk)
    control.pause(queue="default", reason="", by="ann")
    assert attempts.hand_back(job)
    control.resume(queue="default", by="ann")
    assert started_one_by_one() == ["a", "b", "c"]


def test_a_job_that_is_cancelled_while_it_waits_does_not_go() -> None:
    job = note.apply_async(("x",), tenant="t")
    note.apply_async(("y",), tenant="t")
    control.cancel(fresh(job).pk, reason="", by="ann")
    assert released() == ["y"]


# --- The classic exercise -------------------------------------------------------------------------------


def exercise() -> None:
    """Five jobs of two users and a third, of three priorities."""
    for letter, user, priority in (
        ("A", "user1", "high"), ("B", "user2", "normal"), ("C", "user1", "normal"), ("D", "user1", "normal"),
        ("E", "user2", "low"),
    ):  # fmt: skip
        for_user.apply_async((letter, user), tenant=user, priority=priority)


def test_with_one_hand_the_jobs_of_the_exercise_start_in_order() -> None:
    workers(1)
    exercise()
    assert started_one_by_one() == ["A", "B", "C", "D", "E"]


def test_with_four_hands_a_user_who_has_two_running_lets_others_go_before(witness: Witness) -> None:
    workers(4)
    exercise()
    assert released() == ["A", "B", "C", "E"]
    for job in Job.objects.filter(state=State.RESERVED):
        running(job.pk)
    assert released() == []
    Job.objects.filter(payload__contains='"A"').update(state=State.COMPLETED, finished_at=F("started_at"))
    assert released() == ["D"]


# --- What it costs --------------------------------------------------------------------------------------


def test_a_crowd_of_tenants_that_comes_at_once_delays_nobody_by_seconds(django_assert_max_num_queries: Any) -> None:
    from jobs import bulk

    bulk.bulk([note.s(str(n)).set(tenant=f"tenant{n}") for n in range(2500)])
    workers(1)
    with django_assert_max_num_queries(80):
        lanes.release(1)
    for _ in range(2):  # one takes a part of them in even where time is short
        lanes.release(1)
    assert Share.objects.count() >= 2400


def test_a_crowd_of_lanes_of_one_tenant_that_may_not_go_is_looked_at_without_a_pause() -> None:
    """Who comes after them waits until all of them have been looked at."""
    workers(10)
    first = _bound(note, "first", [["slots", "closed", "closed", 1.0, 1.0]])
    assert released() == ["first"]
    bulk.bulk(note, [str(n) for n in range(1700)], tenant="t")
    for number, job in enumerate(Job.objects.exclude(pk=first)):
        bound = f'[["slots","closed","closed",1.0,1.0],["slots","c{number}","c",1.0,1.0]]'
        Job.objects.filter(pk=job.pk).update(bound=bound, lane=limits.lane("default", 20, "t", note.name, bound))
    assert lanes.mend(limit=2000) == 1700
    lanes.release(10)
    while Share.objects.filter(is_open=True).exists():
        assert lanes.unfinished()
        assert lanes.release(10) == []
    assert not lanes.unfinished()


def test_a_job_that_is_due_at_a_whole_second_goes_in_this_second(monkeypatch: pytest.MonkeyPatch) -> None:
    workers(1)
    second = lifecycle.database_now().replace(microsecond=0)
    job = for_user.apply_async(("x", "ada"))
    with connection.cursor() as cursor:  # as the database writes it
        cursor.execute(
            "UPDATE jobs_job SET due_at = %s",
            [second.strftime("%Y-%m-%d %H:%M:%S.000000+00:00")[: 26 if connection.vendor == "sqlite" else 32]],
        )
    monkeypatch.setattr(lifecycle, "database_now", lambda: second)
    assert [str(one.pk) for one in lanes.release(10)] == [str(job.id)]


def test_a_release_reads_the_lines_by_their_indexes_and_not_the_backlog() -> None:
    from jobs import bulk

    bulk.bulk(note, [str(n) for n in range(3000)], tenant="flood")
    for number in range(300):
        note.apply_async((f"lone{number}",), tenant=f"tenant{number}")
    lanes.release(1)
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("ANALYZE")
        plan = "\n".join(_plan(cursor))
    assert "SCAN jobs_job" not in plan.replace("SCAN jobs_job USING", "")
    assert "Seq Scan on jobs_job" not in plan
    assert "jobs_due_by_lane" in plan


def _plan(cursor: Any) -> list[str]:
    how = "EXPLAIN" if connection.vendor == "postgresql" else "EXPLAIN QUERY PLAN"
    lane = Lane.objects.order_by("pk").values_list("pk", flat=True)[0]
    cursor.execute(
        f"{how} {lanerows.first_jobs('%s')} LIMIT 100",
        [lane, lifecycle.prepared("due_at", lifecycle.database_now())],
    )
    return [str(row[-1]) for row in cursor.fetchall()]
