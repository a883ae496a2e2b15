"""What a worker gives back that it took ahead of its turn."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from kombu.asynchronous.semaphore import LaxBoundedSemaphore

from jobs import shutdown
from jobs.pace import Pace


class Message:
    """A message of a broker that may refuse to take it back."""

    def __init__(self, name: str, broker: Broker) -> None:
        self.name, self.broker = name, broker

    def requeue(self) -> None:
        if self.broker.full:
            raise OSError("no space left")
        self.broker.back.append(self.name)


class Broker:
    """What was given back to it."""

    def __init__(self) -> None:
        self.full = False
        self.back: list[str] = []


@pytest.fixture
def broker() -> Broker:
    return Broker()


class Request:
    """One that waits."""

    name, acknowledged = "a task", False

    def __init__(self, request_id: str, broker: Broker) -> None:
        self.id, self.message = request_id, Message(request_id, broker)


def consumer(broker: Broker, *, waiting: int, held: int, allowed: int) -> Any:
    """One with so many requests that wait for a child, and so many messages that are not acknowledged."""
    semaphore = LaxBoundedSemaphore(1)
    for number in range(waiting + 1):  # the first one has the child
        semaphore.acquire(lambda request: None, Request(f"{number}", broker))
    channel = SimpleNamespace(qos=SimpleNamespace(held=held))
    return SimpleNamespace(
        controller=SimpleNamespace(semaphore=semaphore), qos=SimpleNamespace(value=allowed),
        task_consumer=SimpleNamespace(channel=channel),
    )  # fmt: skip


def still() -> Pace:
    """No job has ended for a while."""
    return Pace(iter([0.0, 5.0, 5.0, 5.0]).__next__)


@pytest.mark.parametrize(
    ("waiting", "held", "allowed", "back"),
    [
        pytest.param(4, 5, 1, ["4", "3", "2", "1"], id="all that may not be held"),
        pytest.param(4, 5, 3, ["4", "3"], id="no more than that"),
        pytest.param(4, 4, 4, [], id="none while the running ones are acknowledged already"),
        pytest.param(4, 5, 0, [], id="none without a limit"),
    ],
)
def test_as_many_go_back_as_are_held_too_many_the_last_one_first(
    broker: Broker, waiting: int, held: int, allowed: int, back: list[str]
) -> None:
    given = consumer(broker, waiting=waiting, held=held, allowed=allowed)
    shutdown.give_back_surplus(given, still())
    assert broker.back == back
    assert len(given.controller.semaphore._waiting) == waiting - len(back)


def test_what_the_broker_does_not_take_back_keeps_its_place(broker: Broker) -> None:
    given = consumer(broker, waiting=4, held=5, allowed=1)
    broker.full = True
    shutdown.give_back_surplus(given, still())
    line = [entry[1][0] for entry in given.controller.semaphore._waiting]
    assert [(request.id, request.acknowledged) for request in line] == [(f"{n}", False) for n in range(1, 5)]
    broker.full = False
    shutdown.give_back_surplus(given, still())
    assert broker.back == ["4", "3", "2", "1"]


def test_none_goes_back_while_jobs_end(broker: Broker) -> None:
    shutdown.give_back_surplus(consumer(broker, waiting=4, held=5, allowed=1), Pace(iter([0.0, 0.5, 0.5]).__next__))
    assert broker.back == []
