"""Messages that no worker here can run: an unknown task waits for one that can, everything else is kept and shown.

Nothing here knows Celery: a stray is what could be read of a message. When ``keep`` returns, the message may go.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import NAMESPACE_OID, UUID, uuid5

from jobs import drafts, epoch, intake, lifecycle, publisher, successors
from jobs.adoption import FORGOTTEN
from jobs.conf import current as settings
from jobs.errors import JobsError, MoveRefused, UnknownTask, UnreadableMessage
from jobs.lifecycle import NOW, Clock
from jobs.models import Job
from jobs.retry import RetryPolicy
from jobs.states import State

logger = logging.getLogger("jobs.strays")

NAMELESS = "(no task)"
HEADER_LIMIT = 2_000  # characters of one header
HEADERS_KEPT = 60
WOKEN = 1_000  # jobs that a new worker makes due at most; the others are soon due by themselves
UNKNOWN = "no worker here knows its task yet"
UNREADABLE = "its message could not be read"

# They repeat the payload, in a form in which its secrets cannot be told.
_REPEATING = {"argsrepr", "kwargsrepr"}

_pace = RetryPolicy()


@dataclass(frozen=True, slots=True)
class Call:
    """What a foreign message asks for, where that can be read: a task that nobody here knows, perhaps yet."""

    args: list[Any]
    kwargs: dict[str, Any]
    options: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Stray:
    """A message as it came: what is wrong with it, and what could be read of it."""

    wrong: str
    task: str = ""
    id: UUID | None = None
    queue: str = ""
    body: bytes | str = ""
    headers: Mapping[str, Any] = field(default_factory=dict)
    properties: Mapping[str, Any] = field(default_factory=dict)
    job: UUID | None = None
    call: Call | None = None
    unknown: bool = False

    def bare(self) -> Stray:
        """The same without all that came with it, for when that cannot be stored."""
        return Stray(wrong=self.wrong, queue="", body=ascii(self.body), id=None)


def keep(stray: Stray) -> None:
    """Record what becomes of a message; when this returns, the message may be forgotten.

    A message of ours is only a wake-up call: its job is sent again, later each time, for a bounded number of times.
    A foreign call of an unknown task becomes a job that waits. What cannot be read becomes a dead letter, once.
    """
    if stray.job is not None and epoch.is_forgotten(stray.job) and lifecycle.seen(stray.job) is None:
        bury(replace(stray, id=stray.job, wrong=FORGOTTEN))
    elif stray.job is not None:
        _send_again(stray.job, UNKNOWN if stray.unknown else UNREADABLE)
    elif stray.call is not None:
        _adopt(stray, stray.call)
    else:
        bury(stray)


def _send_again(job_id: UUID, why: str) -> None:
    job = lifecycle.seen(job_id)
    if job is None or job.state != State.RESERVED:
        return  # a duplicate, or overtaken by a decision
    try:
        if job.sends >= settings().MAX_SENDS:
            _give_up(job, why)
        else:
            lifecycle.move(job, State.PENDING, why, due_at=Clock(_wait(job.sends)), sends=max(job.sends, 1))
    except MoveRefused:
        return


def _wait(sends: int) -> timedelta:
    # Not to the second: workers ask the broker once a second, and the same one would always be the first.
    return _pace.backoff(max(sends, 1)) * random.uniform(0.5, 1.0)


def wake(tasks: list[str]) -> int:
    """A worker has come up that knows these tasks: what waited for one is due now; return how many jobs did."""
    found = Job.objects.using(lifecycle.alias()).filter(state=State.PENDING, finished_at__isnull=True, reason=UNKNOWN)
    known = [job for job in found[:WOKEN] if job.task in tasks]
    return sum(lifecycle.tried(job, partial(lifecycle.move, job, State.PENDING, UNKNOWN, due_at=NOW)) for job in known)


def _give_up(job: Job, why: str) -> None:
    if why == UNKNOWN:
        error: JobsError = UnknownTask(
            f"No worker of queue {job.queue!r} that received it knows {job.task}. It was sent {job.sends} times. "
            "Deploy a worker that has the task, then replay this letter."
        )
    else:
        error = UnreadableMessage(f"No worker of queue {job.queue!r} could read its message, sent {job.sends} times.")
    successors.finish(
        job, State.FAILED, f"sent {job.sends} times; {why}",
        error_type=f"{type(error).__module__}.{type(error).__qualname__}", error_message=str(error),
    )  # fmt: skip


def _adopt(stray: Stray, call: Call) -> None:
    if stray.id is not None and lifecycle.seen(stray.id) is not None:
        return
    intake.adopt(stray.task, None, call.args, call.kwargs, call.options, wait=_wait(1), why=UNKNOWN)


def bury(stray: Stray) -> UUID:
    """Keep a message as a failed job with its dead letter, the same one once; return the job's id."""
    content = readable(stray.body, int(settings().PAYLOAD_LIMIT))
    of_content = uuid5(NAMESPACE_OID, f"{stray.queue}\n{stray.task}\n{_digest(stray.body)}")
    for job_id in filter(None, (stray.id, of_content)):
        if _buried(job_id, stray, content):
            return job_id
    return of_content


def _buried(job_id: UUID, stray: Stray, content: str) -> bool:
    """Insert it under this id; False where another job has that id already."""
    job = drafts.draft(readable(stray.task, 255) or NAMELESS, None, (), {}, {"task_id": str(job_id)}, None)
    job.payload, job.queue = content, readable(stray.queue, 100) or publisher.in_use().app.conf.task_default_queue
    job.metadata = {"message": {"headers": _shown(stray.headers), "properties": _shown(stray.properties)}}
    if intake.fail(job, UNREADABLE, UnreadableMessage(readable(stray.wrong, 2_000))):
        logger.error("A message of queue %r was kept as dead letter of job %s: %s", job.queue, job_id, stray.wrong)
        return True
    found = lifecycle.seen(job_id)
    return found is not None and found.payload == content


def _digest(body: bytes | str) -> str:
    raw = body if isinstance(body, bytes) else body.encode("utf-8", "surrogatepass")
    return hashlib.sha256(raw).hexdigest()


def readable(content: bytes | str, limit: int) -> str:
    """Text that every database can keep, of at most ``limit`` characters; what is not text is written as escapes.

    >>> readable(b"a\\x00\\xff", 20)
    'a\\\\x00\\\\xff'
    """
    if isinstance(content, bytes):
        content = content[: limit + 1].decode("utf-8", "backslashreplace")
    text = content[: limit + 1].replace("\x00", "\\x00").encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= limit else text[: max(limit - 1, 0)] + "…"


def _shown(values: Mapping[str, Any]) -> dict[str, Any]:
    """Headers as JSON that every database can keep; what is no JSON as it would be printed."""
    kept = [(str(name), value) for name, value in values.items() if name not in _REPEATING][:HEADERS_KEPT]
    return {readable(name, 200): _plain(value) for name, value in kept}


def _plain(value: Any) -> Any:
    if isinstance(value, bytes | str):
        return readable(value, HEADER_LIMIT)
    try:
        text = json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return readable(_printed(value), HEADER_LIMIT)
    # A surrogate or a NUL is an escape in here, which PostgreSQL refuses in JSON all the same.
    unsafe = len(text) > HEADER_LIMIT or re.search(r"\\u(0000|d[89a-f])", text, re.IGNORECASE)
    return readable(text, HEADER_LIMIT) if unsafe else value


def _printed(value: Any) -> str:
    try:
        return repr(value)
    except Exception as error:
        return f"(cannot be shown: {type(error).__name__})"
