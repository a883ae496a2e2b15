"""Without the database nothing goes in, and the caller is told; when it comes back, everything goes on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.db import connection

from jobs.models import Job
from jobs.states import State
from project.servers import RedisServer
from tests.children import Child, python
from tests.environment import DATABASE
from tests.platform import Platform, fresh, messages
from tests.sample.tasks import note, patient

DELAY = """
import django; django.setup()
from django.db.utils import OperationalError
from tests.sample.tasks import note
try:
    note.delay("unheard")
except OperationalError as error:
    print("refused:", error)
"""


def test_without_the_database_delay_raises_and_nothing_is_enqueued(
    spawn: Callable[..., Child], broker: RedisServer
) -> None:
    nowhere = {
        "sqlite": "sqlite:////nowhere/at/all.sqlite3",
        "postgresql": "postgres://nobody@127.0.0.1:9/nothing",
    }[connection.vendor]
    spawn("caller", python("-c", DELAY), {"DATABASE_URL": nowhere}).expect("refused:")
    assert messages(broker.url) == 0


@pytest.mark.skipif(DATABASE == "sqlite", reason="a file cannot be restarted")
def test_jobs_go_on_after_the_database_was_restarted_under_them(
    platform: Platform, postgres: Any, wait_until: Callable[..., Any], tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    running = [patient.delay(str(gate)) for _ in range(2)]
    waiting = [note.delay(f"waiting {n}") for n in range(5)]
    wait_until(lambda: Job.objects.filter(state=State.RUNNING).count() == 2)
    postgres.kill()
    gate.touch()
    postgres.start()
    connection.close()
    wait_until(lambda: {fresh(job).state for job in (*running, *waiting)} == {State.COMPLETED}, timeout=40)
    assert sorted(line for line in platform.witness.lines if line.startswith("waiting")) == [
        f"waiting {n}" for n in range(5)
    ]
    assert platform.worker is not None
    assert platform.worker.running
