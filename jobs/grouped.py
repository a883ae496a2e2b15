"""Claims and completions of short jobs, many in one statement: written by the worker's main process, in its event loop.

While jobs end within milliseconds, those that wait for a child are claimed ahead of their turn, with the statement that
records the ones before. A job is claimed so only for its first attempt, and only if it was never lost. Where the
database does not answer, each child claims for itself again, and outcomes wait for it in a thread (``completer``).
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache, partial
from time import monotonic, sleep
from typing import Any, Protocol
from uuid import UUID, uuid4

from jobs import completer, declared, drafts, heartbeat, letterbox, lifecycle
from jobs.completer import Handed
from jobs.conf import current as settings
from jobs.handover import Claimed, Inward
from jobs.letterbox import Letterbox
from jobs.messages import HEADER
from jobs.nonblocking import Nonblocking, Rows
from jobs.pace import Pace

logger = logging.getLogger("jobs.worker")

LINGER = 0.004  # seconds that a completion waits for those of the jobs that still run
MOST = 200  # of each in one statement
LARGE = 1_000_000  # characters of results in one statement, and those of one job
LOOK_EVERY = 0.25  # seconds
LATER = 3.0  # seconds until a claim is looked for again of which nobody knew whether it was made


class Waiting(Protocol):
    """A request that waits for its turn."""

    @property
    def id(self) -> str:
        """Its id."""

    @property
    def request_dict(self) -> Mapping[str, Any]:
        """The headers of its message."""


@dataclass(frozen=True, slots=True)
class Workplace:
    """What is known of the worker."""

    hub: Any
    hostname: str
    pace: Pace
    slots: Callable[[], int]
    waiting: Callable[[], Sequence[Waiting]]
    received: Callable[[], int]
    hand_back: Callable[[Sequence[Claimed]], Any]
    decide: Callable[[int], Any] = lambda count: None  # told of how many that wait it is decided who claims them
    child: Callable[[], int | None] = lambda: None  # the process id of the child that is given the next job
    runs: Callable[[str], bool] = lambda task: True  # whether a task is run as soon as a child is free


class Grouped:
    """The claims and completions of one worker."""

    def __init__(self) -> None:
        self.at: Workplace | None = None
        self._line: Nonblocking | None = None
        self._lock = threading.RLock()  # the loop has it, but for a moment in which a thread takes what is left
        self._completed: deque[Handed] = deque()
        self._flying: list[Handed] = []
        self._asking = False
        self._claims: dict[str, Claimed] = {}
        self._given: dict[str, Claimed] = {}  # to children that have not answered
        self._abandoned: set[UUID] = set()  # the tokens of claims whose requests were given back before the answer
        self._answered: set[str] = set()  # the requests whose outcomes are not recorded yet
        self._lingering = False
        self._box: Letterbox | None = None

    def join(self, at: Workplace) -> None:
        """Work in this event loop from now on."""
        self.leave()
        self._box = letterbox.made()
        self.at, self._lingering = at, False  # the timers of the loop that ended are gone
        completer.join(at.hub.call_soon)
        if settings().GROUP_SHORT_JOBS and lifecycle.database().vendor == "postgresql":
            statements = [
                lifecycle.completing_many(), lifecycle.claiming_many(_lease()), lifecycle.claiming(_lease()),
            ]  # fmt: skip
            self._line = Nonblocking(at.hub, statements, self.go_on)
            self._line.look()
            at.hub.call_repeatedly(LOOK_EVERY, self._look)

    def leave(self) -> None:
        """The loop runs no longer: what is on its way is recorded by the thread, and what is claimed is for others."""
        with self._lock:
            line, self._line = self._line, None
        if line is not None:
            line.close()
        self.record_apart()
        with self._lock:
            claims, self._claims = list(self._claims.values()), {}
        if claims and self.at is not None:
            self.at.hand_back(claims)
            self._hand_back_later([claim for claim in claims if claim.row is None])

    def _look(self) -> None:
        if self._line is not None:
            self._line.look()
            self._hand_back_old()

    def arrive(self, content: Any) -> bool:
        """A message was taken while a child is idle: its job is claimed while the message is seen to, if it may be."""
        headers = content.get("headers")
        job_id = _job_in(headers)
        if job_id is None:
            return False
        request_id = headers.get("id")
        if not isinstance(request_id, str) or request_id in self._claims:
            return False
        child = self._next_child(str(headers.get("task")))
        if child is None:
            return False
        assert self._line is not None
        assert self.at is not None
        assert self._box is not None
        claim = Claimed(job_id, uuid4(), heartbeat.clock(), place=self._box.place())
        self._claims[request_id], self._asking = claim, True
        given = [claim.token, self.at.hostname, child, job_id]
        self._line.ask([(lifecycle.claiming(_lease()), given)], partial(self._arrived, request_id, claim))
        return True

    def _next_child(self, task: str) -> int | None:
        """Who runs a job of this task, if it is to be claimed now."""
        if self._line is None or self.at is None or self._box is None or self._asking or self._completed:
            return None
        if not self._line.connected or self.at.received() >= self.at.slots():
            return None
        return self.at.child() if self.at.runs(task) and not _guarded(task) else None

    def _arrived(self, request_id: str, claim: Claimed, answers: list[Rows] | None) -> None:
        """The answer to one claim: kept for the job's turn, or for the child that has the job by now."""
        if claim.place is not None and self._box is not None and self._claims.get(request_id) is not claim:
            self._box.post(claim.place, claim.token, answers[0][0] if answers and answers[0] else None)
        self._told({request_id: claim}, 0, answers)

    # --- What Celery's pool does ---

    def begun(self, request_id: str) -> Inward:
        """A request comes to its turn: what its child is told."""
        claim = self._claims.pop(request_id, None)
        if claim is not None:
            self._given[request_id] = claim
        return Inward(claim, self._takes)

    def lost(self, request_id: str) -> UUID | None:
        """The child of a request is dead: the token of the claim that it was given, if it was given one."""
        claim = self._given.pop(request_id, None)
        return None if claim is None else claim.token

    def dropped(self, request_ids: Iterable[str]) -> None:
        """These requests came to their turn, and yet no child will run them."""
        claims = [claim for one in request_ids if (claim := self._given.pop(one, None)) is not None]
        if self.at is not None:
            self.at.hand_back(claims)

    @property
    def _takes(self) -> bool:
        """Whether outcomes are taken: only while several jobs end within a moment; else each child records its own."""
        if self._line is None or self.at is None or not self._line.connected:
            return False
        return self.at.pace.ahead(self.at.slots()) > self.at.slots()

    def answered(self, request_id: str, callback: Callable[[Any], Any], answer: Any) -> None:
        """A child answered: Celery is told, at once or when the outcome is recorded."""
        self.left(request_id, callback, answer)
        self.go_on()

    def left(self, request_id: str, callback: Callable[[Any], Any], answer: Any) -> None:
        """The same of a thread, which calls this itself; the event loop is to ``go_on`` then."""
        self._given.pop(request_id, None)
        completion = getattr(answer, "completion", None)
        if completion is None:
            callback(answer)
            return
        self._answered.add(request_id)
        handed = Handed(completion, partial(self._recorded, request_id, partial(callback, tuple(answer))))
        with self._lock:
            if self._line is not None:
                self._completed.append(handed)
                return
        completer.record(handed)

    def _recorded(self, request_id: str, then: Callable[[], Any]) -> None:
        self._answered.discard(request_id)
        then()

    def has_answered(self, request_id: str) -> bool:
        """Whether the child of this request has answered, and may be at its next job by now."""
        return request_id in self._answered

    def given_back(self, requests: Iterable[Any]) -> list[Claimed]:
        """The claims of requests that will not be begun here."""
        return self._let_go(request.id for request in requests)

    def _let_go(self, request_ids: Iterable[str]) -> list[Claimed]:
        """Keep these claims no more; one that is still asked for is remembered until the answer."""
        with self._lock:
            popped = [self._claims.pop(one, None) for one in request_ids]
            claims = [claim for claim in popped if claim is not None]
            self._abandoned.update(claim.token for claim in claims if claim.row is None and self._asking)
        return claims

    def record_apart(self) -> None:
        """Let a thread record what was completed so far: the event loop has no time for it."""
        self._leave_to_thread(self._completed)

    def finish(self, seconds: float) -> bool:
        """Wait until what was completed is recorded, in a thread that is not the loop's; whether it is."""
        self.record_apart()
        until = monotonic() + seconds
        while self._flying and monotonic() < until:
            sleep(0.01)
            self.record_apart()
        return completer.finish(max(until - monotonic(), 0.0)) and not self._flying

    # --- A turn ---

    def go_on(self, *, lingered: bool = False) -> None:
        """Record what was left, in the event loop: at once, or when a moment has passed in which more may come."""
        if self._line is None or self.at is None:
            return
        if lingered:
            self._lingering = False
        if not self._completed or self._asking:
            return
        if not self._line.connected:
            self._leave_to_thread(self._completed)
        elif lingered or len(self._completed) >= self._enough():
            self._ask()
        elif not self._lingering:
            self._lingering = True
            self.at.hub.call_later(LINGER, partial(self.go_on, lingered=True))

    def _enough(self) -> int:
        """For how many completions to wait: half of what was received, where the rest keeps the children busy."""
        assert self.at is not None
        received = self.at.received()
        return received // 2 if received > 2 * self.at.slots() else 1

    def claim_next(self) -> bool:
        """Ask for claims of those that wait, unless something is asked already; False where nobody can be asked."""
        if not self._takes:
            return False
        if not self._asking and self.at is not None and self.at.waiting():
            self._ask()
        return self._takes

    def _ask(self) -> None:
        with self._lock:
            if not self._asking:
                self._ask_now()

    def _ask_now(self) -> None:
        assert self._line is not None
        assert self.at is not None
        next_ones = list(self.at.waiting())[: min(self.at.pace.ahead(self.at.slots()), MOST)]
        claims = self._claimable(next_ones)
        flying = self._take_completed()
        self._claims |= claims
        questions: list[Any] = []
        if flying:
            given = lifecycle.completions_given([one.completion for one in flying])
            questions.append((lifecycle.completing_many(), given))
        if claims:
            questions.append((lifecycle.claiming_many(_lease()), self._claims_given(list(claims.values()))))
        if not questions:
            self.at.decide(len(next_ones))
            return
        self._flying, self._asking = flying, True
        self._line.ask(questions, partial(self._told, claims, len(next_ones)))

    def _take_completed(self) -> list[Handed]:
        taken: list[Handed] = []
        size = 0
        while self._completed and len(taken) < MOST and size < LARGE:
            taken.append(self._completed.popleft())
            size += len(taken[-1].completion.result or "")
        return taken

    def _claimable(self, waiting: Iterable[Waiting]) -> dict[str, Claimed]:
        """Those of these requests that may be claimed, each with a token for its claim."""
        found: dict[str, Claimed] = {}
        if settings().MAX_LOSSES < 2:
            return found  # who is lost with the worker before it began would be lost once too often
        for request in waiting:
            job_id = job_of(request)
            if job_id is not None and request.id not in self._claims and not _guarded(request.request_dict.get("task")):
                found[request.id] = Claimed(job_id, uuid4(), heartbeat.clock())
        return found

    def _claims_given(self, claims: Sequence[Claimed]) -> list[Any]:
        assert self.at is not None
        return [self.at.hostname, os.getpid(), [one.job_id for one in claims], [one.token for one in claims]]

    def _told(self, claims: dict[str, Claimed], decided: int, answers: list[Rows] | None) -> None:
        assert self.at is not None
        with self._lock:
            flying, self._flying, self._asking = self._flying, [], False
            abandoned, self._abandoned = self._abandoned, set()
        given_up = [claim for claim in claims.values() if claim.token in abandoned]
        if answers is None:
            self._leave_to_thread(deque(flying))
            self._hand_back_later(given_up)
        else:
            recorded = {row[0] for row in answers[0]} if flying else set()
            self._leave_to_thread(deque(one for one in flying if one.completion.job_id not in recorded))
            self._take_claims(claims, answers[-1] if claims else [])
            self.at.hand_back(given_up)
            for one in flying:
                if one.completion.job_id in recorded:
                    completer.settle(one)
        self.at.decide(decided)
        self.go_on()

    def _take_claims(self, claims: dict[str, Claimed], rows: Rows) -> None:
        """Keep what was claimed for its turn; what was not is for the child to try."""
        by_job = {lifecycle.id_in(row): row for row in rows}
        with self._lock:
            for request_id, claim in claims.items():
                if self._claims.pop(request_id, None) is claim and claim.job_id in by_job:
                    self._claims[request_id] = claim.having(by_job[claim.job_id])

    def _leave_to_thread(self, handed: deque[Handed]) -> None:
        with self._lock:
            while handed:
                completer.record(handed.popleft())

    def _hand_back_old(self) -> None:
        """Whatever keeps a request from its turn, its lease must not end: nobody renews it."""
        old = heartbeat.clock() - settings().LEASE / 3
        with self._lock:
            claims = self._let_go([key for key, claim in self._claims.items() if claim.asked < old])
        if claims and self.at is not None:
            self.at.hand_back(claims)

    def _hand_back_later(self, claims: Sequence[Claimed]) -> None:
        """Hand back what may be claimed only now: the statement was on its way when its connection broke."""
        if claims and self.at is not None:
            timer = threading.Timer(LATER, self.at.hand_back, [claims])
            timer.daemon = True
            timer.start()


def _lease() -> timedelta:
    return timedelta(seconds=settings().LEASE)


@lru_cache(maxsize=4096)
def _guarded(name: Any) -> bool:
    """Whether a task has breakers: each of its jobs is claimed when it begins, or a circuit could open before."""
    return bool(drafts.declaration(str(name), declared.task(str(name))).breakers)


def job_of(request: Waiting) -> UUID | None:
    """The job whose message a request is, where it is one of ours and stands for no others."""
    return _job_in(request.request_dict)


def _job_in(headers: Any) -> UUID | None:
    ours = headers.get(HEADER) if isinstance(headers, dict) else None
    try:
        return UUID(str(ours["job"])) if isinstance(ours, dict) and not ours.get("chunk") else None
    except (KeyError, ValueError):
        return None


_grouped = Grouped()
join, leave, begun, answered = _grouped.join, _grouped.leave, _grouped.begun, _grouped.answered
given_back, finish, claim_next = _grouped.given_back, _grouped.finish, _grouped.claim_next
record_apart, dropped = _grouped.record_apart, _grouped.dropped
lost, has_answered, arrive = _grouped.lost, _grouped.has_answered, _grouped.arrive
left, go_on = _grouped.left, _grouped.go_on


def loop() -> Any:
    """The event loop of the worker, None before there is one."""
    return None if _grouped.at is None else _grouped.at.hub


def end() -> None:
    """The pool has stopped: record what is left."""
    leave()
    completer.finish()
    completer.go_on()
