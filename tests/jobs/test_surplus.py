"""What a worker gives back that it took ahead of its turn."""

from types import SimpleNamespace
from typing import Any

import pytest
from kombu.asynchronous.semaphore import LaxBoundedSemaphore

from jobs import shutdown
from jobs.pace import Pace


@pytest.fixture
def returned(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The requests that were returned to the broker."""
    requests: list[Any] = []
    monkeypatch.setattr(shutdown, "_returned", lambda request: requests.append(request) or True)
    return requests


def consumer(*, waiting: int, held: int, allowed: int) -> Any:
    """One with so many requests that wait for a child, and so many messages that are not acknowledged."""
    semaphore = LaxBoundedSemaphore(1)
    for number in range(waiting + 1):  # the first one has the child
        semaphore.acquire(lambda request: None, f"request {number}")
    channel = SimpleNamespace(qos=SimpleNamespace(held=held))
    return SimpleNamespace(
        controller=SimpleNamespace(semaphore=semaphore), qos=SimpleNamespace(value=allowed),
        task_consumer=SimpleNamespace(channel=channel),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("waiting", "held", "allowed", "back"),
    [
        pytest.param(4, 5, 1, ["request 4", "request 3", "request 2", "request 1"], id="all that may not be held"),
        pytest.param(4, 5, 3, ["request 4", "request 3"], id="no more than that"),
        pytest.param(4, 4, 4, [], id="none while the running ones are acknowledged already"),
        pytest.param(4, 5, 0, [], id="none without a limit"),
    ],
)
def test_as_many_go_back_as_are_held_too_many_the_last_one_first(
    returned: list[Any], waiting: int, held: int, allowed: int, back: list[str]
) -> None:
    given = consumer(waiting=waiting, held=held, allowed=allowed)
    shutdown.give_back_surplus(given, Pace(iter([0.0, 5.0, 5.0, 5.0]).__next__))
    assert returned == back
    assert len(given.controller.semaphore._waiting) == waiting - len(back)


def test_none_goes_back_while_jobs_end(returned: list[Any]) -> None:
    shutdown.give_back_surplus(consumer(waiting=4, held=5, allowed=1), Pace(iter([0.0, 0.5, 0.5]).__next__))
    assert returned == []
