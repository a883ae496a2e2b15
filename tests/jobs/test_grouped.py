"""What a worker's main process does with claims: those whose answer comes late, and those of messages that arrive."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest

from jobs import grouped, heartbeat, lifecycle
from jobs.conf import current as settings
from jobs.grouped import Grouped, Workplace
from jobs.handover import Claimed
from jobs.letterbox import Letterbox
from jobs.messages import HEADER


class Line:
    """A connection that answers when it is told to."""

    connected = True
    answered: Any = None
    questions: Sequence[Any] = ()

    def ask(self, questions: Sequence[Any], answered: Any) -> None:
        self.questions, self.answered = questions, answered


@pytest.fixture
def back() -> list[Claimed]:
    """The claims that were handed back."""
    return []


def test_a_claim_that_was_let_go_while_it_was_asked_for_is_handed_back_when_it_is_made(
    monkeypatch: pytest.MonkeyPatch, back: list[Claimed]
) -> None:
    job_id, line, group = uuid4(), Line(), Grouped()
    request: Any = SimpleNamespace(id="r", request_dict={HEADER: {"job": str(job_id)}})
    group._line = line  # type: ignore[assignment]
    group.at = Workplace(
        hub=None, hostname="here", pace=SimpleNamespace(ahead=lambda allowed: 9), slots=lambda: 1,  # type: ignore[arg-type]
        waiting=lambda: [request], received=lambda: 1, hand_back=back.extend,
    )  # fmt: skip
    assert group.claim_next()
    later = heartbeat.clock() + settings().LEASE
    monkeypatch.setattr(grouped.heartbeat, "clock", lambda: later)
    group._hand_back_old()
    assert [claim.job_id for claim in back] == [job_id]
    back.clear()
    names = lifecycle._slim_names()
    line.answered([[tuple(job_id if name == "id" else None for name in names)]])
    assert [claim.job_id for claim in back] == [job_id]
    assert not group._claims


# --- Messages that arrive -------------------------------------------------------------------------------------


@pytest.fixture
def line() -> Line:
    """A connection that is there."""
    return Line()


@pytest.fixture
def idle(line: Line, back: list[Claimed]) -> Grouped:
    """A worker with two children, one of which is free."""
    group = Grouped()
    group._line, group._box = line, Letterbox()  # type: ignore[assignment]
    group.at = Workplace(
        hub=None, hostname="here", pace=SimpleNamespace(ahead=lambda allowed: 0), slots=lambda: 2,  # type: ignore[arg-type]
        waiting=list, received=lambda: 1, hand_back=back.extend, runs=lambda task: task == "known",
        child=lambda: 17,
    )  # fmt: skip
    return group


def message(job_id: UUID, task: str = "known", request_id: str = "r") -> dict[str, Any]:
    """What a broker holds of a job."""
    return {"headers": {"id": request_id, "task": task, HEADER: {"job": str(job_id)}}}


def row(job_id: UUID) -> tuple[Any, ...]:
    """A row of which nothing but the id is known."""
    return tuple(job_id if name == "id" else None for name in lifecycle._slim_names())


def test_a_claim_that_is_answered_in_time_goes_with_its_job(idle: Grouped, line: Line) -> None:
    job_id = uuid4()
    assert idle.arrive(message(job_id))
    line.answered([[row(job_id)]])
    claim = idle.begun("r").claimed
    assert claim is not None
    assert claim.row == row(job_id)


def test_a_claim_names_the_process_of_the_child(idle: Grouped, line: Line) -> None:
    assert idle.arrive(message(uuid4()))
    ((_, given),) = line.questions
    assert given[1:3] == ["here", 17]


def test_a_claim_that_is_answered_later_follows_as_a_letter(idle: Grouped, line: Line) -> None:
    job_id = uuid4()
    assert idle.arrive(message(job_id))
    claim = idle.begun("r").claimed
    assert claim is not None
    assert claim.row is None
    assert claim.place is not None
    line.answered([[row(job_id)]])
    assert idle._box is not None
    assert idle._box.wait(claim.place, claim.token, 0) == row(job_id)
    assert idle.lost("r") == claim.token


@pytest.mark.parametrize("answers", [[[]], None])
def test_a_child_is_told_that_there_is_no_claim(idle: Grouped, line: Line, answers: Any) -> None:
    assert idle.arrive(message(uuid4()))
    claim = idle.begun("r").claimed
    assert claim is not None
    assert claim.place is not None
    line.answered(answers)
    assert idle._box is not None
    began = time.monotonic()
    assert idle._box.wait(claim.place, claim.token, 5) is None
    assert time.monotonic() - began < 1


def test_who_got_no_claim_in_time_claims_in_its_own_child(idle: Grouped, line: Line) -> None:
    assert idle.arrive(message(uuid4()))
    line.answered([[]])
    assert idle.begun("r").claimed is None


def test_a_claim_whose_message_went_elsewhere_is_handed_back(
    idle: Grouped, line: Line, back: list[Claimed], monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = uuid4()
    assert idle.arrive(message(job_id))
    line.answered([[row(job_id)]])
    later = heartbeat.clock() + settings().LEASE
    monkeypatch.setattr(grouped.heartbeat, "clock", lambda: later)
    idle._hand_back_old()
    assert [claim.job_id for claim in back] == [job_id]


@pytest.mark.parametrize(
    "content",
    [
        {}, {"headers": None}, {"headers": "a text"}, {"headers": [5]},
        {"headers": {"id": "r", "task": "known"}}, {"headers": {"id": 5, "task": "known"}},
        {"headers": {"id": "r", "task": "known", HEADER: {"job": "none"}}}, message(uuid4(), task="limited"),
        {"headers": {HEADER: {"job": str(uuid4())}}},
    ],
)  # fmt: skip
def test_what_is_no_job_or_does_not_run_at_once_is_not_claimed(idle: Grouped, line: Line, content: Any) -> None:
    assert not idle.arrive(content)
    assert line.answered is None


def test_nothing_is_claimed_while_no_child_is_free_or_an_answer_is_awaited(idle: Grouped, line: Line) -> None:
    assert idle.at is not None
    busy = replace(idle.at, received=lambda: 2)
    free, idle.at = idle.at, busy
    assert not idle.arrive(message(uuid4()))
    idle.at = replace(free, child=lambda: None)
    assert not idle.arrive(message(uuid4()))
    idle.at = free
    assert idle.arrive(message(uuid4()))
    assert not idle.arrive(message(uuid4(), request_id="other"))
    line.answered([[]])
    line.connected = False
    assert not idle.arrive(message(uuid4()))
