"""What waits in the demo is found with its reason; what does not wait, or for another reason, is named."""

from uuid import uuid4

import pytest

from jobs import control, lanes, lifecycle
from jobs.models import Job, Worker
from jobs.states import State
from project.demo import conf, seeding, tasks
from project.demo.round import SHOPS
from project.demo.waits import Look

pytestmark = pytest.mark.django_db

SMALL = {
    "seed": 7, "orders": 60, "charges": 0, "receipts": 0, "taxes": 0, "subscribers": 0, "products": 0, "leaflets": 40,
    "parcels": 20, "supplies": 2,
}  # fmt: skip


@pytest.fixture
def a_round(tmp_path, monkeypatch):
    for name in ("ORDER_FILES", "PICTURES", "LEAFLETS"):
        monkeypatch.setattr(conf, name, tmp_path / name.lower())
    seeded = seeding.next_round(SMALL)
    seeding.seed(seeded)
    return seeded


def let_go():
    """Release once, to a worker with hands enough to use up the tokens, but not the leaflets."""
    now = lifecycle.database_now()
    Worker.objects.create(name="w", pid=1, started_at=now, seen_at=now, queues=["mail", "reports"], concurrency=9)
    return lanes.release(500)


def start(*jobs):
    """Let jobs begin, as by a worker."""
    Job.objects.filter(pk__in=[job.pk for job in jobs]).update(
        state=State.RUNNING,
        started_at=lifecycle.database_now(),
        attempt=1,
        token=uuid4(),
        lease_until=lifecycle.database_now(),
    )


def test_each_kind_of_wait_is_explained_and_the_lone_leaflet_had_its_turn(a_round):
    released = let_go()
    start(*(job for job in released if job.task == tasks.fold_leaflet.name))
    look = Look(a_round)
    assert look.again(), list(look.unseen())
    assert look.turn.before <= 2
    words = "\n".join(look.lines())
    assert "Behind 3" in words
    assert "The rate parcel service has no token left" in words
    assert "The queue suppliers is paused" in words


def test_a_flood_that_is_let_go_at_once_is_named(a_round):
    Job.objects.filter(task=tasks.fold_leaflet.name).update(lane="")
    look = Look(a_round)
    look.again()
    assert any("no job waits with the reason 'line'" in sentence for sentence in look.unseen())


def test_a_queue_that_is_not_paused_is_named(a_round):
    control.resume(queue=seeding.SUPPLIERS, by="test")
    look = Look(a_round)
    look.again()
    assert any("no job waits with the reason 'paused'" in sentence for sentence in look.unseen())


def test_a_lone_leaflet_that_has_not_begun_is_named(a_round):
    look = Look(a_round)
    look.again()
    assert f"the single leaflet of {SHOPS[1]} has not started" in look.unseen()
