"""No operation reads more of a long history than of a short one; by its plans, as times depend on the machine."""

import json
import subprocess

import pytest

from jobs.horizon import HORIZON
from tests.children import python

pytestmark = [pytest.mark.slow, pytest.mark.one_database, pytest.mark.timeout(280)]

SHORT, LONG = 10_000, 300_000
# Where a horizon begins, how many rows there are, and which: each looks at as many as a horizon has, at most twice.
MOST = 5 * HORIZON
# Led by an index, and then bounded: where the horizon is, and so many rows of that index.
LED = 2.1 * HORIZON
# Letters are counted in an index that has their status: to look at each letter for it takes a page of memory each.
PAGES = 1_000

Readings = dict[str, tuple[int, int, list[str]]]


@pytest.fixture(scope="module")
def readings() -> list[Readings]:
    """What each operation reads of a short and of a long history."""
    command = python("-m", "tests.scale.plans", str(SHORT), str(LONG))
    found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=250)
    assert found.returncode == 0, found.stderr[-3000:]
    answer: list[Readings] = json.loads(found.stdout)
    return answer


def test_nothing_reads_all_jobs(readings: list[Readings]) -> None:
    assert {name: whole for name, (_, _, whole) in readings[1].items() if "jobs_job" in whole} == {}


def test_nothing_reads_more_than_its_bound(readings: list[Readings]) -> None:
    assert {name: rows for name, (rows, _, _) in readings[1].items() if rows > MOST} == {}


def test_what_combines_two_filters_looks_along_one_index(readings: list[Readings]) -> None:
    names = ("admin: failed of a task", "admin: completed of a queue", "jobs list --state failed --task")
    assert {name: rows for name in names if (rows := readings[1][name][0]) > LED} == {}


def test_letters_are_counted_without_looking_at_them(readings: list[Readings]) -> None:
    pages = {name: pages for name, (_, pages, _) in readings[1].items() if name.startswith(("letters:", "dlq "))}
    assert {name: many for name, many in pages.items() if many > PAGES} == {}


def test_a_tag_is_looked_for_among_jobs_that_have_any(readings: list[Readings]) -> None:
    assert readings[1]["jobs list --tag"][1] < HORIZON / 2


def test_an_operation_of_the_route_reads_no_more_of_a_long_history(readings: list[Readings]) -> None:
    short, long = readings
    route = ("enqueue", "claim", "finish", "rescue", "force_cancel", "expire", "release: reserve 100 due jobs")
    assert {n: (short[n][0], long[n][0]) for n in route if long[n][0] > 2 * short[n][0] + 10} == {}
