"""The way in: what a call records, in which transaction, under which key, and what is refused."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from celery import chain, chord, group
from django.contrib.auth.models import Group
from django.db import connection, connections, transaction
from django.utils import timezone

from jobs.context import correlated
from jobs.errors import JobsError, KeyCannotBeMade, OptionError, PayloadError
from jobs.models import FanIn, Job, Key
from jobs.states import Priority, State
from project.celery import app
from project.servers import RedisServer
from tests.platform import attempt, drain, fresh, messages, running
from tests.sample import tasks as sample

pytestmark = pytest.mark.django_db


# --- What a call records ----------------------------------------------------------------------------


def test_delay_records_a_job_with_its_payload() -> None:
    job = fresh(sample.add.delay(1, 2))
    assert (job.task, job.payload, job.state) == (sample.add.name, '{"args":[1,2],"kwargs":{}}', State.RESERVED)
    assert (job.queue, job.priority, job.attempt) == ("default", Priority.NORMAL, 0)


def test_a_new_jobs_id_is_time_ordered() -> None:
    ids = [UUID(sample.add.delay(1, n).id) for n in range(5)]
    assert ids == sorted(ids)
    assert {job_id.version for job_id in ids} == {7}


def test_a_class_is_called_by_its_name() -> None:
    job = fresh(sample.Charge.delay(order=7))
    assert (job.task, job.queue, job.priority) == (sample.Charge.name, "payments", Priority.NORMAL)
    assert job.key == "charge:7"


def test_coerced_values_are_stored() -> None:
    assert fresh(sample.Charge.delay("7", amount="2.5")).payload == '{"args":[7],"kwargs":{"amount":2.5}}'


def test_every_job_has_a_time_limit() -> None:
    assert fresh(sample.add.delay(1, 2)).time_limit == 300


@pytest.mark.parametrize(
    ("options", "field", "value"),
    [
        ({"queue": "mail"}, "queue", "mail"),
        ({"priority": "critical"}, "priority", Priority.CRITICAL),
        ({"priority": 30}, "priority", Priority.LOW),
        ({"tags": ["a", "b", "a"]}, "tags", ["a", "b"]),
        ({"metadata": {"order": 7}}, "metadata", {"order": 7}),
        ({"tenant": "acme"}, "tenant", "acme"),
        ({"correlation_id": "req-1"}, "correlation_id", "req-1"),
        ({"key": "mine"}, "key", "mine"),
        ({"time_limit": 9}, "time_limit", 9.0),
        ({"soft_time_limit": 8}, "soft_time_limit", 8.0),
    ],
)
def test_an_option_of_the_call_is_kept_with_the_job(options: dict[str, Any], field: str, value: Any) -> None:
    assert getattr(fresh(sample.add.apply_async((1, 2), **options)), field) == value


def test_a_countdown_is_honoured_by_the_row() -> None:
    job = fresh(sample.add.apply_async((1, 2), countdown=60))
    assert (job.state, job.reason) == (State.PENDING, "scheduled")
    assert timedelta(seconds=55) < job.due_at - job.created_at < timedelta(seconds=65)


def test_an_eta_is_honoured_by_the_row() -> None:
    eta = timezone.now() + timedelta(hours=1)
    job = fresh(sample.add.apply_async((1, 2), eta=eta))
    assert (job.state, job.due_at) == (State.PENDING, eta)


def test_an_eta_in_the_past_is_due_now() -> None:
    assert fresh(sample.add.apply_async((1, 2), eta=datetime(2020, 1, 1, tzinfo=UTC))).state == State.RESERVED


@pytest.mark.parametrize("zone", ["UTC", "Asia/Kathmandu"])
def test_a_project_without_zones_has_times_too(settings: Any, zone: str) -> None:
    settings.TIME_ZONE = zone
    settings.USE_TZ = False
    now = datetime.now(UTC)
    hour = timedelta(hours=1)
    job = fresh(sample.add.apply_async((1, 2), eta=now + hour, expires=now + 2 * hour))
    assert job.state == State.PENDING
    assert abs(job.due_at - job.created_at - hour) < timedelta(minutes=1)
    assert abs(job.expires_at - job.created_at - 2 * hour) < timedelta(minutes=1)
    with pytest.raises(OptionError, match="would expire at"):
        sample.add.apply_async((1, 2), expires=now - hour)


def test_an_expiry_is_kept_on_the_row() -> None:
    job = fresh(sample.add.apply_async((1, 2), expires=60))
    assert timedelta(seconds=55) < job.expires_at - job.created_at < timedelta(seconds=65)


def test_a_custom_uuid_is_the_jobs_id() -> None:
    mine = str(uuid4())
    assert sample.add.apply_async((1, 2), task_id=mine).id == mine
    assert Job.objects.filter(pk=mine).exists()


def test_the_correlation_id_in_force_is_taken_up() -> None:
    with correlated("request-9"):
        assert fresh(sample.add.delay(1, 2)).correlation_id == "request-9"


def test_the_correlation_id_flows_to_a_child_job() -> None:
    parent = sample.enlighten.apply_async(("x",), correlation_id="request-9")
    attempt(parent.id)
    child = Job.objects.get(task=sample.note.name)
    assert (child.correlation_id, child.parent_id) == ("request-9", UUID(parent.id))
    assert child.root_id == UUID(parent.id)


@pytest.mark.parametrize(
    "canvas",
    [
        lambda: chain(sample.add.s(1, 2), sample.add.s(3)),
        lambda: chord([sample.add.s(1, 2)], sample.total.s()),
        lambda: group(sample.add.s(1, 2), sample.add.s(3, 4)),
    ],
    ids=["chain", "chord", "group"],
)
def test_the_correlation_id_flows_through_a_canvas(canvas: Callable[[], Any]) -> None:
    with correlated("request-9"):
        canvas().apply_async()
    drain()
    assert set(Job.objects.values_list("correlation_id", "state")) == {("request-9", State.COMPLETED)}


# --- Which calls are tracked ------------------------------------------------------------------------


def test_a_plain_shared_task_is_tracked() -> None:
    job = fresh(sample.plain.delay(3))
    attempt(job.pk)
    assert (fresh(job).state, fresh(job).result) == (State.COMPLETED, "6")


def test_a_task_with_a_base_of_its_own_is_tracked_and_keeps_its_hooks(witness: Any) -> None:
    job = fresh(sample.with_own_base.delay(1))
    attempt(job.pk)
    assert fresh(job).state == State.COMPLETED
    assert witness.lines == ["audited:2"]


def test_a_task_registered_by_hand_is_tracked() -> None:
    assert Job.objects.filter(pk=app.tasks["sample.by_hand"].delay(2).id).exists()


def test_a_call_by_name_is_tracked() -> None:
    job = fresh(app.send_task(sample.add.name, (1, 2)))
    attempt(job.pk)
    assert fresh(job).result == "3"


def test_a_call_by_a_name_that_is_unknown_here_is_tracked() -> None:
    assert fresh(app.send_task("elsewhere.task", (1,))).task == "elsewhere.task"


def test_a_signature_is_tracked() -> None:
    assert fresh(sample.add.s(1, 2).set(queue="mail", priority="high").apply_async()).queue == "mail"


def test_a_signature_rebuilt_by_name_is_tracked() -> None:
    assert fresh(app.signature(sample.add.name, args=(1, 2)).delay()).task == sample.add.name


def test_an_entry_of_the_beat_schedule_is_tracked() -> None:
    from celery.beat import ScheduleEntry, Scheduler

    entry = ScheduleEntry(name="nightly", task=sample.add.name, schedule=timedelta(1), args=(1, 2), app=app)
    Scheduler(app, lazy=True).apply_entry(entry)
    assert Job.objects.get().task == sample.add.name


def test_an_entry_of_the_database_schedule_is_tracked() -> None:
    from celery.beat import Scheduler
    from django_celery_beat.models import IntervalSchedule, PeriodicTask
    from django_celery_beat.schedulers import ModelEntry

    every = IntervalSchedule.objects.create(every=10, period="seconds")
    model = PeriodicTask.objects.create(name="nightly", task=sample.add.name, interval=every, args="[1, 2]")
    Scheduler(app, lazy=True).apply_entry(ModelEntry(model, app=app))
    assert Job.objects.get().task == sample.add.name


def test_an_opted_out_task_leaves_no_job(broker: RedisServer) -> None:
    sample.untracked.delay("x")
    assert Job.objects.count() == 0
    assert messages(broker.url) == 1


def test_one_call_can_opt_out(broker: RedisServer) -> None:
    sample.plain.apply_async((1,), tracked=False)
    assert Job.objects.count() == 0
    assert messages(broker.url) == 1


def test_a_direct_call_records_nothing() -> None:
    assert sample.add(1, 2) == 3
    assert sample.add.apply((1, 2)).get() == 3
    assert Job.objects.count() == 0


@pytest.fixture
def eager() -> Iterator[None]:
    """Celery's eager mode."""
    app.conf.task_always_eager = True
    yield
    app.conf.task_always_eager = False


@pytest.mark.usefixtures("eager")
def test_eager_mode_records_nothing() -> None:
    assert sample.add.delay(1, 2).get() == 3
    assert chain(sample.add.s(1, 2), sample.add.s(3)).apply_async().get() == 6
    assert chord([sample.add.s(1, 2), sample.add.s(3, 4)], sample.total.s()).apply_async().get() == 10
    assert Job.objects.count() == 0


# --- Transactions -----------------------------------------------------------------------------------


def in_a_block_that_fails(act: Callable[[], Any]) -> None:
    """Act in a transaction, or in a savepoint of one, that is rolled back."""
    with transaction.atomic():
        act()
        raise ZeroDivisionError


@pytest.mark.django_db(transaction=True)
def test_a_job_is_sent_only_after_the_commit(sent: list[str]) -> None:
    with transaction.atomic():
        job = sample.add.delay(1, 2)
        assert sent == []
    assert sent == [job.id]


@pytest.mark.django_db(transaction=True)
def test_a_job_is_sent_at_once_outside_of_a_transaction(sent: list[str]) -> None:
    job = sample.add.delay(1, 2)
    assert sent == [job.id]


@pytest.mark.django_db(transaction=True)
def test_a_rolled_back_transaction_leaves_no_job_and_sends_nothing(sent: list[str]) -> None:
    with pytest.raises(ZeroDivisionError):
        in_a_block_that_fails(lambda: (sample.add.delay(1, 2), sample.Once.delay("x")))
    assert (Job.objects.count(), Key.objects.count(), sent) == (0, 0, [])


@pytest.mark.django_db(transaction=True)
def test_a_job_of_a_nested_block_is_sent_with_the_outermost(sent: list[str]) -> None:
    with transaction.atomic():
        with transaction.atomic():
            job = sample.add.delay(1, 2)
        assert sent == []
    assert sent == [job.id]


@pytest.mark.django_db(transaction=True)
def test_a_rolled_back_savepoint_takes_only_its_own_jobs_with_it(sent: list[str]) -> None:
    with transaction.atomic():
        kept = sample.add.delay(1, 2)
        with pytest.raises(ZeroDivisionError):
            in_a_block_that_fails(lambda: sample.add.delay(3, 4))
    assert sent == [kept.id]
    assert [str(pk) for pk in Job.objects.values_list("pk", flat=True)] == [kept.id]


@pytest.mark.django_db(transaction=True)
def test_a_chord_is_recorded_whole_or_not_at_all(sent: list[str]) -> None:
    header = [sample.add.s(1, 2), sample.add.s(3, "not a number")]
    with pytest.raises(PayloadError):
        chord(header, sample.total.s()).apply_async()
    assert (Job.objects.count(), FanIn.objects.count(), sent) == (0, 0, [])


# --- Keys -------------------------------------------------------------------------------------------


def test_the_same_key_returns_the_unfinished_job() -> None:
    assert sample.Charge.delay(7).id == sample.Charge.delay(7, amount=2.0).id
    assert Job.objects.count() == 1


def test_different_keys_are_different_jobs() -> None:
    assert sample.Charge.delay(7).id != sample.Charge.delay(8).id


def test_the_same_key_of_another_task_is_another_job() -> None:
    assert sample.add.apply_async((1, 2), key="k").id != sample.note.apply_async(("x",), key="k").id


def test_a_key_is_free_again_when_its_job_has_finished() -> None:
    first = sample.Charge.delay(7)
    attempt(first.id)
    assert sample.Charge.delay(7).id != first.id


def test_a_key_for_ever_holds_after_its_job_has_finished() -> None:
    first = sample.Once.delay("x")
    attempt(first.id)
    assert sample.Once.delay("x").id == first.id


def test_a_key_for_ever_holds_after_its_job_was_pruned() -> None:
    first = sample.Once.delay("x")
    Job.objects.all().delete()
    assert sample.Once.delay("x").id == first.id
    assert Job.objects.count() == 0


def test_a_key_for_a_period_holds_within_it() -> None:
    first = sample.Hourly.delay("x")
    attempt(first.id)
    assert sample.Hourly.delay("x").id == first.id


def test_a_key_for_a_period_is_free_after_it() -> None:
    first = sample.Hourly.delay("x")
    attempt(first.id)
    Key.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    assert sample.Hourly.delay("x").id != first.id


def test_a_period_that_ends_before_its_job_does_still_names_a_job_that_exists() -> None:
    first = sample.Hourly.delay("x")
    Key.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    assert sample.Hourly.delay("x").id == first.id
    attempt(first.id)
    assert Job.objects.filter(pk=sample.Hourly.delay("x").id).exists()


def test_a_call_with_an_id_of_its_own_and_a_taken_key_follows_the_owner() -> None:
    first = sample.Charge.delay(7)
    mine = sample.Charge.apply_async((7,), task_id=str(uuid4()))
    assert mine.id != first.id
    attempt(first.id)
    assert (fresh(mine).state, fresh(mine).result) == (State.COMPLETED, fresh(first).result)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    "call", [lambda: sample.Charge.delay(7), lambda: sample.Once.delay("x")], ids=["unfinished", "ever"]
)
def test_twenty_concurrent_callers_with_one_key_make_one_job(sent: list[str], call: Callable[[], Any]) -> None:
    together = threading.Barrier(20)

    def enqueue(_: int) -> str:
        together.wait()
        try:
            return str(call().id)
        finally:
            connections.close_all()

    with ThreadPoolExecutor(20) as callers:
        ids = set(callers.map(enqueue, range(20)))
    assert len(ids) == 1
    assert [str(pk) for pk in Job.objects.values_list("pk", flat=True)] == list(ids) == sent


# --- What is refused, with its sentence, and nothing left behind --------------------------------------

REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "too few arguments": (lambda: sample.add.delay(1), PayloadError, "missing a required argument: 'b'"),  # type: ignore[call-arg]
    "an argument nobody takes": (lambda: sample.add.delay(1, 2, c=3), PayloadError, "unexpected keyword argument 'c'"),  # type: ignore[call-arg]
    "a wrong type": (lambda: sample.add.delay(1, "two"), PayloadError, "b: Input should be a valid integer"),  # type: ignore[arg-type]
    "arity of a plain task": (lambda: sample.plain.delay(), PayloadError, "missing a required argument: 'a'"),
    "not JSON": (lambda: sample.plain.delay(object()), PayloadError, "is not JSON"),
    "not a number": (lambda: sample.plain.delay(float("nan")), PayloadError, "is not JSON"),
    "too large": (lambda: sample.note.delay("x" * 70_000), PayloadError, "pass a reference to it"),
    "a key that cannot be made": (lambda: sample.BadKey.delay([]), KeyCannotBeMade, "cannot be made from"),
    "an empty key": (
        lambda: sample.add.apply_async((1, 2), key=""),
        KeyCannotBeMade,
        "must be a text that is not empty",
    ),
    "an unknown option": (lambda: sample.add.apply_async((1, 2), qeue="mail"), OptionError, "Did you mean 'queue'"),
    "an unknown queue": (
        lambda: sample.add.apply_async((1, 2), queue="maill"),
        OptionError,
        "The project has: default",
    ),
    "an unknown priority": (
        lambda: sample.add.apply_async((1, 2), priority="urgent"),
        OptionError,
        "critical (0), high (10)",
    ),
    "a priority of Celery's": (lambda: sample.add.apply_async((1, 2), priority=5), OptionError, "Use one of"),
    "a negative countdown": (lambda: sample.add.apply_async((1, 2), countdown=-1), OptionError, "0 or more, not -1"),
    "a countdown that is a text": (
        lambda: sample.add.apply_async((1, 2), countdown="soon"),
        OptionError,
        "number of seconds",
    ),
    "countdown and eta": (
        lambda: sample.add.apply_async((1, 2), countdown=1, eta=timezone.now()),
        OptionError,
        "not both",
    ),
    "an eta that is a text": (lambda: sample.add.apply_async((1, 2), eta="tomorrow"), OptionError, "not 'tomorrow'"),
    "an expiry before the due time": (
        lambda: sample.add.apply_async((1, 2), countdown=60, expires=30),
        OptionError,
        "before it is due",
    ),
    "an expiry in the past": (
        lambda: sample.add.apply_async((1, 2), expires=datetime(2020, 1, 1, tzinfo=UTC)),
        OptionError,
        "before it is due",
    ),
    "a negative expiry": (lambda: sample.add.apply_async((1, 2), expires=-1), OptionError, "0 or more"),
    "a task id that is not a UUID": (
        lambda: sample.add.apply_async((1, 2), task_id="mine"),
        OptionError,
        'give key="…"',
    ),
    "tags that are a text": (lambda: sample.add.apply_async((1, 2), tags="a"), OptionError, "list of texts"),
    "metadata that is a list": (lambda: sample.add.apply_async((1, 2), metadata=[1]), OptionError, "JSON object"),
    "a tenant that is too long": (lambda: sample.add.apply_async((1, 2), tenant="x" * 101), OptionError, "at most 100"),
    "a time limit of nothing": (lambda: sample.add.apply_async((1, 2), time_limit=0), OptionError, "above 0"),
    "another serializer": (lambda: sample.add.apply_async((1, 2), serializer="pickle"), OptionError, "JSON only"),
    "an unknown compression": (lambda: sample.add.apply_async((1, 2), compression="nope"), OptionError, "compression"),
}


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused_with_a_sentence_and_leaves_nothing(sent: list[str], case: str) -> None:
    call, error, sentence = REFUSED[case]
    with pytest.raises(error) as refused:
        call()
    assert sentence in str(refused.value)
    assert (Job.objects.count(), Key.objects.count(), FanIn.objects.count(), sent) == (0, 0, 0, [])


@pytest.mark.parametrize("text", ["a\x00", "a\ud800"], ids=["NUL", "half of a pair"])
@pytest.mark.parametrize("option", ["key", "tenant", "tags", "metadata", "correlation_id"])
def test_a_text_that_a_database_cannot_keep_is_refused(option: str, text: str, sent: list[str]) -> None:
    value: Any = {"tags": [text], "metadata": {"of": (text,)}}.get(option, text)
    with pytest.raises(JobsError, match="a character that not every database can keep"):
        sample.add.apply_async((1, 2), **{option: value})
    assert (Job.objects.count(), sent) == (0, [])


def test_a_refusal_does_not_break_the_callers_transaction() -> None:
    with transaction.atomic():
        Group.objects.create(name="kept")
        with pytest.raises(PayloadError):
            sample.add.delay(1)  # type: ignore[call-arg]
        sample.add.delay(1, 2)
    assert (Group.objects.count(), Job.objects.count()) == (1, 1)


def test_a_job_that_runs_already_keeps_its_key() -> None:
    first = sample.Charge.delay(7)
    running(first.id)
    assert sample.Charge.delay(7).id == first.id


def test_the_database_itself_refuses_a_second_unfinished_job_with_a_key() -> None:
    from django.db import IntegrityError

    first = fresh(sample.Charge.delay(7))
    first.pk = uuid4()
    with pytest.raises(IntegrityError), transaction.atomic():
        first.save(force_insert=True)
    assert connection.needs_rollback is False
