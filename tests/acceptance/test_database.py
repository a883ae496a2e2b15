"""Without the database nothing goes in, and the caller is told."""

from collections.abc import Callable

import pytest
from django.db import connection

from project.servers import RedisServer
from tests.children import Child, python
from tests.platform import messages

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
