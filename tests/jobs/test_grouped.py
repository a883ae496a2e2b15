"""What a worker's main process does with claims whose answer comes late."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest

from jobs import grouped, heartbeat, lifecycle
from jobs.conf import current as settings
from jobs.grouped import Grouped, Workplace
from jobs.handover import Claimed
from jobs.messages import HEADER


class Line:
    """A connection that answers when it is told to."""

    connected = True
    answered: Any = None

    def ask(self, questions: Sequence[Any], answered: Any) -> None:
        self.answered = answered


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
