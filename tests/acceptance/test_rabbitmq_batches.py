"""Many messages at once to RabbitMQ: each is confirmed, returned or waits, and none is believed to be sent."""

from collections.abc import Iterator
from datetime import timedelta

import pytest
from django.db.models import F

from jobs import conf, publisher, release
from jobs.models import Job
from jobs.states import State
from project.queues import Kind
from project.servers import RabbitmqServer
from tests.acceptance.test_rabbitmq import depth, forget_queues, kind, node, sending, took, url  # noqa: F401
from tests.platform import fresh, hurry
from tests.sample.tasks import note

pytestmark = pytest.mark.one_database


@pytest.fixture(autouse=True)
def declared(sending: RabbitmqServer, url: str) -> Iterator[None]:  # noqa: F811
    """The default queue is there, and empty."""
    forget_queues(url)
    fresh(note.delay("declares"))
    yield
    Job.objects.all().delete()


def due(count: int, **changes: object) -> list[Job]:
    """Jobs that are due; the changes are those of the one in the middle."""
    first = fresh(note.apply_async(("x",), countdown=60))
    fields = {f.attname: getattr(first, f.attname) for f in Job._meta.concrete_fields if f.attname != "id"}
    Job.objects.bulk_create(
        Job(**(fields | {"due_at": first.due_at + timedelta(milliseconds=n)})) for n in range(1, count)
    )
    if changes:
        middle = Job.objects.filter(state=State.PENDING).order_by("due_at")[count // 2]
        Job.objects.filter(pk=middle.pk).update(**changes)
    Job.objects.filter(state=State.PENDING).update(due_at=F("due_at") - timedelta(hours=1))
    return list(Job.objects.filter(state=State.PENDING).order_by("due_at"))


def test_a_thousand_are_confirmed(url: str) -> None:  # noqa: F811
    due(1000)
    assert release.release() == 1000
    assert depth(url) == 1001


def test_what_has_no_queue_is_sent_once_it_has_one(url: str) -> None:  # noqa: F811
    due(20)
    forget_queues(url)
    assert release.release() == 20
    assert depth(url) == 20


@pytest.mark.parametrize(
    ("changes", "spare"),
    [
        ({"queue": "renamed"}, 0),
        # RabbitMQ closes the channel, and with it may drop confirmations: what was not confirmed is sent again.
        ({"delivery": '{"exchange": "missing", "routing_key": "x"}'}, 25),
        ({"payload": "{"}, 0),
        ({"delivery": '{"headers": {"big": 1000000000000000000000}}'}, 0),
    ],
)
def test_one_that_cannot_be_sent_holds_up_no_other(url: str, changes: dict[str, object], spare: int) -> None:  # noqa: F811
    due(50, **changes)
    assert release.release() == 49
    assert 50 <= depth(url) <= 50 + spare
    (waits,) = Job.objects.filter(state=State.PENDING)
    assert waits.reason.startswith("cannot be sent: ")
    assert not publisher.in_use().paused


def test_a_queue_that_refuses_keeps_its_jobs(sending: RabbitmqServer, url: str, kind: Kind) -> None:  # noqa: F811
    policy = '{"max-length": 11, "overflow": "reject-publish"}'
    sending.control("set_policy", "-p", kind, "--apply-to", "queues", "limit", "default", policy)
    try:
        due(30)
        gone = release.release()
    finally:
        sending.control("clear_policy", "-p", kind, "limit")
    assert 0 < gone < 30
    assert Job.objects.filter(state=State.PENDING).count() == 30 - gone
    assert depth(url) >= gone + 1


def test_a_node_that_says_nothing_is_left_alone_after_a_moment(sending: RabbitmqServer) -> None:  # noqa: F811
    due(100)
    assert release.release(1) == 1
    sending.freeze()
    try:
        assert took(lambda: release.release()) < 4 * conf.current().SEND_TIMEOUT
    finally:
        sending.thaw()
    assert Job.objects.filter(state=State.PENDING).count() == 99


def test_all_go_when_the_node_is_back(sending: RabbitmqServer, url: str) -> None:  # noqa: F811
    due(100)
    sending.stop()
    assert release.release() == 0
    sending.start()
    publisher.in_use()._paused_until = 0.0
    hurry()
    assert release.release() == 100
