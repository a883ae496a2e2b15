"""Keys that hold until nobody has called with them for a while."""

from datetime import timedelta
from uuid import UUID

import pytest
from django.db import transaction
from django.db.models import F

from jobs import bulk
from jobs.models import Job, Key
from jobs.states import State
from tests.sample.tasks import tell_once

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def nothing_leaves(sent: list[str]) -> None:
    """Nothing goes to a broker."""


def quiet_for(minutes: int) -> None:
    """So long since the last call."""
    Key.objects.update(expires_at=F("expires_at") - timedelta(minutes=minutes))


def ended() -> None:
    """No job is unfinished."""
    Job.objects.filter(finished_at=None).update(state=State.CANCELLED, finished_at=F("created_at"))


def test_each_call_makes_the_time_begin_anew() -> None:
    first = tell_once.delay("disk")
    ended()
    for _ in range(5):
        quiet_for(9)
        assert tell_once.delay("disk").id == first.id
    quiet_for(11)
    assert tell_once.delay("disk").id != first.id


def test_an_unfinished_job_keeps_its_key_for_longer() -> None:
    first = tell_once.delay("disk")
    quiet_for(11)
    assert tell_once.delay("disk").id == first.id


def test_a_call_that_is_rolled_back_does_not_make_it_begin_anew() -> None:
    first = tell_once.delay("disk")
    ended()
    quiet_for(9)
    with transaction.atomic():
        assert tell_once.delay("disk").id == first.id
        transaction.set_rollback(True)
    quiet_for(2)
    assert tell_once.delay("disk").id != first.id


def test_a_bulk_makes_it_begin_anew_for_each_of_its_keys() -> None:
    first = tell_once.delay("disk")
    ended()
    quiet_for(9)
    assert bulk.bulk(tell_once, ["disk", "fan"]).duplicates == {0: UUID(first.id)}
    ended()
    quiet_for(9)
    assert bulk.bulk(tell_once, ["disk", "fan"]).inserted == 0
