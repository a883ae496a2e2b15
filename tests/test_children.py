"""The fixtures that start real processes: what the other tests rely on."""

import os
from collections.abc import Callable

import pytest
from celery import Celery
from django.contrib.auth.models import User
from django.db import connection

from tests.children import Child, outlived, python


@pytest.fixture
def app() -> Celery:
    from project.celery import app

    return app


def test_a_worker_answers_on_the_broker_of_the_test(worker: Callable[..., Child], app: Celery) -> None:
    worker(name="first", concurrency=1)
    assert "first" in [name.partition("@")[0] for answer in app.control.ping(timeout=5) for name in answer]


@pytest.mark.one_database
def test_a_stopped_worker_leaves_no_process(worker: Callable[..., Child]) -> None:
    child = worker(concurrency=2)
    pool = child.children()
    assert len(pool) >= 2
    assert child.stop() == 0
    assert outlived(pool) == []


@pytest.mark.one_database
def test_a_killed_worker_leaves_no_process(worker: Callable[..., Child]) -> None:
    child = worker(concurrency=2)
    pool = child.children()
    child.kill()
    assert outlived(pool) == []


def test_another_process_sees_the_rows_of_the_test(spawn: Callable[..., Child]) -> None:
    User.objects.create(username="ann")
    code = "from django.contrib.auth.models import User; print(User.objects.get().username)"
    spawn("reader", python("manage.py", "shell", "-c", code)).expect("ann")


def test_the_run_is_on_the_database_that_was_chosen() -> None:
    assert connection.vendor.startswith(os.environ.get("TEST_DB", "sqlite"))
