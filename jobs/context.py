"""What flows from request to job to child job without being passed: the correlation id. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_correlation: ContextVar[str] = ContextVar("mainstay_correlation", default="")


def correlation_id() -> str:
    """The correlation id in force, or an empty text."""
    return _correlation.get()


@contextmanager
def correlated(correlation: str) -> Iterator[None]:
    """Give everything that is enqueued inside this correlation id."""
    token = _correlation.set(correlation)
    try:
        yield
    finally:
        _correlation.reset(token)
