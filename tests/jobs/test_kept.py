"""What one greenlet leaves, the next one goes on with: connections to the database and to the broker."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
from django.core.signals import request_finished
from django.db import connections

from jobs import kept, publisher
from project.servers import RedisServer


def in_a_thread(act: Callable[[], Any]) -> Any:
    """What an act returns in a thread of its own: in these respects, a greenlet is one."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(act()))
    thread.start()
    thread.join(10)
    return found[0]


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "_idle", {})
    monkeypatch.setattr(publisher.in_use(), "_resting", [])


@pytest.mark.django_db(transaction=True)
def test_a_connection_to_the_database_goes_on(broker: RedisServer) -> None:
    def used() -> Any:
        kept.take()
        connections["default"].ensure_connection()
        connection = connections["default"].connection
        kept.leave()
        return connection

    first = in_a_thread(used)
    assert in_a_thread(used) is first
    for idle in kept._idle["default"]:
        idle.close()


@pytest.mark.django_db(transaction=True)
def test_a_connection_inside_a_transaction_stays(broker: RedisServer) -> None:
    from django.db import transaction

    with transaction.atomic():
        kept.leave()
        assert "default" not in kept._idle


def test_a_connection_to_the_broker_goes_on(broker: RedisServer) -> None:
    sender = publisher.in_use()

    def used() -> Any:
        producer = sender.reached()
        sender.rest()
        return producer

    first = in_a_thread(used)
    assert in_a_thread(used) is first


def test_a_request_leaves_its_connection_to_the_broker_to_the_next(
    broker: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.green.threads", lambda: True)

    def requested() -> Any:
        producer = publisher.in_use().reached()
        request_finished.send(sender=object)
        return producer

    first = in_a_thread(requested)
    assert in_a_thread(requested) is first


def test_what_others_left_is_not_taken_when_the_broker_failed(broker: RedisServer) -> None:
    """It is as stale as the one that was just given up."""
    sender = publisher.in_use()
    for act in (sender.reached, sender.rest):
        act()
    sender.forget()
    assert sender._rested() is None
