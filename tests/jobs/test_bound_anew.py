"""The keys of limits and breakers follow the payload with which a job runs again; its own key stays its call's."""

import pytest

from dlq import replay
from dlq.models import DeadLetter
from jobs import lanes, lifecycle, limits
from jobs.explain import explain
from jobs.models import Circuit, Job, Slot, Worker
from jobs.payload import Payload
from jobs.states import State
from tests.platform import attempt, fresh
from tests.sample.tasks import go_elsewhere, move_on, plain_elsewhere

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def nothing_leaves(sent: list[str]) -> None:
    """Nothing goes to a broker, and a worker has many hands."""
    lanes._flows.clear()
    now = lifecycle.database_now()
    Worker.objects.create(name="w", pid=1, started_at=now, seen_at=now, queues=["default"], concurrency=20)


def keys(job: Job) -> set[str]:
    return {bind.key for bind in limits.binds(fresh(job).bound)}


def moved_on() -> Job:
    """A job that asked for another attempt with another payload."""
    job = move_on.delay("ada", "bob")
    lanes.release(1)
    attempt(job.id)
    return fresh(job)


def test_a_retry_with_another_payload_counts_under_the_keys_of_that_payload() -> None:
    job = moved_on()
    assert job.state == State.RETRYING
    assert keys(job) == {"moving:bob", "mover:bob"}


def test_it_waits_for_the_limit_of_the_new_payload_and_not_for_the_old_one() -> None:
    busy = move_on.delay("bob", "bob")
    lanes.release(1)
    job = moved_on()
    lanes.release(10)
    assert fresh(busy).state == State.RESERVED
    assert fresh(job).state == State.RETRYING
    assert explain(job.pk).parts[0].details["key"] == "moving:bob"


def test_the_old_key_of_a_limit_is_free_meanwhile() -> None:
    moved_on()
    lanes.release(10)
    assert set(Slot.objects.exclude(key="").values_list("key", flat=True)) & {"moving:ada"} == set()


def test_what_failed_is_counted_under_the_key_with_which_it_ran() -> None:
    moved_on()
    assert [row.key for row in Circuit.objects.all()] == ["mover:ada"]


def test_the_key_that_makes_two_calls_one_job_stays_that_of_the_call() -> None:
    job = moved_on()
    assert job.key == "moving:ada"
    assert move_on.delay("ada", "bob").id == str(job.pk)


def test_a_retry_with_a_payload_of_which_no_key_can_be_made_keeps_those_that_it_had() -> None:
    job = move_on.delay("ada", "nobody at all")
    lanes.release(1)
    attempt(job.id)
    assert keys(fresh(job)) == {"moving:ada", "mover:ada"}


def test_a_retry_in_another_queue_counts_under_the_keys_of_that_queue() -> None:
    job = go_elsewhere.delay({"queue": "mail"})
    lanes.release(1)
    attempt(job.id)
    assert (fresh(job).queue, keys(fresh(job))) == ("mail", {"mail at a time"})
    assert fresh(job).lane == limits.lane("mail", 20, "", go_elsewhere.name, fresh(job).bound)


def test_a_plain_job_that_asks_for_a_priority_is_put_in_line() -> None:
    job = plain_elsewhere.delay({"priority": "high"})
    attempt(job.id)
    assert (fresh(job).priority, fresh(job).lane) == (10, limits.lane("default", 10, "", plain_elsewhere.name, ""))
    assert [row.pk for row in lanes.release(10)] == [fresh(job).pk]
    attempt(job.id)
    assert fresh(job).state == State.COMPLETED


def test_a_plain_job_that_asks_for_another_queue_runs_there() -> None:
    job = plain_elsewhere.apply_async(({"queue": "mail", "priority": "normal"},))
    attempt(job.id)
    assert (fresh(job).queue, fresh(job).lane) == ("mail", "")


@pytest.mark.parametrize("where", [{"queue": "nowhere"}, {"priority": "soon"}])
def test_a_retry_to_where_nothing_is_fails_with_a_sentence(where: dict[str, str]) -> None:
    job = go_elsewhere.delay(where)
    lanes.release(1)
    attempt(job.id)
    assert fresh(job).state == State.FAILED
    assert fresh(job).error_type == "jobs.errors.OptionError"
    assert (fresh(job).queue, fresh(job).priority) == ("default", 20)


def dead(user: str = "ada") -> DeadLetter:
    job = move_on.delay(user, user)
    lanes.release(1)
    attempt(job.id)
    return DeadLetter.objects.get(job_id=job.id)


def test_a_replay_with_another_payload_counts_under_the_keys_of_that_payload() -> None:
    job = replay.replay(dead().pk, by="ann", payload=Payload(("eve", "eve"), {}))
    assert keys(job) == {"moving:eve", "mover:eve"}
    lanes.release(10)
    assert "moving:eve" in Slot.objects.filter(job_id=job.pk).values_list("key", flat=True)


def test_a_replay_counts_under_what_its_task_declares_today(monkeypatch: pytest.MonkeyPatch) -> None:
    letter = dead()
    monkeypatch.setattr(move_on, "limits", [limits.Concurrency("all of {user}", 3)])
    assert keys(replay.replay(letter.pk, by="ann")) == {"all of ada", "mover:ada"}


def test_a_replay_of_a_task_without_limits_today_is_held_by_none(monkeypatch: pytest.MonkeyPatch) -> None:
    letter = dead()
    monkeypatch.setattr(move_on, "limits", [])
    monkeypatch.setattr(move_on, "breakers", [])
    assert fresh(replay.replay(letter.pk, by="ann")).bound == ""


def test_a_replay_bypasses_the_key_and_keeps_to_the_limits() -> None:
    letter = dead()
    move_on.delay("ada", "bob")
    lanes.release(1)
    job = replay.replay(letter.pk, by="ann")
    lanes.release(10)
    assert (job.key, fresh(job).state) == (None, State.PENDING)
