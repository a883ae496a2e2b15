"""The pools of Celery's in which bodies are greenlets: what gevent's must be taught, and what is refused at start.

eventlet's is refused: psycopg 3 does not give way to it, and Celery and eventlet's own authors advise to leave it.
"""

from __future__ import annotations

from typing import Any

from celery.exceptions import WorkerShutdown, WorkerTerminate

from jobs import green

EVENTLET = (
    "the eventlet pool is not supported: each statement to the database would stop all of its bodies, and their leases "
    "could not be renewed. Start it with -P gevent, or with -P threads."
)
UNPATCHED = (
    "the gevent pool is chosen, but Python's sockets and threads were not made cooperative, so that one body that "
    "waits would stop all others. Celery does that before it loads anything when it is started with -P gevent (not by "
    "the setting worker_pool)."
)


def name(instance: Any) -> str:
    """What a worker's pool is called: prefork, thread, solo, gevent."""
    pool = instance.pool_cls
    return pool if isinstance(pool, str) else str(getattr(pool, "__module__", "")).rsplit(".", 1)[-1]


def refusal(instance: Any) -> str:
    """Why a worker cannot keep its promises with the pool that it was told to use, and what to do; empty if it can."""
    pool = name(instance)
    if pool == "eventlet":
        return EVENTLET
    return UNPATCHED if pool == "gevent" and not green.threads() else ""


def taught(pool: Any, app: Any) -> Any:
    """A pool as attempts need it. Those whose bodies are not greenlets are that already."""
    if not getattr(pool, "is_green", False):
        return pool

    class Taught(pool):  # type: ignore[misc]
        """Leaves the time limits of jobs to the heartbeat, and survives the bodies that a shutdown ends."""

        def on_apply(self, target: Any, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
            if args and getattr(app.tasks.get(args[0]), "tracked", False):
                # It would strike at any line, of what records the outcome too.
                options["timeout"] = 0
            return super().on_apply(_quiet(target), args, kwargs, **options)

    Taught.__module__, Taught.__qualname__ = pool.__module__, pool.__qualname__
    return Taught


def _quiet(target: Any) -> Any:
    """A target whose end by a shutdown ends it alone: gevent hands ``SystemExit`` to the main greenlet."""

    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return target(*args, **kwargs)
        except (WorkerShutdown, WorkerTerminate):
            return False, None, None

    return run
