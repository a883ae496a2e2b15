"""The heartbeat keeps what a body says of itself, renews its lease whatever happens, and stops it in time."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from jobs import heartbeat
from jobs.errors import PayloadError
from jobs.models import Job
from jobs.states import State
from tests.platform import attempt, fresh
from tests.sample import tasks as sample

pytestmark = pytest.mark.django_db

NOON = datetime(2030, 5, 1, 12, tzinfo=UTC)
DEEP: list[Any] = []
for _ in range(700):
    DEEP = [DEEP]


def told(monkeypatch: pytest.MonkeyPatch, say: Any) -> Job:
    """A job whose body said something of its progress, after its attempt."""
    monkeypatch.setattr(sample.obedient, "run", lambda: say(sample.obedient))
    job = sample.obedient.delay()
    attempt(job.id)
    found: Job = fresh(job)
    return found


# --- What a body says of itself ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("meta", "kept"),
    [
        ({"at": NOON}, {"at": "2030-05-01T12:00:00+00:00"}),
        ({"sum": Decimal("1.50")}, {"sum": "1.50"}),
        ({"id": UUID(int=7)}, {"id": UUID(int=7).hex}),
        ({"raw": b"abc"}, {"raw": "abc"}),
        ({"pair": (1, None)}, {"pair": [1, None]}),
        ({"__type__": "mine", "__value__": 1, "more": 2}, {"__type__": "mine", "__value__": 1, "more": 2}),
        ({"text": "nul \x00 and surrogate \ud800"}, {"text": "nul \ufffd and surrogate ?"}),
    ],
    ids=["time", "decimal", "uuid", "bytes", "tuple", "not kombu's", "not storable"],
)
def test_a_custom_state_is_kept_as_plain_json(monkeypatch: pytest.MonkeyPatch, meta: Any, kept: Any) -> None:
    job = told(monkeypatch, lambda task: task.update_state(state="COUNTING", meta=meta))
    assert (job.state, job.progress) == (State.COMPLETED, {"celery_state": "COUNTING", "meta": kept})


@pytest.mark.parametrize("meta", [{"what": object()}, {"what": float("nan")}, {(1, 2): "what"}, {"what": DEEP}])
def test_a_custom_state_that_is_not_json_is_kept_as_it_would_be_printed(
    monkeypatch: pytest.MonkeyPatch, meta: Any
) -> None:
    job = told(monkeypatch, lambda task: task.update_state(state="COUNTING", meta=meta))
    assert job.state == State.COMPLETED
    assert "what" in job.progress["meta"]


def test_progress_of_decimals_does_not_fail_the_completion(monkeypatch: pytest.MonkeyPatch) -> None:
    job = told(monkeypatch, lambda task: task.progress(Decimal("0.5"), 1))
    assert (job.state, job.progress["done"]) == (State.COMPLETED, "0.5")


def test_progress_that_is_not_json_is_an_error_in_the_body(monkeypatch: pytest.MonkeyPatch) -> None:
    def say(task: Any) -> None:
        with pytest.raises(PayloadError, match="not JSON"):
            task.progress(object())

    assert told(monkeypatch, say).state == State.COMPLETED


def test_what_was_said_does_not_change_with_the_bodys_own_value() -> None:
    counts = {"done": 1}
    entry = heartbeat.Watched(Job(), thread=0)
    entry.tell(counts)
    counts["done"] = 2
    assert entry.progress == {"done": 1}
