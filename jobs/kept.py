"""Connections that outlive the greenlet that opened them: each job has one of its own, and would connect anew."""

from __future__ import annotations

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from jobs import publisher

_idle: dict[str, list[BaseDatabaseWrapper]] = {}


def take() -> None:
    """Let the greenlet that calls this go on with connections that others have left."""
    open_here = {connection.alias for connection in connections.all(initialized_only=True)}
    for alias, idle in _idle.items():
        if idle and alias not in open_here:
            connections[alias] = idle.pop()


def leave() -> None:
    """Leave this greenlet's connections, to databases and to the broker, to the next one."""
    for connection in connections.all(initialized_only=True):
        if connection.connection is not None and not connection.in_atomic_block:
            if not connection.allow_thread_sharing:
                connection.inc_thread_sharing()
            del connections[connection.alias]
            _idle.setdefault(connection.alias, []).append(connection)
    publisher.in_use().rest()
