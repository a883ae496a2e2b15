"""Many jobs at once: in statements of a thousand, with keys honoured, and nothing half said."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from celery import chain
from django.db import OperationalError, connection, connections, transaction
from django.test.utils import CaptureQueriesContext

from jobs import bulk as module
from jobs import keys, lifecycle, outbox, publisher, successors
from jobs.bulk import Enqueued, Item, bulk
from jobs.context import correlated
from jobs.errors import DeclarationError, KeyCannotBeMade, OptionError, PayloadError
from jobs.models import Job, Key
from jobs.payload import Payload, decode
from jobs.publisher import Publisher
from jobs.states import Priority, State
from project.celery import app
from project.processes import wait_until
from project.servers import RedisServer
from tests.platform import attempt, fresh, messages
from tests.sample.tasks import Charge, Once, add, note, plain, untracked

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def unpaused() -> Iterator[None]:
    """A publisher that has seen no failure yet."""
    before = publisher.in_use()
    publisher.use(Publisher(before.app, before._send_task))
    yield
    publisher.in_use().forget()
    publisher.use(before)


@pytest.fixture
def slices(monkeypatch: pytest.MonkeyPatch, unpaused: None, sent: list[str]) -> list[str]:
    """Slices of three jobs; the ids of what was sent."""
    monkeypatch.setattr(module, "SLICE", 3)
    return sent


def row(job_id: UUID) -> Job:
    return Job.objects.get(pk=job_id)


def payloads() -> list[str]:
    return list(Job.objects.order_by("created_at", "id").values_list("payload", flat=True))


# --- What is recorded -------------------------------------------------------------------------------


def test_each_item_becomes_a_job_in_its_order(sent: list[str]) -> None:
    result = bulk(add, [(n, 2) for n in range(5)])
    assert (len(result), result.inserted, result.duplicates) == (5, 5, {})
    assert [row(job_id).payload for job_id in result.ids] == [f'{{"args":[{n},2],"kwargs":{{}}}}' for n in range(5)]
    assert sent == [str(job_id) for job_id in result.ids]


def test_a_job_of_a_bulk_is_like_one_of_a_call(sent: list[str]) -> None:
    one = fresh(Charge.apply_async(args=(7,), tags=["t"], countdown=0))
    many = row(bulk(Charge, [(8,)], tags=["t"], countdown=0).ids[0])
    differs = {f.attname for f in Job._meta.concrete_fields if getattr(one, f.attname) != getattr(many, f.attname)}
    own = {"id", "root_id", "correlation_id", "payload", "key", "created_at", "due_at", "sent_at"}
    assert differs == own
    assert many.root_id == many.pk
    assert many.correlation_id == str(many.pk)


@pytest.mark.parametrize(
    ("item", "kept"),
    [
        ((1, 2), '{"args":[1,2],"kwargs":{}}'),
        ([1, 2], '{"args":[1,2],"kwargs":{}}'),
        ({"a": 1, "b": "2"}, '{"args":[],"kwargs":{"a":1,"b":2}}'),
        (Payload((1,), {"b": 2}), '{"args":[1],"kwargs":{"b":2}}'),
    ],
)
def test_a_payload_may_be_given_in_each_of_its_forms(item: Any, kept: str, sent: list[str]) -> None:
    assert row(bulk(add, [item]).ids[0]).payload == kept


TEXTS = ["", "NULL", "{}", '"', "\\", '\\"', "a,b", "{a}", "ü' \n\t", "%s", "x" * 90]


def test_texts_arrive_as_they_are(sent: list[str]) -> None:
    ids = bulk(plain, [Item((text,), key=f"{n} {text}") for n, text in enumerate(TEXTS)], tags=['"']).ids
    jobs = [row(job_id) for job_id in ids]
    assert [decode(job.payload).args[0] for job in jobs] == TEXTS
    assert [job.key for job in jobs] == [f"{n} {text}" for n, text in enumerate(TEXTS)]


def test_a_job_is_the_root_of_its_own_and_its_id_the_correlation_id(sent: list[str]) -> None:
    for job_id in bulk(plain, [1, 2]).ids:
        assert (row(job_id).root_id, row(job_id).correlation_id) == (job_id, str(job_id))
    root = uuid4()
    for job_id in bulk(plain, [1, 2], root_id=str(root)).ids:
        assert (row(job_id).root_id, row(job_id).correlation_id) == (root, str(root))


def test_jobs_of_their_own_and_jobs_of_others_are_not_confused(sent: list[str]) -> None:
    root = str(uuid4())
    own, other = bulk([plain.s(1), plain.s(2).set(root_id=root, correlation_id="req-1")]).ids
    assert (row(own).root_id, row(own).correlation_id) == (own, str(own))
    assert (str(row(other).root_id), row(other).correlation_id) == (root, "req-1")


def test_anything_else_is_the_only_argument(sent: list[str]) -> None:
    bulk(note, ["a", "b"])
    assert payloads() == ['{"args":["a"],"kwargs":{}}', '{"args":["b"],"kwargs":{}}']


@pytest.mark.parametrize(
    ("options", "field", "value"),
    [
        ({"queue": "mail"}, "queue", "mail"),
        ({"priority": "critical"}, "priority", Priority.CRITICAL),
        ({"tags": ["a", "b"]}, "tags", ["a", "b"]),
        ({"metadata": {"order": 7}}, "metadata", {"order": 7}),
        ({"tenant": "acme"}, "tenant", "acme"),
        ({"correlation_id": "req-1"}, "correlation_id", "req-1"),
        ({"time_limit": 9}, "time_limit", 9.0),
        ({"eta": datetime(2130, 1, 1, tzinfo=UTC)}, "due_at", datetime(2130, 1, 1, tzinfo=UTC)),
    ],
)
def test_an_option_is_that_of_all_jobs(options: dict[str, Any], field: str, value: Any, sent: list[str]) -> None:
    result = bulk(add, [(1, 2), (3, 4)], **options)
    assert [getattr(row(job_id), field) for job_id in result.ids] == [value, value]


def test_a_delay_and_an_expiry_are_counted_by_the_databases_clock(sent: list[str]) -> None:
    job = row(bulk(add, [(1, 2), (3, 4)], countdown=60, expires=90).ids[1])
    assert (job.state, job.reason, sent) == (State.PENDING, "scheduled", [])
    assert timedelta(seconds=59) < job.due_at - job.created_at < timedelta(seconds=61)
    assert timedelta(seconds=89) < job.expires_at - job.created_at < timedelta(seconds=91)


def test_the_correlation_id_in_force_is_taken_up(sent: list[str]) -> None:
    with correlated("request-9"):
        assert row(bulk(add, [(1, 2)]).ids[0]).correlation_id == "request-9"


def test_what_a_body_enqueues_in_bulk_are_its_children(monkeypatch: pytest.MonkeyPatch, sent: list[str]) -> None:
    parent = note.delay("x")
    monkeypatch.setattr(type(app.tasks[note.name]), "run", lambda self, line: bulk(add, [(1, 2)]) and None)
    attempt(parent.id)
    assert Job.objects.get(task=add.name).parent_id == UUID(parent.id)


def test_a_million_is_not_held_in_memory(slices: list[str]) -> None:
    taken: list[int] = []

    def items() -> Iterator[tuple[int, int]]:
        for n in range(9):
            taken.append(n)
            yield n, 2

    seen: list[tuple[int, int]] = []
    bulk(add, items(), progress=lambda done: seen.append((done, len(taken))))
    assert seen == [(3, 3), (6, 6), (9, 9)]


def test_a_thousand_are_one_statement(sent: list[str]) -> None:
    with CaptureQueriesContext(connection) as queries:
        bulk(add, ((n, 2) for n in range(2500)))
    assert sum("INSERT" in query["sql"] for query in queries.captured_queries) == 3
    assert not any("SELECT" in query["sql"].split("FROM")[0][:10] for query in queries.captured_queries)


def test_all_of_it_reaches_the_broker(broker: RedisServer) -> None:
    bulk(add, ((n, 2) for n in range(2500)))
    assert messages(broker.url) == 2500
    assert set(Job.objects.values_list("state", "sends")) == {(State.RESERVED, 1)}


def test_a_broker_that_is_away_costs_no_job(broker: RedisServer) -> None:
    broker.stop()
    bulk(add, ((n, 2) for n in range(1500)))
    assert Job.objects.filter(state=State.PENDING, sends=0).count() == 1500


def test_nothing_is_enqueued_of_nothing() -> None:
    assert (len(bulk(add, [])), len(bulk([])), Job.objects.count()) == (0, 0, 0)


def test_in_eager_mode_all_of_it_runs_here(monkeypatch: pytest.MonkeyPatch, witness: Any) -> None:
    monkeypatch.setitem(app.conf, "task_always_eager", True)
    bulk(note, ["a", "b"])
    assert (witness.lines, Job.objects.count()) == (["a", "b"], 0)


def test_in_eager_mode_a_task_that_is_unknown_here_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(app.conf, "task_always_eager", True)
    with pytest.raises(OptionError, match=r"elsewhere\.task is not known here"):
        bulk("elsewhere.task", [(1,)])


# --- Signatures -------------------------------------------------------------------------------------


def test_signatures_of_several_tasks_are_one_bulk(sent: list[str]) -> None:
    result = bulk([add.s(1, 2), plain.s(3).set(queue="mail", countdown=60), note.si("x"), Charge.s(7)], tenant="acme")
    jobs = [row(job_id) for job_id in result.ids]
    assert [job.task for job in jobs] == [add.name, plain.name, note.name, Charge.name]
    assert [job.queue for job in jobs] == ["default", "mail", "default", "payments"]
    assert [job.state for job in jobs] == [State.PENDING] * 4
    assert {job.tenant for job in jobs} == {"acme"}
    assert jobs[1].due_at - jobs[1].created_at > timedelta(seconds=59)


def test_what_python_takes_for_equal_stays_what_it_is(sent: list[str]) -> None:
    done = bulk(add.s(1, 2).set(metadata={"a": value}) for value in (1, True, 1.0))
    assert [repr(row(job_id).metadata["a"]) for job_id in done.ids] == ["1", "True", "1.0"]


def test_a_signature_keeps_what_follows_it(sent: list[str]) -> None:
    linked = add.s(1, 2)
    linked.link(note.si("next"))
    assert note.name in row(bulk([linked]).ids[0]).canvas


def test_a_signature_with_an_id_becomes_that_job(sent: list[str]) -> None:
    mine = uuid4()
    assert bulk([add.s(1, 2).set(task_id=str(mine)), add.s(3, 4)]).ids[0] == mine
    assert Job.objects.filter(pk=mine).exists()


def test_many_signatures_with_ids_become_those_jobs(sent: list[str]) -> None:
    ids = [str(uuid4()) for _ in range(3)]
    bulk([add.s(1, 2).set(task_id=job_id) for job_id in ids])
    assert sent == ids
    assert sorted(str(job.pk) for job in Job.objects.all()) == sorted(ids)


@pytest.mark.parametrize("task", [add.s(1, 2), Charge.s(1)], ids=["without a key", "with a key"])
def test_an_id_twice_in_a_bulk_is_one_job_that_is_sent(task: Any, sent: list[str]) -> None:
    job_id = str(uuid4())
    result = bulk([task.set(task_id=job_id)] * 2)
    assert (list(map(str, result.ids)), sent) == ([job_id, job_id], [job_id])
    assert Job.objects.count() == 1


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: bulk([add.s(1, 2), chain(add.s(1, 2), add.s(3))]), "Item 1: A chain cannot be part of a bulk"),
        (lambda: bulk([add.s(1, 2), (1, 2)]), "Item 1: .* is no signature"),
        (lambda: bulk(add.s(1, 2)), "or a list of signatures"),
        (lambda: bulk(add, [add.s(1, 2)]), "Item 0: This is a signature"),
        (lambda: bulk(add, "abc"), "must be a list or another iterable"),
        (lambda: bulk(add, {"a": 1}), "must be a list or another iterable"),
        (lambda: bulk(add, None), "or a list of signatures"),
        (lambda: bulk(3, [1]), "3 is not a task"),
        (lambda: bulk(untracked, ["x"]), "is not tracked"),
        (lambda: bulk(add, [(1, 2)], tracked=False), "is not tracked"),
        (lambda: bulk(add, [(1, 2)], task_id=str(uuid4())), "task_id is an option of a single call"),
        (lambda: bulk(add, [(1, 2)], tennant="x"), "Did you mean 'tenant'"),
        (lambda: bulk(add, [(1, 2)], queue="nowhere"), "unknown queue 'nowhere'"),
        (lambda: bulk(add, [(1, 2)], key="mine"), "all items would be one job"),
        (lambda: bulk([add.s(1, 2)], key="{a}"), "takes a key from each"),
    ],
)
def test_a_mistake_is_an_error_that_says_what_to_do(call: Callable[[], Any], says: str) -> None:
    with pytest.raises(OptionError, match=says):
        call()
    assert Job.objects.count() == 0


# --- Keys -------------------------------------------------------------------------------------------


def test_a_key_that_is_taken_gives_the_job_that_has_it(sent: list[str]) -> None:
    has = UUID(Charge.delay(7).id)
    result = bulk(Charge, [(6,), (7,), (8,)])
    assert (result.inserted, result.duplicates, result.ids[1]) == (2, {1: has}, has)
    assert sorted(Job.objects.values_list("key", flat=True)) == ["charge:6", "charge:7", "charge:8"]
    assert len(sent) == 3


def test_a_key_twice_in_a_bulk_is_one_job(slices: list[str]) -> None:
    result = bulk(Charge, [(1,), (2,), (1,), (3,), (2,)])
    assert (result.inserted, result.duplicates) == (3, {2: result.ids[0], 4: result.ids[1]})
    assert list(result.ids) == [result.ids[n] for n in (0, 1, 0, 3, 1)]


def test_a_key_for_ever_holds_when_its_job_is_finished(sent: list[str]) -> None:
    first = bulk(Once, ["a", "b"])
    for job_id in first.ids:
        attempt(job_id)
    second = bulk(Once, ["b", "c", "c", "a"])
    assert second.duplicates == {0: first.ids[1], 2: second.ids[1], 3: first.ids[0]}
    assert (Job.objects.count(), Key.objects.count()) == (3, 3)


def test_a_key_for_a_period_is_free_again_after_it(monkeypatch: pytest.MonkeyPatch, sent: list[str]) -> None:
    monkeypatch.setattr(type(app.tasks[Once.name]), "key_scope", timedelta(hours=1))
    first = bulk(Once, ["a", "b"])
    attempt(first.ids[0])
    assert bulk(Once, ["a"]).ids[0] == first.ids[0]
    Key.objects.update(expires_at=datetime(2020, 1, 1, tzinfo=UTC))
    again = bulk(Once, ["a", "b"])
    assert (again.inserted, again.duplicates) == (1, {1: first.ids[1]})
    assert set(Key.objects.values_list("key", "job_id")) == {("once:a", again.ids[0]), ("once:b", first.ids[1])}


def test_a_bulk_may_say_how_its_keys_are_made(sent: list[str]) -> None:
    bulk(add, [(1, 2), (3, 4)], key="sum:{a}:{b}")
    bulk(add, [(5, 6)], key=lambda a, b: f"{a}+{b}")
    assert set(Job.objects.values_list("key", flat=True)) == {"sum:1:2", "sum:3:4", "5+6"}


def test_an_item_and_a_signature_may_have_a_key_of_their_own(sent: list[str]) -> None:
    result = bulk(add, [Item((1, 2), key="x"), Item((3, 4)), Item((5, 6), key="x")])
    assert result.duplicates == {2: result.ids[0]}
    assert bulk([add.s(1, 2).set(key="x"), add.s(1, 2).set(key="y")]).duplicates == {0: result.ids[0]}


def test_a_key_template_that_can_never_be_made_is_refused() -> None:
    with pytest.raises(DeclarationError, match="uses nobody"):
        bulk(add, [(1, 2)], key="{nobody}")


def test_bulks_that_race_for_the_same_keys_make_one_job_of_each(sent: list[str]) -> None:
    together = threading.Barrier(4)

    def race(numbers: list[int]) -> tuple[int, set[UUID]]:
        try:
            together.wait(10)
            result = bulk(Charge, [(n,) for n in numbers])
            return result.inserted, set(result.ids)
        finally:
            connections.close_all()

    orders = [list(range(300)), list(range(300))[::-1], list(range(0, 300, 2)), list(range(299, -1, -3))]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(race, orders))
    assert sum(inserted for inserted, _ in results) == Job.objects.count() == 300
    assert set.union(*(ids for _, ids in results)) == set(Job.objects.values_list("pk", flat=True))


def test_keys_are_taken_in_their_order_so_that_bulks_never_wait_for_each_other(
    sent: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[list[str | None]] = []
    insert, take = lifecycle.insert_many, keys.take_many
    monkeypatch.setattr(lifecycle, "insert_many", lambda jobs: taken.append([j.key for j in jobs]) or insert(jobs))
    monkeypatch.setattr(keys, "take_many", lambda jobs, s: taken.append([j.key for j in jobs]) or take(jobs, s))
    result = bulk([Once.s("b"), Charge.s(3), Once.s("a"), Charge.s(1), Charge.s(2)])
    assert taken == [["once:a", "once:b"], ["charge:1", "charge:2", "charge:3", "once:a", "once:b"]]
    assert [row(job_id).key for job_id in result.ids] == ["once:b", "charge:3", "once:a", "charge:1", "charge:2"]


def waits() -> bool:
    """Whether somebody waits for a lock."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_locks WHERE NOT granted")
        return bool(cursor.fetchone()[0])


def test_a_slice_that_the_database_ends_as_a_deadlock_is_tried_again(sent: list[str]) -> None:
    if connection.vendor != "postgresql":
        pytest.skip("SQLite has one writer at a time")

    def enqueue() -> Enqueued:
        try:
            return bulk(Charge, [1, 2])
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as pool:
        with transaction.atomic():
            second = Charge.delay(2)
            other = pool.submit(enqueue)  # has the first key, and waits for the second
            assert wait_until(waits, 20)
            first = Charge.delay(1)  # the other way round
        result = other.result(20)
    assert list(map(str, result.ids)) == [first.id, second.id]
    assert result.inserted == 0


def test_a_slice_that_is_tried_again_still_follows_who_has_its_key(
    sent: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, follower, follow, tries = Charge.delay(1), uuid4(), successors.follow, list[UUID]()

    def deadlocked_once(job: Job, owner_id: UUID) -> None:
        tries.append(job.pk)
        if len(tries) == 1:
            cause = Exception()
            cause.sqlstate = "40P01"  # type: ignore[attr-defined]
            raise OperationalError("deadlock detected") from cause
        follow(job, owner_id)

    monkeypatch.setattr(successors, "follow", deadlocked_once)
    result = bulk([Charge.s(1).set(task_id=str(follower))])
    assert tries == [follower, follower]
    assert row(follower).follows_id == UUID(owner.id)
    assert result.duplicates == {0: UUID(owner.id)}


def test_a_deadlock_in_a_transaction_is_told_with_what_to_do(slices: list[str]) -> None:
    if connection.vendor != "postgresql":
        pytest.skip("SQLite has one writer at a time")

    def enqueue() -> OperationalError:
        try:
            with pytest.raises(OperationalError) as caught, transaction.atomic():
                bulk(Charge, [5, 6, 7, 1, 2, 3])  # slices of three
            return caught.value
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as pool, transaction.atomic():
        Charge.delay(2)
        other = pool.submit(enqueue)
        assert wait_until(waits, 20)
        Charge.delay(5)
        error = other.result(20)
    assert "sort the items" in error.__notes__[0]
    assert set(Job.objects.values_list("key", flat=True)) == {"charge:2", "charge:5"}


# --- Transactions and errors ------------------------------------------------------------------------


def test_inside_a_transaction_all_of_it_is_part_of_it(slices: list[str], sent: list[str]) -> None:
    with suppress(ZeroDivisionError), transaction.atomic():
        bulk(add, [(n, 2) for n in range(7)])
        assert sent == []
        raise ZeroDivisionError
    assert (Job.objects.count(), sent) == (0, [])
    with transaction.atomic():
        result = bulk(add, [(n, 2) for n in range(7)])
    assert sent == [str(job_id) for job_id in result.ids]


def test_inside_a_transaction_an_error_leaves_nothing_of_the_bulk(slices: list[str], sent: list[str]) -> None:
    with transaction.atomic():
        kept = add.delay(1, 2)
        with pytest.raises(PayloadError, match="Item 7: "):
            bulk(add, [(n, 2) for n in range(7)] + [("seven", 2)])
    assert sent == [kept.id]
    assert Job.objects.count() == 1


def test_in_a_transaction_that_was_begun_by_hand_it_says_what_is_enqueued(slices: list[str]) -> None:
    transaction.set_autocommit(False)
    try:
        assert len(bulk(add, [(n, 2) for n in range(4)])) == 4
    finally:
        transaction.rollback()
        transaction.set_autocommit(True)


def test_many_jobs_of_a_transaction_are_left_to_the_conductor(
    slices: list[str], sent: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their messages would be kept in memory until it commits."""
    monkeypatch.setattr(module, "SENT_AT_COMMIT", 5)
    with transaction.atomic():
        bulk(add, [(n, 2) for n in range(9)])
    assert len(sent) == 6
    assert Job.objects.filter(state=State.PENDING, sends=0, sent_at=None, due_at__isnull=False).count() == 3


def test_outside_of_a_transaction_none_is_left_to_the_conductor(
    slices: list[str], sent: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SENT_AT_COMMIT", 5)
    assert sent == [str(job_id) for job_id in bulk(add, [(n, 2) for n in range(9)]).ids]
    assert not Job.objects.filter(state=State.PENDING).exists()


def test_whoever_is_interrupted_while_jobs_are_sent_is_told_that_they_are_enqueued(
    slices: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(outbox, "send", stop)
    done = Enqueued()
    with pytest.raises(KeyboardInterrupt):
        bulk(add, [(n, 2) for n in range(6)], into=done)
    assert {job.pk for job in Job.objects.all()} == set(done.ids)


def test_an_error_names_the_item_and_leaves_nothing_of_its_slice(slices: list[str], sent: list[str]) -> None:
    with pytest.raises(PayloadError, match=r"Item 4: The payload does not fit .*a: ") as caught:
        bulk(add, [(1, 2), (3, 4), (5, 6), (7, 8), ("nine", 10), (11, 12)])
    assert caught.value.item == 4
    assert caught.value.__notes__ == ["The 3 items before it are enqueued."]
    assert (Job.objects.count(), len(sent)) == (3, 3)


def test_an_error_of_the_first_thousand_leaves_nothing(sent: list[str]) -> None:
    with pytest.raises(KeyCannotBeMade, match="Item 1: "):
        bulk(Charge, [(1,), (2,)], key=lambda order, amount: "" if order == 2 else "k")
    with pytest.raises(PayloadError, match=r"Item 2: .*cannot be called like this"):
        bulk(plain, [(1,), (2,), (1, 2, 3)])
    with pytest.raises(PayloadError, match="Item 0: This is not JSON"):
        bulk(plain, [(object(),)])
    assert (Job.objects.count(), sent) == (0, [])


def test_a_slice_that_fails_leaves_neither_rows_nor_keys(sent: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(jobs: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(outbox, "send_on_commit", fail)
    with pytest.raises(ZeroDivisionError):
        bulk(Once, ["a", "b"])
    assert (Job.objects.count(), Key.objects.count(), sent) == (0, 0, [])


def test_what_was_rolled_back_is_not_told_as_done(slices: list[str]) -> None:
    done = Enqueued()
    with transaction.atomic(), pytest.raises(PayloadError):
        bulk(add, [(n, 2) for n in range(5)] + [("six", 7)], into=done)
    assert (len(done), Job.objects.count()) == (0, 0)


def test_an_error_of_the_callers_own_iterator_is_the_callers(slices: list[str]) -> None:
    def items() -> Iterator[tuple[int, int]]:
        yield from [(1, 2)] * 4
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        bulk(add, items())
    assert caught.value.__notes__ == ["The 3 items before it are enqueued."]
    assert Job.objects.count() == 3
