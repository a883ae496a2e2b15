"""What a worker asks of the database for each job, by the database server's own log."""

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db import connection

from jobs.bulk import bulk
from jobs.models import Job
from project.servers import PostgresServer
from tests.children import Child
from tests.environment import DATABASE
from tests.sample.tasks import add

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(
        DATABASE == "sqlite" or "TEST_DATABASE_URL" in os.environ, reason="there is no server whose log could be read"
    ),
]

JOBS = 100
SAID = re.compile(r"\[(\d+)\] (?:LOG:  (?:statement|execute [^:]*): |FATAL|ERROR)(.*)")

WaitUntil = Callable[..., Any]
Settled = Callable[..., Counter[str]]


class Log:
    """What backends of the server were asked from now on, by their process ids."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.start = path.stat().st_size

    def asked(self) -> dict[str, list[str]]:
        """The statements of each backend, in order."""
        found: dict[str, list[str]] = {}
        for pid, statement in SAID.findall(self.path.read_bytes()[self.start :].decode(errors="replace")):
            found.setdefault(pid, []).append(statement)
        return found

    def of_attempts(self) -> dict[str, list[str]]:
        """Of those backends alone that claimed jobs."""
        return {pid: said for pid, said in self.asked().items() if any("_claim_" in one for one in said)}


@pytest.fixture
def logged(postgres: PostgresServer) -> Iterator[Callable[[], Log]]:
    """Have the server log every statement of connections that are made from now on."""
    name = connection.ops.quote_name(connection.settings_dict["NAME"])
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER DATABASE {name} SET log_statement = 'all'")
    yield lambda: Log(postgres.log)
    connection.close()
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER DATABASE {name} RESET log_statement")


@pytest.fixture
def since(logged: Callable[[], Log]) -> Log:
    """What was asked since before the worker started."""
    return logged()


@pytest.fixture(params=["prefork", "threads", "solo"])
def warm(request: pytest.FixtureRequest, since: Log, worker: Callable[..., Child], settled: Settled) -> Child:
    """A worker each of whose slots has run jobs, and claims and completes them one by one."""
    child = worker(pool=request.param, concurrency=2, env={"TEST_JOBS": json.dumps({"GROUP_SHORT_JOBS": False})})
    run(settled, 30)
    return child


def run(settled: Settled, number: int) -> None:
    """Run so many jobs."""
    Job.objects.all().delete()
    for n in range(number):
        add.delay(n, 1)
    assert settled() == {"completed": number}


def verbs(said: dict[str, list[str]]) -> Counter[str]:
    """How often each statement was asked, prepared ones by their names."""
    return Counter(re.sub(r"mainstay_(\w+)_\w{12}.*", r"\1", one) for statements in said.values() for one in statements)


def test_a_job_costs_its_worker_two_statements(warm: Child, logged: Callable[[], Log], settled: Settled) -> None:
    log = logged()
    run(settled, JOBS)
    assert verbs(log.of_attempts()) == {"EXECUTE claim": JOBS, "EXECUTE complete": JOBS}


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_jobs_in_groups_cost_less_than_a_statement_each(
    pool: str, worker: Callable[..., Child], logged: Callable[[], Log], settled: Settled
) -> None:
    worker(pool=pool, concurrency=2)
    run(settled, 30)
    log = logged()
    bulk(add, [(n, 1) for n in range(5 * JOBS)])  # together: a busy machine must not hand them out one by one
    assert settled() == {"completed": 30 + 5 * JOBS}
    assert verbs(log.of_attempts()).total() < 5 * JOBS


def test_a_connection_is_kept_from_job_to_job(warm: Child, since: Log, settled: Settled) -> None:
    opened = set(since.of_attempts())
    run(settled, JOBS)
    assert set(since.of_attempts()) == opened


def test_a_connection_that_broke_is_replaced_and_stays_again(
    warm: Child, logged: Callable[[], Log], settled: Settled, postgres: PostgresServer
) -> None:
    postgres.restart()
    connection.close()
    run(settled, 30)
    log = logged()
    run(settled, JOBS)
    assert verbs(log.of_attempts()) == {"EXECUTE claim": JOBS, "EXECUTE complete": JOBS}
