"""What one transaction enqueues goes out together after its commit, and only what it kept."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any
from uuid import UUID

import pytest
from celery import group
from django.db import transaction
from django.test import TestCase

from jobs import outbox, publisher
from jobs.models import Job
from jobs.states import State
from project.servers import RedisServer
from tests.platform import messages
from tests.sample.tasks import add

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[str]]]:
    """The ids of what was sent at once."""
    sent: list[list[str]] = []

    def many(jobs: Sequence[Job]) -> dict[UUID, Exception]:
        sent.append([str(job.pk) for job in jobs])
        return {}

    monkeypatch.setattr(publisher.in_use(), "publish_many", many)
    monkeypatch.setattr(publisher.in_use(), "publish", lambda job: sent.append([str(job.pk)]))
    return sent


def rolled_back(act: Callable[[], Any]) -> None:
    with suppress(ZeroDivisionError), transaction.atomic():
        act()
        raise ZeroDivisionError


def test_the_jobs_of_a_transaction_are_sent_at_once_and_in_order(batches: list[list[str]]) -> None:
    with transaction.atomic():
        jobs = [add.delay(n, 2).id for n in range(5)]
        assert batches == []
    assert batches == [jobs]


def test_the_jobs_of_many_savepoints_are_sent_at_once(batches: list[list[str]]) -> None:
    jobs = []
    with transaction.atomic():
        for n in range(5):
            with transaction.atomic():
                jobs.append(add.delay(n, 2).id)
    assert batches == [jobs]


def test_a_savepoint_that_rolls_back_takes_its_own_jobs_out_of_the_batch(batches: list[list[str]]) -> None:
    with transaction.atomic():
        first = add.delay(1, 2).id
        rolled_back(lambda: add.delay(3, 4))
        rolled_back(lambda: add.delay(5, 6))
        last = add.delay(7, 8).id
        rolled_back(lambda: add.delay(9, 10))
    assert batches == [[first, last]]


def test_what_is_to_happen_between_two_jobs_happens_between_them(batches: list[list[str]]) -> None:
    seen: list[int] = []
    with transaction.atomic():
        jobs = [add.delay(1, 2).id, add.delay(3, 4).id]
        transaction.on_commit(lambda: seen.append(len(batches)))
        jobs.append(add.delay(5, 6).id)
    assert batches == [jobs[:2], jobs[2:]]
    assert seen == [1]


def test_the_next_transaction_sends_its_own(batches: list[list[str]]) -> None:
    with transaction.atomic():
        first = add.delay(1, 2).id
    rolled_back(lambda: add.delay(3, 4))
    with transaction.atomic():
        second = add.delay(5, 6).id
    assert batches == [[first], [second]]


def test_a_group_is_sent_at_once(batches: list[list[str]]) -> None:
    result: Any = group(add.s(n, 2) for n in range(4)).apply_async()
    assert batches == [[child.id for child in result.children]]


def test_a_test_sees_what_was_enqueued_while_it_captured(batches: list[list[str]]) -> None:
    """Django's test helper runs the last hooks alone."""
    with transaction.atomic():
        add.delay(1, 2)
        with TestCase.captureOnCommitCallbacks(execute=True) as callbacks:
            captured = [add.delay(3, 4).id, add.delay(5, 6).id]
        assert len(callbacks) == 2
        assert batches == [captured]


def test_five_thousand_jobs_of_a_transaction_are_all_in_the_broker(broker: RedisServer) -> None:
    with transaction.atomic():
        for n in range(5000):
            add.delay(n, 2)
    assert messages(broker.url) == 5000
    assert set(Job.objects.values_list("state", "sends")) == {(State.RESERVED, 1)}


def test_what_is_sent_long_after_it_was_inserted_is_marked_anew(
    broker: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the order of the marks it is known which messages were lost."""
    began = time.monotonic()
    with transaction.atomic():
        jobs = [add.delay(n, 2).id for n in range(3)]
        before = max(Job.objects.values_list("sent_at", flat=True))
        monkeypatch.setattr(outbox.time, "monotonic", lambda: began + 2 * outbox.FRESH)
    marked = Job.objects.filter(pk__in=jobs).values_list("sent_at", flat=True)
    assert all(moment > before for moment in marked)
