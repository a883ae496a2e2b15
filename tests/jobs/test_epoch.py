"""The marker in the broker: what is gone from the broker, or from the database, is seen by it."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest.mock import Mock
from uuid import UUID, uuid4

import pytest
from redis import Redis
from redis.exceptions import ResponseError

from jobs import epoch, lifecycle, marker
from jobs.admin import health
from jobs.checks import check_sharing
from jobs.epoch import BEGINNING, MARGIN, Verdict, judge
from jobs.errors import BrokerUnavailable
from jobs.ids import new_id
from jobs.marker import Marker
from jobs.models import Act, Epoch, Job, Worker
from jobs.reconcile import Reconciler
from jobs.states import State
from project.servers import RedisServer
from tests.platform import fresh
from tests.sample.tasks import add

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
KEPT = Epoch(broker="default", server="a", serial=7, marked_at=NOON)


@pytest.mark.parametrize(
    ("found", "server", "verdict"),
    [
        (Marker(7, NOON), "a", Verdict()),
        (Marker(6, NOON), "a", Verdict()),
        (Marker(5, NOON), "a", Verdict(lost_since=NOON - MARGIN)),
        (Marker(7, NOON), "b", Verdict(lost_since=NOON - MARGIN)),
        (None, "a", Verdict(lost_since=BEGINNING)),
        (Marker(8, NOON), "a", Verdict(lost_since=BEGINNING, forgotten_since=NOON)),
    ],
    ids=["as it was left", "one behind: a crash", "older", "another run of the server", "none", "newer"],
)
def test_a_marker_tells_who_was_set_back(found: Marker | None, server: str, verdict: Verdict) -> None:
    assert judge(KEPT, found, server) == verdict


def test_a_marker_that_may_be_in_other_hands_is_waited_for(db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = Mock(marker=None, others=None, perhaps_held=True, server="")
    monkeypatch.setattr(marker, "place", lambda _: nullcontext(elsewhere))
    kept = Epoch.objects.create(broker="default", serial=7, marked_at=lifecycle.database_now())
    epoch.tick()
    kept.refresh_from_db()
    assert (kept.serial, kept.lost_until) == (7, None)
    Epoch.objects.update(marked_at=lifecycle.database_now() - 2 * epoch.HELD)
    epoch.tick()
    kept.refresh_from_db()
    assert (kept.serial, kept.lost_since) == (8, BEGINNING)


def test_a_first_look_finds_nothing_lost() -> None:
    assert judge(Epoch(broker="default"), None, "a") == Verdict()


def test_a_new_database_beside_an_old_broker_knows_nothing_of_it() -> None:
    assert judge(Epoch(broker="default"), Marker(7, NOON), "a") == Verdict(forgotten_since=BEGINNING)


@pytest.fixture
def client(broker: RedisServer) -> Any:
    """A client of the broker."""
    with Redis.from_url(broker.url) as client:
        yield client


def reserved(**changes: Any) -> Job:
    """A job whose message is in the broker."""
    job = fresh(add.delay(1, 2))
    if changes:
        Job.objects.filter(pk=job.pk).update(**changes)
    return fresh(job)


def lost() -> int:
    """What is found lost once the workers had time to report since the loss."""
    moment = timedelta(seconds=5)
    for kept in Epoch.objects.filter(lost_until__isnull=False):
        Epoch.objects.filter(pk=kept.pk).update(lost_until=kept.lost_until + timedelta(0))
        Job.objects.filter(sent_at__lte=kept.lost_until).update(sent_at=kept.lost_until - 2 * moment)
        Epoch.objects.filter(pk=kept.pk).update(lost_until=kept.lost_until - moment)
    return Reconciler().tick()


@pytest.mark.django_db(transaction=True)
class TestOnARealServer:
    def test_a_healthy_broker_loses_nothing(self, client: Redis) -> None:
        job = reserved()
        for _ in range(3):
            epoch.tick()
        assert (lost(), fresh(job).state) == (0, State.RESERVED)

    def test_a_flushed_broker_has_lost_everything(self, client: Redis) -> None:
        epoch.tick()
        jobs = [reserved() for _ in range(3)]
        client.flushall()
        assert epoch.tick() == 3
        assert lost() == 3
        assert {fresh(job).state for job in jobs} == {State.PENDING}

    def test_what_was_lost_is_due_in_the_order_in_which_it_was_sent(self, client: Redis) -> None:
        epoch.tick()
        first, second = reserved(), reserved()
        client.flushall()
        epoch.tick()
        Epoch.objects.update(lost_until=lifecycle.database_now() - timedelta(seconds=3))
        Job.objects.filter(pk=second.pk).update(sent_at=lifecycle.database_now() - timedelta(seconds=20))
        Job.objects.filter(pk=first.pk).update(sent_at=lifecycle.database_now() - timedelta(seconds=10))
        Reconciler().tick()
        assert [job.pk for job in lifecycle.reserve_due(10)] == [second.pk, first.pk]

    def test_what_was_lost_is_sent_again_once(self, client: Redis) -> None:
        epoch.tick()
        reserved()
        client.flushall()
        epoch.tick()
        assert lost() == 1
        assert not Epoch.objects.filter(lost_until__isnull=False).exists()

    def test_what_a_live_worker_holds_is_not_sent_again(self, client: Redis) -> None:
        epoch.tick()
        job = reserved()
        client.flushall()
        epoch.tick()
        now = lifecycle.database_now()
        Worker.objects.create(name="w", pid=1, started_at=now, seen_at=now, holds=[str(job.pk)])
        assert (lost(), fresh(job).state) == (0, State.RESERVED)

    def test_nothing_is_sent_again_before_each_live_worker_has_reported(self, client: Redis) -> None:
        epoch.tick()
        reserved()
        client.flushall()
        now = lifecycle.database_now()
        Worker.objects.create(name="w", pid=1, started_at=now, seen_at=now - timedelta(seconds=3), holds=[])
        epoch.tick()
        assert Reconciler().tick() == 0

    def test_a_loss_is_seen_by_the_next_conductor_where_the_first_one_died(
        self, client: Redis, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        epoch.tick()
        reserved()
        client.flushall()

        def dies(self: Any, marker: Marker) -> None:
            raise SystemExit

        with monkeypatch.context() as patch:
            patch.setattr(marker._OnRedis, "leave", dies)
            with pytest.raises(SystemExit):
                epoch.tick()
        assert epoch.tick() == 1
        assert lost() == 1

    @pytest.mark.parametrize("error", [SystemExit, BrokerUnavailable])
    def test_what_the_marker_told_is_on_record_though_the_next_one_never_arrives(
        self, client: Redis, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
    ) -> None:
        epoch.tick()
        Epoch.objects.update(serial=0)

        def dies(self: Any, marker: Marker) -> None:
            raise error

        monkeypatch.setattr(marker._OnRedis, "leave", dies)
        with suppress(SystemExit):
            epoch.tick()
        assert Act.objects.filter(verb="database set back").count() == 1

    def test_a_broker_that_refuses_the_marker_is_told_of_once(
        self, client: Redis, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        epoch.tick()
        client.flushall()

        def refuses(self: Any, marker: Marker) -> None:
            raise BrokerUnavailable("full")

        monkeypatch.setattr(marker._OnRedis, "leave", refuses)
        for _ in range(3):
            epoch.tick()
        assert Act.objects.filter(verb="broker set back").count() == 1

    def test_a_restart_from_an_old_copy_loses_what_came_after_it(self, client: Redis) -> None:
        epoch.tick()
        copy = client.hget(marker.NAME, "marker")
        old = reserved(sent_at=lifecycle.database_now() - timedelta(hours=1))
        for _ in range(3):
            epoch.tick()
        young = reserved()
        client.hset(marker.NAME, "marker", copy)
        assert epoch.tick() == 1
        Epoch.objects.update(lost_until=lifecycle.database_now())
        assert Epoch.objects.get(pk="default").lost_since > fresh(old).sent_at
        assert Epoch.objects.get(pk="default").lost_since < fresh(young).sent_at

    def test_a_database_that_was_set_back_is_reported(self, client: Redis) -> None:
        epoch.tick()
        backup = Epoch.objects.values().get(pk="default")
        for _ in range(3):
            epoch.tick()
        Epoch.objects.filter(pk="default").update(serial=backup["serial"], marked_at=backup["marked_at"])
        epoch.tick()
        act = Act.objects.get(verb="database set back")
        assert "may have run already" in act.reason
        assert Epoch.objects.get(pk="default").forgotten_since == backup["marked_at"]

    def test_a_broker_that_does_not_answer_has_lost_nothing(self, broker: RedisServer) -> None:
        epoch.tick()
        broker.stop()
        assert epoch.tick() == 0
        assert not Epoch.objects.filter(lost_until__isnull=False).exists()

    def test_a_broker_that_takes_no_marker_for_a_while_was_not_set_back(
        self, client: Redis, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        epoch.tick()

        def full(self: Any, marker: Marker) -> None:
            raise ResponseError("OOM command not allowed when used memory > 'maxmemory'.")

        with monkeypatch.context() as patch:
            patch.setattr(marker._OnRedis, "leave", full)
            for _ in range(5):
                epoch.tick()
        epoch.tick()
        assert not Epoch.objects.filter(lost_until__isnull=False).exists()

    def test_a_flush_while_the_marker_is_moved_on_is_seen(self, client: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
        epoch.tick()
        reserved()
        leave = marker._OnRedis.leave

        def late(self: Any, marker: Marker) -> None:
            client.flushall()
            leave(self, marker)

        with monkeypatch.context() as patch:
            patch.setattr(marker._OnRedis, "leave", late)
            epoch.tick()
        assert epoch.tick() == 1

    def test_a_conductor_that_stood_still_sets_no_marker_back(
        self, client: Redis, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        epoch.tick()
        leave = marker._OnRedis.leave

        def others_went_on(self: Any, marker: Marker) -> None:
            patch.undo()
            for _ in range(3):
                epoch.tick()
            leave(self, marker)

        with monkeypatch.context() as patch:
            patch.setattr(marker._OnRedis, "leave", others_went_on)
            epoch.tick()
        epoch.tick()
        assert not Epoch.objects.filter(lost_until__isnull=False).exists()

    def test_a_user_who_may_not_ask_which_server_it_is_keeps_a_marker(self, client: Redis) -> None:
        client.acl_setuser(
            "default", enabled=True, nopass=True, commands=["+@all", "-info"], keys=["*"], channels=["*"]
        )
        try:
            epoch.tick()
            epoch.tick()
            client.delete(marker.NAME)
            job = reserved()
            assert (epoch.tick(), fresh(job).state) == (1, State.RESERVED)
        finally:
            client.execute_command("ACL", "SETUSER", "default", "+info")

    def test_what_keeps_the_marker_from_the_broker_is_said_once(
        self, client: Redis, caplog: pytest.LogCaptureFixture
    ) -> None:
        client.set(marker.NAME, "no hash")
        for _ in range(3):
            epoch.tick()
        client.delete(marker.NAME)
        epoch.tick()
        assert [record.levelname for record in caplog.records if "cannot be looked at" in record.message] == ["WARNING"]

    def test_a_conductor_that_was_overtaken_leaves_the_marker_alone(
        self, client: Redis, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        epoch.tick()
        clock = lifecycle.database_now

        def overtaken() -> Any:
            Epoch.objects.update(serial=9)
            return clock()

        monkeypatch.setattr(lifecycle, "database_now", overtaken)
        epoch.tick()
        assert Epoch.objects.get(pk="default").serial == 9
        assert client.hget(marker.NAME, "marker").startswith(b"1 ")


@pytest.mark.django_db
class TestJobsWithoutARow:
    @pytest.fixture(autouse=True)
    def kept(self) -> None:
        """The database was last known to be whole an hour from now."""
        Epoch.objects.create(broker="default", serial=7, marked_at=lifecycle.database_now() + timedelta(hours=1))

    def test_one_created_before_the_last_mark_was_pruned(self) -> None:
        assert not epoch.is_forgotten(new_id())

    def test_one_created_since_may_be_forgotten(self) -> None:
        Epoch.objects.update(marked_at=lifecycle.database_now() - timedelta(hours=1))
        assert epoch.is_forgotten(new_id())

    def test_one_created_in_a_gap_may_be_forgotten(self) -> None:
        now = lifecycle.database_now()
        Epoch.objects.update(forgotten_since=now - timedelta(hours=1), forgotten_until=now + timedelta(hours=1))
        assert epoch.is_forgotten(new_id())

    def test_one_whose_id_does_not_tell_may_be_forgotten(self) -> None:
        assert epoch.is_forgotten(uuid4())

    def test_everything_may_be_forgotten_where_nobody_leaves_a_mark(self) -> None:
        Epoch.objects.all().delete()
        assert epoch.is_forgotten(UUID(str(new_id())))


@pytest.mark.django_db(transaction=True)
class TestBesideAnotherInstallation:
    """Two projects, one database of Redis, no prefix: a mistake that is said, and loses nothing."""

    @pytest.fixture
    def other(self, client: Redis) -> Any:
        """Be the other installation, whose rows are elsewhere, for a block."""

        @contextmanager
        def being() -> Iterator[None]:
            ours = list(Epoch.objects.all())
            Epoch.objects.all().delete()
            Epoch.objects.bulk_create(theirs)
            yield
            theirs[:] = list(Epoch.objects.all())
            Epoch.objects.all().delete()
            Epoch.objects.bulk_create(ours)

        theirs: list[Epoch] = []
        return being

    def test_nobody_finds_messages_lost_because_the_other_moves_its_marker_on(self, other: Any) -> None:
        epoch.tick()
        with other():
            epoch.tick()
        job = reserved()
        for _ in range(4):
            assert epoch.tick() == 0
            with other():
                assert epoch.tick() == 0
        assert (lost(), fresh(job).state) == (0, State.RESERVED)
        assert Act.objects.filter(verb="broker set back").count() == 0

    @pytest.mark.parametrize("first", [True, False])
    def test_a_flush_is_seen_by_both_whoever_looks_first(self, client: Redis, other: Any, first: bool) -> None:
        epoch.tick()
        with other():
            epoch.tick()
        reserved()
        client.flushall()
        if first:
            assert epoch.tick() == 1
        with other():
            assert epoch.tick() == 1
        if not first:
            assert epoch.tick() == 1

    def test_both_say_so(self, other: Any, caplog: pytest.LogCaptureFixture) -> None:
        epoch.tick()
        assert (epoch.shared(), health.warnings()) == ("", [])
        with other():
            epoch.tick()
            assert epoch.shared() == epoch.SHARED
        epoch.tick()
        epoch.tick()
        assert health.warnings() == [epoch.SHARED]
        assert [message.id for message in check_sharing(databases=["default"])] == ["jobs.W015"]
        assert epoch.SHARED in caplog.messages

    def test_one_that_has_left_is_forgotten(self, other: Any) -> None:
        with other():
            epoch.tick()
        epoch.tick()
        Epoch.objects.filter(broker=epoch.BESIDE).update(marked_at=lifecycle.database_now() - 2 * epoch.NEIGHBOUR)
        assert epoch.shared() == ""
