"""How often a leader looks at the lines: soon after something has ended, at leisure where nothing can."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.db.models import F
from django.test.utils import CaptureQueriesContext

from jobs import control, lanes, lifecycle, rescue
from jobs.conf import current as settings
from jobs.models import Bucket, Job, Slot
from jobs.publisher import Publisher
from jobs.pulse import Pulse
from jobs.release import Releases
from tests.platform import attempt, drain, fresh, running
from tests.sample.tasks import alone, note, through_gateway

pytestmark = pytest.mark.django_db

TICK = settings().TICK


@pytest.fixture(autouse=True)
def nothing_learned(sent: list[str]) -> Iterator[None]:
    """What other tests taught about how fast workers are does not count; nothing goes to a broker."""
    lanes._flows.clear()
    yield
    lanes._flows.clear()


@pytest.fixture
def releases() -> Releases:
    """The releases of a leader that has just begun."""
    return Releases()


def looked(releases: Releases) -> float:
    """Release until nothing more goes; return how long to wait then."""
    releases.rest()
    while releases.release():
        releases.rest()
    return releases.rest()


def test_nobody_hurries_where_nothing_is_in_line(releases: Releases) -> None:
    note.delay("x")
    assert looked(releases) == TICK


def test_what_nobody_has_looked_at_yet_is_looked_at_soon(releases: Releases, monkeypatch: pytest.MonkeyPatch) -> None:
    note.apply_async(("x",), tenant="a")
    looked(releases)
    monkeypatch.setattr(lanes, "_unfinished", ["default"])
    assert releases.rest() < TICK / 50


def test_nobody_hurries_while_the_broker_is_away(releases: Releases, monkeypatch: pytest.MonkeyPatch) -> None:
    note.apply_async(("x",), tenant="a")
    looked(releases)
    monkeypatch.setattr(lanes, "_unfinished", ["default"])
    monkeypatch.setattr(Publisher, "paused", True)
    assert releases.release() == 0
    assert releases.rest() == TICK


def test_nobody_hurries_for_what_is_paused(releases: Releases) -> None:
    control.pause(queue="default", reason="", by="ann")
    note.apply_async(("x",), tenant="a")
    looked(releases)
    releases.pulse.something_changed()
    assert releases.rest() == TICK


def test_whoever_waits_for_another_to_end_is_looked_after_at_once(releases: Releases) -> None:
    for letter in "ab":
        alone.delay(letter)
    assert looked(releases) < TICK  # a tenth of it, where this machine is not busy
    attempt(Slot.objects.filter(key="").values_list("job_id", flat=True)[0])
    assert releases.release() == 1


def test_the_longer_it_takes_the_less_often_one_looks_and_yet_often(releases: Releases) -> None:
    for letter in "ab":
        alone.delay(letter)
    looked(releases)
    releases.pulse.changed_at -= 1
    assert TICK / 10 < releases.rest() <= TICK / 2.5
    releases.pulse.changed_at -= 3600
    assert releases.rest() == TICK / 2.5


def test_a_look_that_finds_nothing_new_is_one_statement_that_locks_nothing(
    releases: Releases, django_assert_num_queries: Any
) -> None:
    for letter in "ab":
        alone.delay(letter)
    looked(releases)
    with CaptureQueriesContext(connection) as seen:
        assert releases.release() == 0
    assert [query["sql"].split()[0] for query in seen] == ["SELECT"]


def test_a_token_that_comes_soon_is_not_slept_through(releases: Releases) -> None:
    note.apply_async(("in line",), tenant="a")
    looked(releases)
    drain()
    through_gateway.apply_async(("next",), tenant="b")
    now = lifecycle.database_now()
    Bucket.objects.create(key="gateway", tokens=-1.0, filled_at=now + timedelta(seconds=60), full_at=now)
    looked(releases)
    assert not Slot.objects.exists()
    releases.pulse.something_changed()
    assert releases.rest() < TICK


@pytest.mark.parametrize(
    "change",
    [
        lambda: note.apply_async(("x",), tenant="new"),
        lambda: attempt(Slot.objects.filter(key="").values_list("job_id", flat=True)[0]),
        lambda: Slot.objects.update(job_id="00000000-0000-0000-0000-000000000000"),
    ],
    ids=["a job came", "one has ended", "one was deleted"],
)
def test_what_lets_a_job_go_is_seen(change: Callable[[], Any]) -> None:
    for letter in "ab":
        alone.delay(letter)
    lanes.release(10)
    Slot.objects.filter(key__gt="").delete()
    pulse = Pulse()
    assert not pulse.something_changed()
    change()
    assert pulse.something_changed()


def test_a_job_that_is_ended_by_force_counts_until_its_runner_must_have_stopped() -> None:
    for letter in "ab":
        alone.delay(letter)
    (first,) = lanes.release(10)
    job = running(first.pk)
    control.cancel(job.pk, reason="", by="ann")
    Job.objects.filter(pk=job.pk).update(cancel_requested_at=F("cancel_requested_at") - timedelta(hours=1))
    assert rescue.force_cancel() == 1
    assert fresh(job).finished
    assert lanes.release(10) == []
    Job.objects.filter(pk=job.pk).update(lease_until=F("lease_until") - timedelta(seconds=settings().LEASE + 1))
    assert len(lanes.release(10)) == 1
