"""Messages: whatever is asked for, the wire carries what Celery itself would have sent, field by field."""

import json
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any
from uuid import uuid4

import pytest
from kombu import Exchange, Queue
from redis import Redis

from jobs import messages, publisher
from jobs.messages import Maker
from jobs.models import Job
from jobs.publisher import Publisher
from project.servers import RedisServer
from tests.platform import fresh
from tests.sample.tasks import echo

pytestmark = pytest.mark.django_db(transaction=True)

Wire = list[dict[str, Any]]


@pytest.fixture(autouse=True)
def unpaused(broker: RedisServer) -> Iterator[Publisher]:
    """A publisher that has learnt nothing yet."""
    before = publisher.in_use()
    publisher.use(Publisher(before.app, before._send_task))
    yield publisher.in_use()
    publisher.in_use().forget()
    publisher.use(before)


@pytest.fixture
def wire(broker: RedisServer) -> Iterator[Callable[[], Wire]]:
    """Take what was sent out of the broker, the first first, bodies decoded."""
    client = Redis.from_url(broker.url)

    def take() -> Wire:
        raw: list[bytes] = []
        for key in sorted(client.keys("default*")):
            raw += reversed(client.lrange(key, 0, -1))
            client.delete(key)
        return [json.loads(one) for one in raw]

    yield take
    client.close()


def compared(message: dict[str, Any]) -> str:
    """The text of a message, without what no two have in common."""
    assert message["properties"].pop("delivery_tag")
    return json.dumps(message)


def by_celery(sender: Publisher, job: Job) -> None:
    """Send a job's message as Celery makes it."""
    sender._send_task(**sender._asked(job, sender._way()), producer=sender.reached())


def recorded(*args: Any, **options: Any) -> Job:
    """A job whose message was not sent yet."""
    return fresh(echo.apply_async(args or (1, 2), countdown=3600, **options))


IDS = {name: str(uuid4()) for name in ("parent_id", "root_id", "group_id")}
PAYLOADS: list[tuple[Any, ...]] = [(1, 2), ("ü' \" \\", None), ({"a": [1.5, True]}, ["x" * 2000])]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"priority": "critical"},
    {"time_limit": 12.5, "soft_time_limit": 3},
    IDS,
    {**IDS, "group_index": 3},
    {"headers": {"x-trace": "7", "periodic_task_name": "every day", "nested": {"a": [1]}}},
    {"headers": {"lang": "other", "origin": "mine", "stamps": {"a": 1}}},
    {"compression": "zlib"},
    {"compression": "gzip", "headers": {"x": "y"}},
    {"delivery_mode": 1},
    {"shadow": "another name"},
    {"argsrepr": "hidden"},
    {"kwargs": {"a": [1, {"b": None}], "ü": "'"}},
    {"stamped_headers": ["monitor"], "monitor": "stamp"},
    {"exchange": "default", "routing_key": "default"},
    {"correlation_id": "req-1"},
]


@pytest.mark.parametrize(("args", "options"), list(product(PAYLOADS, OPTIONS)))
def test_the_wire_is_what_celery_sends(
    unpaused: Publisher, wire: Callable[[], Wire], args: tuple[Any, ...], options: dict[str, Any]
) -> None:
    job = recorded(*args, **options)
    by_celery(unpaused, job)
    (expected,) = map(compared, wire())
    unpaused.publish(job)
    assert list(map(compared, wire())) == [expected]
    assert unpaused.publish_many([job, job]) == {}
    assert list(map(compared, wire())) == [expected, expected]


@pytest.mark.parametrize("options", OPTIONS)
def test_one_kind_of_message_is_not_taken_for_another(
    unpaused: Publisher, wire: Callable[[], Wire], options: dict[str, Any]
) -> None:
    jobs = [recorded(n, 2, **given) for n, given in enumerate([{}, options, {}, options, *OPTIONS])]
    for job in jobs:
        by_celery(unpaused, job)
    expected = list(map(compared, wire()))
    unpaused.publish_many(jobs)
    assert list(map(compared, wire())) == expected


def test_most_messages_are_copies(unpaused: Publisher, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or this file would compare Celery with itself."""
    made = by_hand(monkeypatch)
    unpaused.publish_many([recorded(**options) for options in OPTIONS])
    usual = [options for options in OPTIONS if not options.keys() & set(messages._UNUSUAL)]
    assert (made.count("copy"), made.count("none")) == (len(usual), len(OPTIONS) - len(usual))


def by_hand(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    made: list[str] = []
    copied = Maker.copied

    def noted(self: Maker, *given: Any) -> Any:
        copy = copied(self, *given)
        made.append("copy" if copy else "none")
        return copy

    monkeypatch.setattr(Maker, "copied", noted)
    return made


def test_what_celery_makes_in_another_way_is_left_to_celery(
    unpaused: Publisher, wire: Callable[[], Wire], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the next version may: a copy is only sent where it was seen to be what Celery makes."""
    amqp = unpaused.app.amqp

    def as_next_year(*args: Any, **options: Any) -> Any:
        message = type(amqp).as_task_v2(amqp, *args, **options)
        message.headers["place"] = f"{message.headers['group']}:{message.headers['group_index']}"
        return message

    monkeypatch.setitem(amqp.__dict__, "create_task_message", as_next_year)
    jobs = [recorded(**IDS, group_index=n) for n in range(3)]
    assert unpaused.publish_many(jobs) == {}
    assert [message["headers"]["place"] for message in wire()] == [f"{IDS['group_id']}:{n}" for n in range(3)]


def with_other_routes(app: Any) -> None:
    app.conf.update(task_routes={echo.name: {"delivery_mode": 1}})


def with_another_compression(app: Any) -> None:
    app.conf.task_compression = "zlib"
    del app.amqp


def with_messages_that_are_not_kept(app: Any) -> None:
    app.conf.task_default_delivery_mode = "transient"
    del app.amqp


def with_shorter_texts(app: Any) -> None:
    app.conf.task_repr_maxlevels = 1


def with_another_queue(app: Any) -> None:
    app.amqp.queues.add(Queue("default", Exchange("default", delivery_mode=1), "default"))


def with_another_task(app: Any) -> None:
    class Compressed(type(app.tasks[echo.name])):  # type: ignore[misc]
        compression = "zlib"

    app._tasks[echo.name] = Compressed()


@pytest.fixture
def configuration(unpaused: Publisher) -> Iterator[Any]:
    """The app, whose configuration may be changed."""
    app = unpaused.app
    before, tasks = dict(app.conf.changes), dict(app._tasks)
    yield app
    app.conf.changes.clear()
    app.conf.changes.update(before)
    app._tasks.update(tasks)
    del app.amqp


@pytest.mark.parametrize(
    "change",
    [
        with_other_routes, with_another_compression, with_messages_that_are_not_kept, with_shorter_texts,
        with_another_queue, with_another_task,
    ],
)  # fmt: skip
def test_a_message_is_what_celery_sends_by_the_configuration_of_now(
    unpaused: Publisher, wire: Callable[[], Wire], configuration: Any, change: Callable[[Any], None]
) -> None:
    job = recorded({"a": [{"b": [1]}]}, 2)
    unpaused.publish_many([job, job])
    (before, _) = map(compared, wire())
    change(configuration)
    unpaused.publish_many([job])
    (copied,) = map(compared, wire())
    by_celery(unpaused, job)
    (expected,) = map(compared, wire())
    assert copied == expected
    assert copied != before


def test_kinds_are_kept_while_nothing_changes(unpaused: Publisher, monkeypatch: pytest.MonkeyPatch) -> None:
    unpaused.publish_many([recorded()])
    monkeypatch.setattr(Maker, "_learnt", lambda *_: pytest.fail("learnt again"))
    unpaused.publish_many([recorded(), recorded(3, 4)])
