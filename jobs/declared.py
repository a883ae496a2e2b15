"""What the project declares: its Celery app with Mainstay, its tasks, its queues. Reads only."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any
from weakref import WeakSet

from jobs import conf, publisher
from jobs.errors import OptionError


def app() -> Any:
    """The Celery app that Mainstay is installed on. Raises ``OptionError`` when there is none."""
    return publisher.in_use().app


def task(name: str) -> Any:
    """The task of this name, None when the project has none; a web process may not have imported it yet."""
    _import_tasks(app())
    return app().tasks.get(name)


def tasks(of: Any = None) -> dict[str, Any]:
    """The project's tasks by name, Celery's own left out."""
    celery = of or app()
    _import_tasks(celery)
    return {name: task for name, task in sorted(celery.tasks.items()) if not name.startswith("celery.")}


def _import_tasks(celery: Any) -> None:
    # Marked first: Celery's Django fixup answers the import by running all system checks, and ours come here again.
    if celery in _imported:
        return
    _imported.add(celery)
    try:
        celery.loader.import_default_modules()
    except BaseException:
        _imported.discard(celery)
        raise


_imported: WeakSet[Any] = WeakSet()


def queues(of: Any = None) -> frozenset[str]:
    """The queues that exist; empty where the project names none, so that any will do."""
    if conf.current().QUEUES:
        return frozenset(conf.current().QUEUES)
    celery = of or app()
    if celery is publisher.app_in_use():
        return publisher.in_use().configured.queues
    return frozenset(celery.amqp.queues) if celery.conf.task_queues else frozenset()


def task_named(text: str) -> str:
    """The full name of a task given in full or by its last part.

    Raises ``OptionError`` when no task has that name, or more than one.
    """
    names = tasks()
    found = [text] if text in names else [name for name in names if name.endswith(f".{text}")]
    if len(found) == 1:
        return found[0]
    if found:
        raise OptionError(f"More than one task is called {text!r}: {', '.join(found)}. Write one of them in full.")
    raise OptionError(f"The project has no task {text!r}.{_nearest(text, names)}")


def full_name(text: str) -> str:
    """The full name of the one task whose name ends so; else the same text, as of a task that is yet to come."""
    names = tasks()
    found = [name for name in names if name.endswith(f".{text}")]
    return found[0] if text not in names and len(found) == 1 else text


def queue_named(text: str) -> str:
    """The same name, once it is known that the project has that queue. Raises ``OptionError``."""
    known = queues()
    if known and text not in known:
        raise OptionError(f"The project has no queue {text!r}. It has: {', '.join(sorted(known))}.")
    return text


def _nearest(text: str, names: Iterable[str]) -> str:
    by_last_part = {name.rsplit(".", 1)[-1]: name for name in names}
    close = difflib.get_close_matches(text.rsplit(".", 1)[-1], by_last_part, n=1)
    return f" Did you mean {by_last_part[close[0]]!r}?" if close else ""
