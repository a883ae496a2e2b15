"""The solo pool while jobs are short: calls wait in line for a moment, to be claimed and completed in groups.

The worker's one thread runs the bodies and the event loop in turn. While a body takes long, a thread records what was
completed before it, and then lets other workers have the jobs that wait behind it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from time import monotonic, sleep
from typing import Any

from jobs import grouped, handover
from jobs.handover import Inward
from jobs.pace import Pace

SLICE = 0.02  # seconds of bodies, after which the event loop has its turn
GIVE_WAY = 0.001  # seconds that it has
LONG = 0.05  # seconds of one body after which nobody waits for it who could be told something
STUCK = 1.0  # seconds of one body after which what waits behind it is for others

Apply = Callable[[Inward], Any]


@dataclass(frozen=True, slots=True)
class Call:
    """A request that came to the pool."""

    id: str
    request_dict: Mapping[str, Any]
    run: Apply


class Line:
    """The calls of one worker that wait for their turn."""

    def __init__(self) -> None:
        self._calls: deque[Call] = deque()
        self._decided = 0  # how many, from the first on, were claimed or are to claim for themselves
        self._hub: Any = None
        self._pace: Pace | None = None
        self._let_others: Callable[[Sequence[Call]], Any] = lambda calls: None
        self._scheduled = False
        self._began: float | None = None
        self._busy = threading.Event()
        self._thread: threading.Thread | None = None

    def join(self, hub: Any, pace: Pace, let_others: Callable[[Sequence[Call]], Any]) -> None:
        """Run in this event loop from now on; tell what waits behind a long body to ``let_others``."""
        self._hub, self._pace, self._let_others = hub, pace, let_others
        self._scheduled = False
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, name="mainstay-solo", daemon=True)
            self._thread.start()

    def come(self, call: Call) -> None:
        """Run a call now, or soon while jobs are short."""
        if self._calls or (self._pace is not None and self._pace.ahead(1)):
            self._calls.append(call)
            self._soon()
        else:
            self._run(call)

    def waiting(self) -> list[Call]:
        """The calls for which nothing is decided, in order."""
        return list(self._calls)[self._decided :]

    def decide(self, count: int) -> None:
        """So many more may run: they were claimed, or have to try it themselves."""
        self._decided = min(self._decided + count, len(self._calls))
        self._soon()

    def ids(self) -> list[str]:
        """The requests that wait, in order."""
        return [call.id for call in self._calls]

    def remove(self, request_id: str) -> None:
        """This one was given back."""
        place = self.ids().index(request_id)
        del self._calls[place]
        self._decided -= place < self._decided

    def clear(self) -> None:
        """What waits was given back."""
        self._calls.clear()
        self._decided = 0

    # --- In the event loop ---

    def _soon(self, seconds: float = 0.0) -> None:
        if not self._scheduled and self._hub is not None:
            self._scheduled = True
            self._hub.call_later(seconds, self._go)

    def _go(self) -> None:
        """Run those that may, and have the next ones claimed meanwhile."""
        self._scheduled = False
        if not grouped.claim_next():
            self._decided = len(self._calls)
        until = monotonic() + SLICE
        try:
            while self._decided and monotonic() < until:
                self._decided -= 1
                self._run(self._calls.popleft())
        finally:
            if self._decided:
                self._soon(GIVE_WAY)

    def _run(self, call: Call) -> None:
        self._began = monotonic()
        self._busy.set()
        try:
            call.run(grouped.begun(call.id))
        finally:
            self._began = None
            if not self._calls:
                self._busy.clear()

    # --- In a thread of its own ---

    def _watch(self) -> None:
        """Look after what waits while a body takes long."""
        behind = 0.0
        while self._busy.wait():
            sleep(LONG)
            began = self._began
            if began is None or monotonic() - began < LONG:
                continue
            grouped.record_apart()
            if monotonic() - began > STUCK and behind != began and self._calls:
                behind = began
                self._let_others(list(self._calls))


LINE = Line()


def taught(pool: Any) -> Any:
    """Celery's pool, whose calls wait in line while they are short."""

    class Taught(pool):  # type: ignore[misc]
        """Runs each call in its turn."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.on_apply: Any = partial(_apply, self.on_apply)

        def flush(self) -> None:
            """The connection was lost, and with it the messages."""
            LINE.clear()
            grouped.leave()

        def on_stop(self) -> None:
            super().on_stop()
            grouped.end()

    Taught.__module__, Taught.__qualname__ = pool.__module__, pool.__qualname__
    return Taught


def _apply(apply: Any, target: Any, args: Any, kwargs: Any = None, callback: Any = None, **options: Any) -> None:
    if callback is None or len(args) < 3:
        apply(target, args, kwargs, callback=callback, **options)
        return
    answered = partial(grouped.answered, str(args[1]), callback)

    def run(told: Inward) -> None:
        apply(handover.traced, (told, target, *args), kwargs, callback=answered, **options)

    LINE.come(Call(str(args[1]), args[2] or {}, run))
