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


@pytest.fixture(scope="module")
def readings() -> list[dict[str, tuple[int, list[str]]]]:
    """What each operation reads of a short and of a long history."""
    command = python("-m", "tests.scale.plans", str(SHORT), str(LONG))
    found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=250)
    assert found.returncode == 0, found.stderr[-3000:]
    answer: list[dict[str, tuple[int, list[str]]]] = json.loads(found.stdout)
    return answer


def test_nothing_reads_all_jobs(readings: list[dict[str, tuple[int, list[str]]]]) -> None:
    assert {name: whole for name, (_, whole) in readings[1].items() if "jobs_job" in whole} == {}


def test_nothing_reads_more_than_its_bound(readings: list[dict[str, tuple[int, list[str]]]]) -> None:
    assert {name: rows for name, (rows, _) in readings[1].items() if rows > MOST} == {}


def test_an_operation_of_the_route_reads_no_more_of_a_long_history(
    readings: list[dict[str, tuple[int, list[str]]]],
) -> None:
    short, long = readings
    route = ("enqueue", "claim", "finish", "rescue", "force_cancel", "expire", "release: reserve 100 due jobs")
    assert {n: (short[n][0], long[n][0]) for n in route if long[n][0] > 2 * short[n][0] + 10} == {}
