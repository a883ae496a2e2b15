"""The migrations of the indexes: each can be broken off anywhere and run again, reversed, and makes nobody wait."""

import threading
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest
from django.db import connection, connections, transaction
from django.db.migrations.executor import MigrationExecutor

from jobs.migrations._beside_writers import ReplaceUnique
from jobs.models import Job
from tests.conftest import WaitUntil

pytestmark = pytest.mark.django_db(transaction=True)

INDEXES = import_module("jobs.migrations.0004_indexes").Migration


def migrate(*targets: tuple[str, str]) -> None:
    MigrationExecutor(connection).migrate(list(targets))


def newest() -> None:
    migrate(*MigrationExecutor(connection).loader.graph.leaf_nodes())


@pytest.fixture(autouse=True)
def again() -> Iterator[None]:
    """Whatever a test did, the others have the newest schema."""
    yield
    newest()


def indexes(table: str = "jobs_job") -> dict[str, Any]:
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute(
                "SELECT relname, pg_get_indexdef(oid) || indisvalid FROM pg_class JOIN pg_index ON indexrelid = oid "
                "WHERE indrelid = %s::regclass",
                [table],
            )
        else:
            cursor.execute("SELECT name, sql FROM sqlite_master WHERE type = 'index' AND tbl_name = %s", [table])
        return dict(cursor.fetchall())


def break_off(monkeypatch: pytest.MonkeyPatch, target: tuple[str, str], statement: int) -> bool:
    """Migrate to new indexes, as far as before a statement; False when there are not so many."""
    left = [statement]
    with monkeypatch.context() as patched:
        editor = connection.SchemaEditorClass
        execute = editor.execute

        def broken(self: Any, *args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise ZeroDivisionError
            return execute(self, *args, **kwargs)

        patched.setattr(editor, "execute", broken)
        try:
            migrate(target)
        except ZeroDivisionError:
            return True
    return False


@pytest.mark.parametrize(
    ("before", "target", "table", "statements", "always"),
    [
        (("jobs", "0003_tallies"), ("jobs", "0004_indexes"), "jobs_job", (1, 14, 26, 29, 31, 32, 33), 26),
        (("jobs", "0004_indexes"), ("jobs", "0005_tagged"), "jobs_job", (1,), 1),
        (("dlq", "0002_newest_of_tenant"), ("dlq", "0003_by_status"), "dlq_deadletter", (1, 3, 5, 7, 8), 8),
    ],
)
def test_it_can_be_broken_off_anywhere_and_run_again(
    monkeypatch: pytest.MonkeyPatch, before: tuple[str, str], target: tuple[str, str], table: str,
    statements: tuple[int, ...], always: int,
) -> None:  # fmt: skip
    migrate(before)
    migrate(target)
    wanted = indexes(table)
    for statement in statements:
        migrate(before)
        assert break_off(monkeypatch, target, statement) or statement > always
        migrate(target)
        assert indexes(table) == wanted


def test_it_can_be_reversed_and_run_again() -> None:
    wanted = indexes()
    migrate(("jobs", "0002_checkpoints_schedules_epochs"))
    assert "jobs_newest" in indexes()
    assert "jobs_by_end" not in indexes()
    newest()
    assert indexes() == wanted


@pytest.mark.skipif("connection.vendor != 'postgresql'", reason="SQLite has one writer")
def test_while_it_waits_for_a_long_transaction_others_read_and_write(wait_until: WaitUntil) -> None:
    operation = next(one for one in INDEXES.operations if isinstance(one, ReplaceUnique))
    state = MigrationExecutor(connection).loader.project_state(("jobs", "0003_tallies"))

    def in_background() -> None:
        try:
            with connections["default"].schema_editor(atomic=False) as editor:
                operation.database_forwards("jobs", editor, state, state)
        finally:
            connections.close_all()

    def waits() -> bool:
        with other.cursor() as cursor:
            cursor.execute(
                "SELECT EXISTS (SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query ~ 'INDEX')"
            )
            return bool(cursor.fetchone()[0])

    other = connection.copy()
    migration = threading.Thread(target=in_background)
    try:
        with transaction.atomic():
            Job.objects.count()  # a backup does that for hours
            migration.start()
            wait_until(waits)
            with other.cursor() as cursor:
                cursor.execute("SET lock_timeout = '1s'")
                cursor.execute("SELECT COUNT(*) FROM jobs_job")
                cursor.execute("DELETE FROM jobs_job WHERE false")
    finally:
        other.close()
        migration.join()
