"""A broker for tests: a bag of messages that may lose, double, delay and reorder them, and may fail."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from jobs import publisher
from jobs.errors import BrokerUnavailable, Unsendable
from jobs.models import Job
from jobs.publisher import Failures, Publisher

MOODS = (
    "well",
    "loses",
    "doubles",
    "down",
    "answers too late",
    "refuses the message",
    "sender dies before",
    "sender dies after",
)


class Died(BaseException):
    """The process is gone: nothing that follows in it happens."""


class Bag(Publisher):
    """Messages in no order. What it was given, and when, is kept apart from what it still has."""

    def __init__(self, app: Any) -> None:
        super().__init__(app, _nobody)
        self._lock = threading.Lock()
        self.empty()

    def empty(self) -> None:
        """Begin anew."""
        self.mood = "well"
        self.messages: Counter[UUID] = Counter()
        self.sent: list[tuple[UUID, Any]] = []
        self.resting = False

    @property
    def paused(self) -> bool:
        return self.resting

    def publish(self, job: Job) -> None:
        with self._lock:
            self._take(job)

    def publish_many(self, jobs: Sequence[Job]) -> Failures:
        failed: Failures = {}
        gone: BrokerUnavailable | None = None
        with self._lock:
            for job in jobs:
                try:
                    if gone is None:
                        self._take(job)
                    else:
                        failed[job.pk] = gone
                except BrokerUnavailable as error:
                    failed[job.pk] = gone = error
                except Unsendable as error:
                    failed[job.pk] = error
        return failed

    def depth(self, queue: str, priority: int | None = None) -> int:
        if self.resting:
            raise BrokerUnavailable("it does not answer")
        return self.messages.total()

    def forget(self) -> None: ...

    def _take(self, job: Job) -> None:
        mood, self.mood = self.mood, "well"
        match mood:
            case "down":
                self.resting = True
                raise BrokerUnavailable("refused")
            case "refuses the message":
                raise Unsendable("no such queue")
            case "sender dies before":
                raise Died
        self.sent.append((job.pk, job.sent_at))
        self.messages[job.pk] += {"loses": 0, "doubles": 2}.get(mood, 1)
        self.messages += Counter()  # without those of which there are none
        match mood:
            case "answers too late":
                self.resting = True
                raise BrokerUnavailable("no answer in time")
            case "sender dies after":
                raise Died

    @property
    def waiting(self) -> list[UUID]:
        """The jobs with a message here, the first sent first."""
        return list(self.messages)

    def hand_out(self, job_id: UUID) -> None:
        """Deliver a message; one that is not here any more is a copy that the broker made."""
        self.messages -= Counter([job_id])

    def knows(self, job_id: UUID) -> bool:
        """Whether a message for the job was ever sent."""
        return any(sent == job_id for sent, _ in self.sent)


def _nobody(**_: Any) -> None:
    raise AssertionError("no message leaves this process")


@contextmanager
def in_place_of(real: Publisher) -> Iterator[Bag]:
    """Send into a bag."""
    bag = Bag(real.app)
    publisher.use(bag)
    try:
        yield bag
    finally:
        publisher.use(real)
