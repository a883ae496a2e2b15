"""Statements that run for every job: planned once per connection, whatever session is behind it."""

from collections.abc import Iterator
from typing import Any

import pytest
from django.db import Error, connection, transaction
from django.test.utils import CaptureQueriesContext

from jobs.models import Job
from jobs.statements import Statement
from jobs.states import State
from tests.platform import attempt
from tests.sample import tasks as sample

pytestmark = pytest.mark.django_db(transaction=True)

postgres = pytest.mark.skipif(connection.vendor != "postgresql", reason="plans are PostgreSQL's")


@pytest.fixture
def session() -> Iterator[None]:
    """A session that was told nothing yet."""
    connection.close()
    yield
    connection.close()


def answer(statement: Statement, *parameters: Any) -> Any:
    """The one value that a statement answers."""
    with connection.cursor() as cursor:
        statement.run(connection, cursor, parameters)
        return cursor.fetchone()[0]


def known() -> list[str]:
    """What the session behind the connection has planned, of ours."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT name FROM pg_prepared_statements WHERE name LIKE 'mainstay_%%'", [])
        return sorted(row[0] for row in cursor.fetchall())


def other(sql: str, *parameters: Any) -> Any:
    """What somebody else does through the same session."""
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters or None)


ADD = "SELECT %s + 1 - %s"


def test_a_statement_answers_on_every_database(session: None) -> None:
    statement = Statement("add", ADD)
    assert [answer(statement, number, 1) for number in (1, 2, 3)] == [1, 2, 3]


def test_text_and_nothing_arrive_as_they_are(session: None) -> None:
    statement = Statement("say", "SELECT CASE WHEN CAST(%s AS text) IS NULL THEN 'nothing' ELSE %s END")
    for text in ("it's 100%", "%s", "a\\b", "$1", "né\n"):
        assert answer(statement, text, text) == text
    assert answer(statement, None, None) == "nothing"


@postgres
def test_a_statement_is_planned_once_for_each_connection(session: None) -> None:
    statement = Statement("add", ADD)
    with CaptureQueriesContext(connection) as queries:
        for number in (1, 2, 3):
            answer(statement, number, 1)
    assert [query["sql"].split()[0] for query in queries] == ["PREPARE", "EXECUTE", "EXECUTE", "EXECUTE"]
    connection.close()
    assert answer(statement, 5, 1) == 5


@postgres
def test_a_session_that_forgot_a_statement_is_told_again(session: None) -> None:
    statement = Statement("add", ADD)
    answer(statement, 1, 1)
    other("DEALLOCATE ALL")  # as does a pooler that gives the connection another session
    assert answer(statement, 2, 1) == 2
    assert known() == [statement.name]


@postgres
def test_a_session_that_was_told_by_another_process_is_believed(session: None) -> None:
    answer(Statement("warm", "SELECT %s::int"), 1)
    statement = Statement("add", ADD)
    other(f"PREPARE {statement.name} AS SELECT $1 + 1 - $2")
    assert answer(statement, 2, 1) == 2


@postgres
def test_a_statement_whose_table_has_changed_since_is_planned_anew(session: None) -> None:
    other("CREATE TABLE widened (name varchar(5))")
    try:
        other("INSERT INTO widened VALUES ('a')")
        statement = Statement("read", "SELECT name FROM widened WHERE name = %s")
        assert answer(statement, "a") == "a"
        other("ALTER TABLE widened ALTER name TYPE varchar(50)")
        assert answer(statement, "a") == "a"
        with CaptureQueriesContext(connection) as queries:
            answer(statement, "a")
        assert [query["sql"].split()[0] for query in queries] == ["EXECUTE"]
    finally:
        other("DROP TABLE widened")


@postgres
def test_a_session_that_never_keeps_a_statement_gets_it_as_text(session: None, monkeypatch: pytest.MonkeyPatch) -> None:
    statement = Statement("add", ADD)
    execute = statement._run_prepared

    def forgetful(*args: Any) -> None:
        other("DEALLOCATE ALL")
        execute(*args)

    monkeypatch.setattr(statement, "_run_prepared", forgetful)
    monkeypatch.setattr(statement, "preparing", "SELECT 1")
    assert answer(statement, 7, 1) == 7


@postgres
def test_in_a_transaction_no_statement_can_spoil_what_was_done_before(session: None) -> None:
    statement = Statement("add", ADD)
    answer(statement, 1, 1)
    other("DEALLOCATE ALL")
    with transaction.atomic():
        assert answer(statement, 2, 1) == 2
        assert answer(statement, 3, 1) == 3


def test_a_mistake_in_a_statement_is_raised(session: None) -> None:
    with pytest.raises(Error):
        answer(Statement("wrong", "SELECT nothing_of_that_name + %s"), 1)
    assert answer(Statement("add", ADD), 1, 1) == 1


# --- A job's own --------------------------------------------------------------------------------------------------


def test_an_attempt_that_completes_is_two_statements(sent: list[str]) -> None:
    warm, job = sample.add.delay(1, 2), sample.add.delay(3, 4)
    attempt(warm.id)
    with CaptureQueriesContext(connection) as queries:
        attempt(job.id)
    ours = [query["sql"] for query in queries][1:]  # the first is this test's own look at the row
    assert len(ours) == 2, ours
    assert Job.objects.get(pk=job.id).state == State.COMPLETED


def test_a_job_is_inserted_by_one_statement(sent: list[str]) -> None:
    sample.add.delay(1, 2)
    with CaptureQueriesContext(connection) as queries:
        sample.add.delay(1, 2)
    writes = [query["sql"] for query in queries if query["sql"].split()[0] not in ("SELECT", "BEGIN", "COMMIT")]
    assert len(writes) == 1, writes


def test_the_claim_and_the_end_are_made_for_the_lease_that_is_set(settings: Any, sent: list[str]) -> None:
    settings.JOBS = {"LEASE": 33}
    job = sample.add.delay(1, 2)
    attempt(job.id)
    row = Job.objects.get(pk=job.id)
    assert 32.9 < (row.lease_until - row.started_at).total_seconds() < 33.1


@postgres
def test_a_table_that_changed_is_no_error_of_a_session_that_was_never_told(session: None) -> None:
    statement = Statement("columns", "SELECT *, %s + 1 FROM pg_temp.changing")
    other("CREATE TEMPORARY TABLE changing AS SELECT 1 AS a")
    assert answer(statement, 1) == 1
    other("ALTER TABLE changing ADD b int")
    with connection.cursor() as cursor:
        pooled = Pooled(cursor)
        statement.run(connection, pooled, (1,))
        assert pooled.fetchone() == (1, None, 2)


class Pooled:
    """A cursor whose sessions have just been told what they are to forget, as behind a pooler."""

    def __init__(self, cursor: Any) -> None:
        self.cursor = cursor

    def execute(self, sql: str, parameters: Any = None) -> Any:
        if sql.startswith("DEALLOCATE"):
            self.cursor.execute("DEALLOCATE ALL")
        return self.cursor.execute(sql, parameters)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.cursor, name)


@postgres
def test_in_a_transaction_that_was_begun_by_hand_no_statement_may_fail(session: None) -> None:
    statement = Statement("add", ADD)
    answer(statement, 1, 1)
    other("DEALLOCATE ALL")
    transaction.set_autocommit(False)
    try:
        assert answer(statement, 2, 1) == 2
    finally:
        transaction.rollback()
        transaction.set_autocommit(True)
