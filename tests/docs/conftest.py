"""A reader's place: a package ``shop`` whose files are what the pages show, on the demo's models."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from celery import _state

from jobs import declared
from project.celery import app
from project.demo import models
from tests.docs.material import Block
from tests.platform import drain


class Reader:
    """Somebody who types a page's blocks in, one after the other, while a worker does what is due."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.names: dict[str, Any] = {"__name__": "__console__"}

    def type_in(self, block: Block) -> None:
        """Save the block where it says, or run it in the reader's console; then let the work be done."""
        self.save(block) if block.path else self.run(block)
        drain()

    def save(self, block: Block) -> None:
        assert block.path
        assert block.module
        if (self.place / block.path).exists():
            self.forget(block.module)
        (self.place / block.path).write_text(block.code)
        importlib.import_module(block.module)

    def forget(self, module: str) -> None:
        """What a restart of the worker would forget."""
        sys.modules.pop(module, None)
        forget_tasks(f"{module}.")

    def run(self, block: Block) -> None:
        # Blank lines in front, so that a traceback names the line of the page.
        source = "\n" * block.line + block.code
        exec(compile(source, block.page, "exec"), self.names)


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, transactional_db: None, broker: Any) -> Iterator[Reader]:
    """A reader with an empty shop, a broker, and nothing enqueued."""
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "shop.models", models)
    monkeypatch.setattr(httpx, "post", answer)
    # The longest of the waits that jitter may draw, so that no retry is due before the page looks.
    monkeypatch.setattr("jobs.conclusion.random.random", lambda: 1.0)
    declared.tasks()  # the project's own are imported first, so that they outlive the page
    kept_tasks, kept_finalizers = dict(app.tasks), set(_state._on_app_finalizers)
    yield Reader(tmp_path)
    for name in set(app.tasks) - set(kept_tasks):
        del app.tasks[name]
    forget_tasks("shop.")
    _state._on_app_finalizers.intersection_update(kept_finalizers)
    for name in [name for name in sys.modules if name == "shop" or name.startswith("shop.")]:
        sys.modules.pop(name)


def forget_tasks(prefix: str) -> None:
    """Take tasks out of every app that is left in this process: a shared task registers with all of them."""
    for each in list(_state._get_active_apps()):
        for name in [name for name in each._tasks if name.startswith(prefix)]:
            del each._tasks[name]


def answer(url: str, **asked: Any) -> httpx.Response:
    """The payment gateway of the pages: it takes every order."""
    return httpx.Response(200, json={"reference": "r-1"}, request=httpx.Request("POST", url))
