"""A release, and what people do at the same time: neither undoes the other."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.db import connection, connections, transaction

from jobs import control, lanes, lifecycle, sql
from jobs.models import Circuit
from tests.conftest import WaitUntil
from tests.sample.tasks import note

pytestmark = pytest.mark.django_db(transaction=True)

ACTS: dict[str, Callable[[], Any]] = {
    "allot": lambda: control.allot("gateway", rate="5/s", by="ann"),
    "withdraw": lambda: control.withdraw("weight", "acme", by="ann"),
    "resume": lambda: control.resume(task=note.name, by="ann"),
    "reset a breaker": lambda: control.reset_breaker("gateway", by="ann"),
}


@pytest.fixture(autouse=True)
def something_to_act_on() -> None:
    """A pause, a weight and a circuit that failed."""
    if connection.vendor != "postgresql":
        pytest.skip("SQLite has one writer")
    control.pause(task=note.name, reason="", by="ann")
    control.allot("acme", weight=2, by="ann")
    Circuit.objects.create(key="gateway", rule="gateway", task="t", changed_at=lifecycle.database_now())


@pytest.mark.parametrize("name", sorted(ACTS))
def test_who_opens_lanes_waits_until_a_release_has_ended(name: str, wait_until: WaitUntil) -> None:
    def act() -> Any:
        try:
            return ACTS[name]()
        finally:
            connections.close_all()

    with ThreadPoolExecutor() as others:
        with transaction.atomic():
            assert lanes._locked()
            acting = others.submit(act)
            wait_until(lambda: acting.done() or _waits())
            assert not acting.done()
        assert acting.result(timeout=30)


def _waits() -> bool:
    return bool(sql.one("SELECT COUNT(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")[0])
