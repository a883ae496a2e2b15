"""The other side of the comparison is plain Celery, and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.chaos import world
from tests.chaos.children import ROOT

LOADED = """
import json, sys, django
import tests.chaos.plain
django.setup()
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules} & {"jobs", "dlq", "project"})))
"""


def test_plain_celery_runs_without_a_line_of_the_platform() -> None:
    environ = {**world.base_environ(), "DJANGO_SETTINGS_MODULE": "tests.chaos.plain_settings"}
    done = subprocess.run(
        [sys.executable, "-c", LOADED], env=environ, cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == []
