"""Celery's own command line beside Mainstay: its commands do not set Django up."""

import subprocess

import pytest

from tests.children import ROOT, child_environment, python
from tests.conftest import Spawn

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.slow, pytest.mark.one_database]


def celery(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command of Celery's to its end."""
    command = python("-m", "celery", "-A", "project", *words)
    environ = child_environment() | variables
    return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60, check=False)


def test_celery_s_own_commands_work(worker: Spawn) -> None:
    worker()
    assert "1 node online" in celery("status").stdout
    assert "pong" in celery("inspect", "ping").stdout
    called = celery("call", "tests.sample.tasks.add", "--args", "[1, 2]")
    assert called.returncode == 0, called.stderr
    assert celery("result", called.stdout.strip()).stdout.strip() == "3"


def test_a_worker_with_misspelt_settings_does_not_start() -> None:
    refused = celery("worker", TEST_JOBS='{"LEESE": 5}')
    assert refused.returncode != 0
    assert "Did you mean 'LEASE'?" in refused.stderr
    assert "Traceback" not in refused.stderr
