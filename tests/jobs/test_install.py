"""What ``install(app)`` does to an app and to the processes that run its tasks."""

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery, signals
from django.core.exceptions import ImproperlyConfigured
from django.db import connection, transaction

from jobs import publisher
from jobs.celery import install
from jobs.tracked import Tracked
from tests.children import Child
from tests.environment import DATABASE
from tests.platform import Witness
from tests.sample.tasks import add, untracked_count

on_a_server = pytest.mark.skipif(DATABASE == "sqlite", reason="a file has no server that ends connections")


def test_a_second_app_is_refused_and_the_first_keeps_its_jobs() -> None:
    first = publisher.in_use()
    second = Celery("second", set_as_current=False)
    with pytest.raises(ImproperlyConfigured, match=r"on the Celery app '.+' .* on 'second' too\. Use one app"):
        install(second)
    assert publisher.in_use() is first
    assert not hasattr(second, "mainstay_installed")


@pytest.mark.parametrize("configured", [False, True])
def test_what_the_project_sets_itself_wins_over_our_defaults(monkeypatch: pytest.MonkeyPatch, configured: bool) -> None:
    monkeypatch.setattr(publisher, "_in_use", None)
    own = Celery("own", set_as_current=False)
    own.config_from_object({"worker_prefetch_multiplier": 7})
    if configured:
        assert own.conf.worker_prefetch_multiplier == 7
    install(own)
    assert (own.conf.worker_prefetch_multiplier, own.conf.worker_soft_shutdown_timeout) == (7, 25.0)


def test_the_worker_and_the_beat_of_an_app_without_mainstay_are_plain_celery() -> None:
    plain = Celery("plain", set_as_current=False)

    @plain.task(name="plain")
    def nothing() -> None: ...

    plain.finalize()
    signals.celeryd_after_setup.send(sender="plain@here", instance=SimpleNamespace(app=plain), conf=plain.conf)
    scheduler = SimpleNamespace(producer="to the broker")
    signals.beat_init.send(sender=type("Beat", (), {"app": plain, "scheduler": scheduler}))
    assert not isinstance(plain.tasks["plain"], Tracked)
    assert scheduler.producer == "to the broker"


def test_to_install_twice_on_one_app_changes_nothing() -> None:
    first = publisher.in_use()
    assert install(first.app) is first.app
    assert publisher.in_use() is first


@pytest.fixture
def kept(transactional_db: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A connection that is open between two tasks of a worker, of a project that sets no age."""
    monkeypatch.setitem(connection.settings_dict, "CONN_MAX_AGE", 0)
    connection.close()
    connection.ensure_connection()
    yield connection.connection
    connection.close()


def pass_a_task() -> None:
    signals.task_prerun.send(sender=add)
    signals.task_postrun.send(sender=add)


def break_it() -> None:
    """Let the driver's connection fail as it does after the server was restarted."""
    connection.connection.close()
    connection.errors_occurred = True


def test_a_sound_connection_is_kept_from_task_to_task(kept: Any) -> None:
    pass_a_task()
    assert connection.connection is kept


@on_a_server
def test_a_broken_connection_is_replaced(kept: Any) -> None:
    break_it()
    pass_a_task()
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    assert connection.connection is not kept


def test_a_connection_that_is_too_old_is_closed(kept: Any) -> None:
    connection.settings_dict["CONN_MAX_AGE"] = 60
    connection.close_at = 0.0
    pass_a_task()
    assert connection.connection is None


def test_a_connection_inside_a_transaction_is_left_alone(kept: Any) -> None:
    with transaction.atomic():
        connection.errors_occurred = True
        pass_a_task()
        assert connection.errors_occurred


def test_a_task_that_runs_on_the_spot_leaves_its_callers_connections_alone(
    kept: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection.close_at = 0.0
    add.push_request(is_eager=True)
    try:
        pass_a_task()
    finally:
        add.pop_request()
    assert (connection.connection, connection.close_at) == (kept, 0.0)


@on_a_server
def test_an_untracked_task_works_again_after_the_database_ended_its_connections(
    worker: Callable[..., Child], witness: Witness, wait_until: Callable[..., Any]
) -> None:
    worker(concurrency=1, env=witness.environ)
    untracked_count.delay("before")
    wait_until(lambda: witness.lines == ["before: 0"])
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    untracked_count.delay("first")
    untracked_count.delay("next")
    wait_until(lambda: "next: 0" in witness.lines, timeout=20)
