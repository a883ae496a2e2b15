"""Celery apps beside the project's own, for one test."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from celery import Celery

from jobs import declared, publisher


@contextmanager
def only_for_now(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the project's app be in use again afterwards, and its tasks be its own."""
    app: Celery = declared.app()
    own = list(declared.tasks().values())
    with monkeypatch.context() as patched:
        # A process has one app with Mainstay; here another one may take its place.
        patched.setattr(publisher, "_in_use", None)
        yield
    for task in own:
        # The class of a task is bound to the app that registered it last.
        type(task)._app = app
