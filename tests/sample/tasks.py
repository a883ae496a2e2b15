"""A menu of behaviour and misbehaviour, and a witness that writes down who started and ended."""

from __future__ import annotations

import ctypes
import faulthandler
import hashlib
import os
import resource
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any

from celery import Task as CeleryTask
from celery import chain, current_app, group, shared_task
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded
from celery.signals import before_task_publish
from django.contrib.auth.models import Group
from django.db import connection

from jobs.errors import PermanentError, RateLimited, Snooze, TransientError
from jobs.payload import Payload
from jobs.retry import RetryPolicy
from jobs.task import (
    FOREVER,
    NO_KEY,
    Breaker,
    ChunkTask,
    Concurrency,
    Debounce,
    Done,
    Failed,
    IdempotentTask,
    Rate,
    Sliding,
    Task,
    Throttle,
    TransactionalTask,
    chunk_task,
    task,
)  # fmt: skip

QUICK = RetryPolicy(max_attempts=3, base=0.05, cap=0.2)


def witness(line: str) -> None:
    """Append a line to the file that the tests read; one write, so that lines of many processes do not mix."""
    path = os.environ.get("WITNESS")
    if path:
        with Path(path).open("a") as file:
            file.write(line + "\n")


@task
def add(a: int, b: int) -> int:
    return a + b


@task
def note(line: str) -> str:
    witness(line)
    return line


@task
def is_sender() -> bool:
    """Whether what a body enqueues is sent before its call returns."""
    from jobs import sender

    return not sender._by_thread()


@task
def total(numbers: list[int]) -> int:
    witness(f"total {sum(numbers)}")
    return sum(numbers)


@task(retry_policy=QUICK, bind=True)
def misbehave(self: Any, how: str, until: int = 99, name: str = "") -> str:
    """Misbehave in attempts before ``until``, then return."""
    from jobs import heartbeat

    attempt = heartbeat.watched(__import__("uuid").UUID(self.request.id)).job.attempt  # type: ignore[union-attr]
    witness(f"start:{name or how}:{attempt}")
    if attempt < until:
        _MENU[how]()
    witness(f"end:{name or how}:{attempt}")
    return f"{how} {attempt}"


def _raise(error: BaseException) -> Any:
    raise error


def _recurse() -> Any:
    return _recurse()


def _exhaust_the_memory() -> None:
    """Ask for more memory than this process may have."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (2**32, before[1]))
    try:
        bytearray(2**34)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


_MENU: dict[str, Any] = {
    "abort": os.abort,
    "exit at once": lambda: os._exit(3),
    "exit at once as if all were well": lambda: os._exit(0),
    "no memory": _exhaust_the_memory,
    "transient": lambda: _raise(TransientError("try again")),
    "permanent": lambda: _raise(PermanentError("no use")),
    "unclassified": lambda: _raise(ValueError("odd")),
    "ambiguous": lambda: _raise(TimeoutError("did it?")),
    "rate": lambda: _raise(RateLimited(retry_after=0.1)),
    "snooze": lambda: _raise(Snooze(0.1)),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "exit": lambda: _raise(SystemExit(3)),
    "memory": lambda: _raise(MemoryError("full")),
    "recursion": lambda: _recurse(),
    "stack": lambda: getattr(faulthandler, "_stack_overflow")(),  # noqa: B009
    "hang": lambda: time.sleep(600),
    "fine": lambda: None,
}


@task
def nap(seconds: float, name: str = "nap") -> None:
    witness(f"start:{name}")
    time.sleep(seconds)
    witness(f"end:{name}")


class Charge(IdempotentTask):
    """An idempotent task with a typed body."""

    key = "charge:{order}"
    queue = "payments"
    retry_policy = QUICK

    def run(self, order: int, amount: float = 1.0) -> str:
        witness(f"charge:{order}:{self.idempotency_token}")
        return f"{order}:{amount}"


@task(limits=[Concurrency("user:{user}", 2)])
def for_user(name: str, user: str, seconds: float = 0.0) -> None:
    """At most two of one user at a time."""
    witness(f"start:{name}")
    time.sleep(seconds)
    witness(f"end:{name}")


@task(
    bind=True, key="moving:{user}", limits=[Concurrency("moving:{user}", 1)], breakers=[Breaker("mover:{user}")],
    idempotent=True,
)  # fmt: skip
def move_on(self: Any, user: str, to: str) -> str:
    """Asks to be tried again with another user, and then fails for that one."""
    if user != to:
        self.retry(args=() if to == "nobody at all" else (to, to), exc=TransientError("not here"), countdown=0)
    raise PermanentError(f"not {user} either")


@task(bind=True, idempotent=True, limits=[Concurrency("{queue} at a time", 1)])
def go_elsewhere(self: Any, where: dict[str, Any]) -> None:
    """Asks to be tried again in another queue, or at another priority."""
    if self.request.retries == 0:
        self.retry(countdown=0, **where)


@task(bind=True, idempotent=True, retry_priority="lower")
def plain_elsewhere(self: Any, where: dict[str, Any]) -> None:
    """The same, with nothing that constrains it but where it goes."""
    if self.request.retries == 0:
        self.retry(countdown=0, exc=TransientError("not here"), **where)


@task(limits=[Concurrency("tenant {tenant}", 2)])
def of_tenant(name: str) -> None:
    """At most two of one tenant, under a name that an operator's limit of a whole tenant has too."""


@task(limits=[Rate("account:{source}", "2/h"), Rate("account:{target}", "2/h")])
def transfer(source: str, target: str) -> None:
    """Two limits, of which each call may make one key or two."""


@task(limits=[Concurrency("guarded:{user}", 2)], retry_policy=RetryPolicy(max_attempts=30, base=0.05, cap=0.2))
def guarded(name: str, user: str, seconds: float = 0.05) -> None:
    """At most two of one user at a time; the kernel sees it, and lets go of what a killed process held."""
    import fcntl

    with ExitStack() as held:
        for place in range(2):
            file = held.enter_context(Path(f"{os.environ['WITNESS']}.{user}.{place}").open("w"))
            with suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
        else:
            witness(f"exceeded:{user}:{name}")
        witness(f"start:{name}")
        time.sleep(seconds)
        witness(f"end:{name}")


AT_ONCE = RetryPolicy(max_attempts=4, base=0.0)


@task(breakers=[Breaker("gateway", failures=3, within=60, park=300, growth=2)], retry_policy=AT_ONCE)
def pay(name: str, how: str = "fine") -> None:
    """Through a gateway that is left alone for a while when it fails three times within a minute."""
    witness(f"pay:{name}")
    _MENU[how]()


@task(
    breakers=[Breaker("user:{user}", failures=5, park=300), Breaker("shop", failures=50, within=60)],
    retry_policy=AT_ONCE, retry_priority="lower",
)  # fmt: skip
def serve(name: str, user: str, how: str = "fine") -> None:
    """For a user who is parked for five minutes after five failures in a row."""
    witness(f"serve:{name}")
    _MENU[how]()


@task(
    breakers=[Breaker("flaky:{user}", failures=5, park=2.0)],
    retry_policy=RetryPolicy(max_attempts=30, base=0.05, cap=0.05),
)  # fmt: skip
def flaky(name: str, user: str) -> None:
    """Fails for a user until a file says that it is mended."""
    witness(f"flaky:{user}:{name}")
    if user == "ann" and not Path(f"{os.environ['WITNESS']}.mended").exists():
        raise TransientError("they are away")


@task(
    limits=[Concurrency("at most two of {tenant}", 2)], breakers=[Breaker("{tenant}", failures=5, park=300)],
    retry_policy=RetryPolicy(max_attempts=3, base=0.05), retry_priority="lower",
)  # fmt: skip
def exercise(name: str, seconds: float = 0.0, how: str = "fine") -> None:
    """What a classic exercise asks for, in a few lines."""
    witness(f"start:{name}")
    time.sleep(seconds)
    _MENU[how]()
    witness(f"end:{name}")


class Book(TransactionalTask):
    """Writes a row and then does as told; parked after two failures in a row, probed by two."""

    breakers = (Breaker("{task}", failures=2, park=60, probes=2),)
    retry_policy = AT_ONCE

    def run(self, name: str, how: str = "fine") -> str:
        Group.objects.create(name=name)
        _MENU[how]()
        return name


@task(breakers=[Breaker("nobody", failures=2, park=60, on=(PermanentError,))], retry_policy=AT_ONCE)
def picky(how: str) -> None:
    """Only what it names counts."""
    _MENU[how]()


@task(retry_priority="lower", retry_policy=RetryPolicy(max_attempts=3, base=0.0))
def sinking(name: str, how: str = "transient") -> None:
    """Comes back a priority lower, each time that it fails."""
    witness(f"sinking:{name}")
    _MENU[how]()


@task(limits=[Concurrency("{task}", 1)])
def alone(name: str, seconds: float = 0.0) -> None:
    """Never in parallel."""
    witness(f"start:{name}")
    time.sleep(seconds)
    witness(f"end:{name}")


@task(limits=[Concurrency("{task}", 3)])
def three_at_a_time(name: str) -> None:
    """A limit of its own, by a template that others write too."""
    witness(name)


@task(limits=[Rate("gateway", "10/s", burst=3), Concurrency("{tenant}", 2), Concurrency("{queue}", 4)])
def through_gateway(name: str) -> None:
    """With a limit of each sort."""
    witness(name)


class Once(IdempotentTask):
    """A task whose key holds for ever."""

    key = "once:{name}"
    key_scope = FOREVER

    def run(self, name: str) -> str:
        witness(f"once:{name}")
        return name


class Enrol(TransactionalTask):
    """Writes a row and then does as told."""

    retry_policy = QUICK

    def run(self, name: str, how: str = "fine") -> str:
        Group.objects.create(name=name)
        _MENU[how]()
        return name


class Unkeyed(IdempotentTask):
    """Says explicitly that it has no key."""

    key = NO_KEY

    def run(self, seconds: float) -> None:
        time.sleep(seconds)


class Count(Task):
    """Counts with progress, slowly enough to be watched."""

    def run(self, to: int, pause: float = 0.05) -> int:
        for done in range(to):
            self.progress(done + 1, to, unit="steps", message=f"step {done + 1}")
            time.sleep(pause)
        return to


@shared_task
def plain(a: int, b: int = 2) -> int:
    """A task of somebody who never heard of us."""
    witness(f"plain:{a}:{b}")
    return a * b


@shared_task
def echo(*args: Any, **kwargs: Any) -> list[Any]:
    return [*args, kwargs]


@shared_task(tracked=False)
def untracked(line: str) -> str:
    witness(line)
    return line


@shared_task(tracked=False, ignore_result=True)
def careless(how: str) -> None:
    """Misbehave where Mainstay does not look."""
    witness(f"careless:{how}")
    _MENU[how]()


@shared_task(tracked=False, ignore_result=True)
def untracked_count(line: str) -> None:
    witness(f"{line}: {Group.objects.count()}")


@shared_task(bind=True, max_retries=2, default_retry_delay=0)
def celery_retry(self: Any, name: str) -> None:
    witness(f"try:{name}")
    raise self.retry(exc=RuntimeError("again"), countdown=0.05)


@shared_task(autoretry_for=(RuntimeError,), retry_backoff=False, retry_kwargs={"max_retries": 2, "countdown": 0})
def auto_retry(name: str) -> None:
    witness(f"auto:{name}")
    raise RuntimeError("again")


@task(bind=True)
def replaced(self: Any, a: int) -> Any:
    return self.replace(add.s(a, 10) | add.s(100))


@task
def remember_failure(job_id: str) -> None:
    witness(f"errback:{job_id}")


@task
def spawn(count: int) -> list[str]:
    """Enqueue children."""
    return [str(add.delay(n, n).id) for n in range(count)]


@shared_task
def on_error(request: Any, exc: Any, traceback: Any) -> None:
    """An error callback of the form that Celery documents."""
    witness(f"on_error:{request.id}:{type(exc).__name__}:{exc}:{bool(traceback)}")


@task
def collect(values: list[Any]) -> list[Any]:
    """Return what a chord's header returned, in its order."""
    return values


@task
def boom(message: str = "boom") -> None:
    raise ValueError(message)


@task(retry_policy=QUICK)
def fail_unless(name: str, value: int = 0) -> int:
    """Fail for good until a group called ``name`` exists: what an operator repairs before a replay."""
    if not Group.objects.filter(name=name).exists():
        raise PermanentError(f"{name} is missing")
    return value


@task
def ignored(how: str = "ignore") -> None:
    raise Ignore("not today") if how == "ignore" else Reject("unwanted", requeue=False)


@task
def unencodable() -> Any:
    return object()


@task(soft_time_limit=1, time_limit=30, retry_policy=QUICK)
def soft_limited() -> None:
    witness("start:soft")
    time.sleep(30)


@task(soft_time_limit=1, time_limit=1.5, retry_policy=RetryPolicy(max_attempts=2, base=0.05, cap=0.2))
def hard_limited() -> None:
    """Be deaf to the soft limit."""
    witness("start:hard")
    with suppress(SoftTimeLimitExceeded):
        time.sleep(30)
    time.sleep(30)


@task(bind=True)
def enlighten(self: Any, name: str) -> str:
    """Write down what a body can know of itself, and enqueue a child."""
    child = note.delay(f"child of {name}")
    witness(f"token:{self.idempotency_token}")
    return str(child.id)


class Audited(CeleryTask):
    """A base class of a project that never heard of us."""

    abstract = True

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        witness(f"audited:{retval}")


class Told(Task):
    """Looks at its own job when Celery tells it of its success."""

    def run(self, number: int) -> int:
        return number

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        from jobs.models import Job

        witness(Job.objects.get(pk=task_id).state)


@shared_task(base=Audited)
def with_own_base(a: int) -> int:
    return a + 1


@shared_task(bind=True, max_retries=3)
def count_retries(self: Any) -> int:
    """Ask for a retry twice, and say how many Celery counted."""
    witness(f"retries:{self.request.retries}")
    if self.request.retries < 2:
        raise self.retry(countdown=0)
    return int(self.request.retries)


@task
def patient(path: str, how: str = "fine") -> str:
    """Run until a file exists: a body whose end the test decides."""
    witness(f"start:{path}")
    while not Path(path).exists():
        time.sleep(0.02)
    witness(f"end:{path}")
    _MENU[how]()
    return path


@task(bind=True)
def obedient(self: Any) -> None:
    """Run until told to stop."""
    witness("start:obedient")
    for _ in range(600):
        self.check_cancelled()
        time.sleep(0.05)


@task(retry_policy=QUICK)
def deaf(how: str, seconds: int = 30) -> None:
    """Do not stop when told to: swallow it, compute, or be in C code that lets other threads run, or lets none."""
    witness(f"start:{how}:{os.getpid()}")
    until = time.monotonic() + seconds
    while how == "swallow" and time.monotonic() < until:
        with suppress(BaseException):
            time.sleep(0.05)
    while how == "computing" and time.monotonic() < until:
        sum(range(10_000))
    if how == "in C":
        hashlib.pbkdf2_hmac("sha256", b"", b"", seconds * 2_000_000)
    if how == "holding the interpreter in the end":
        time.sleep(2)
    if how.startswith("holding the interpreter"):
        ctypes.PyDLL(None).sleep(seconds)
    witness(f"end:{how}")


@task(retry_policy=QUICK)
def ticking(name: str, seconds: float = 60.0) -> None:
    """Write down the time, again and again."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        witness(f"tick:{name}:{time.time():.3f}")
        time.sleep(0.1)


@task(base=TransactionalTask)
def enrol_and_tell(name: str, how: str = "fine") -> None:
    """Write a row and enqueue a job, in the one transaction of the body."""
    Group.objects.create(name=name)
    note.delay(f"enrolled {name}")
    _MENU[how]()


def die_before_sending(sender: Any = None, **_: Any) -> None:
    """Die between the commit and the send, once, where the file DIE_BEFORE_SENDING names the task that is sent."""
    flag = Path(os.environ["DIE_BEFORE_SENDING"])
    if flag.exists() and flag.read_text() == sender:
        flag.unlink()
        witness(f"died before sending {sender}")
        os.kill(os.getpid(), signal.SIGKILL)


if "DIE_BEFORE_SENDING" in os.environ:  # or each message would be made the long way, for somebody who listens
    before_task_publish.connect(die_before_sending)


class Hourly(IdempotentTask):
    """A task whose key holds for an hour."""

    key = "hourly:{name}"
    key_scope = timedelta(hours=1)

    def run(self, name: str) -> str:
        witness(f"hourly:{name}")
        return name


class BadKey(IdempotentTask):
    """A task whose key cannot be made from an empty list."""

    key = "first:{names[0]}"

    def run(self, names: list[str]) -> None: ...


class ByHand(CeleryTask):
    """A task of the old kind, registered by hand."""

    name = "sample.by_hand"

    def run(self, a: int) -> int:
        return a * 10


current_app.register_task(ByHand())


@shared_task(bind=True)
def retry_with(self: Any, value: int) -> int:
    """Ask for a retry with another payload."""
    if value == 1:
        raise self.retry(args=(2,), countdown=0)
    return value


def _rename(old: Payload) -> Payload:
    return Payload(old.args, {"name": old.kwargs["who"]})


class Renamed(Task):
    """A task whose parameter was called ``who`` in version 1."""

    version = 2
    upcasters = {1: _rename}

    def run(self, name: str) -> str:
        return name


@task(bind=True)
def replaced_by_group(self: Any) -> Any:
    return self.replace(group(add.s(1, 1), add.s(2, 2)))


class EnrolSlowly(TransactionalTask):
    """Writes a row, waits for a file, and returns."""

    retry_policy = QUICK

    def run(self, name: str, gate: str) -> None:
        Group.objects.create(name=f"{name}:{os.getpid()}")
        witness(f"start:{name}")
        while not Path(gate).exists():
            time.sleep(0.02)
        witness(f"end:{name}")


def chain_of(length: int) -> Any:
    """A chain that counts to its length and one."""
    return chain(add.s(1, 1), *(add.s(1) for _ in range(length - 1)))


# --- Bodies that call, replace or report in unusual ways -----------------------------------------------


@shared_task
def walk(depth: int) -> int:
    """Calls its own task, as recursive code does."""
    return depth if depth == 0 else int(walk(depth - 1)) + 1


class Localized(CeleryTask):  # type: ignore[type-arg]
    """A base class of a project, with a ``__call__`` of its own and an attribute that is called as ours is."""

    abstract = True
    key = "not ours"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        witness("localized")
        return super().__call__(*args, **kwargs)


@shared_task(base=Localized)
def localized(a: int) -> int:
    witness(f"body:{a}")
    return a


@task(bind=True)
def replaced_by_chain_into_group(self: Any) -> Any:
    return self.replace(add.s(1, 1) | group(add.s(1), add.s(2)))


class Page(IdempotentTask):
    """Replaces itself by the next page, under the same key."""

    key = "pages:{book}"

    def run(self, book: int, page: int = 1) -> int:
        witness(f"page:{book}:{page}")
        return self.replace(Page.s(book, page + 1)) if page < 3 else page


class Deliver(TransactionalTask):
    """Writes a row and hands over."""

    def run(self, name: str) -> Any:
        Group.objects.create(name=name)
        return self.replace(add.s(2, 2))


@task
def on_typed_error(request: Any, exc: Any, traceback: str) -> None:
    """An error callback of ours, in Celery's newer form."""
    witness(f"on_typed_error:{request.id}:{type(exc).__name__}")


@shared_task(bind=True)
def snoozes_then_retries(self: Any) -> None:
    """Snoozes three times, then asks for two more attempts."""
    if len(self.app.mainstay_tries) < 3:
        self.app.mainstay_tries.append("snooze")
        raise Snooze(0)
    self.app.mainstay_tries.append("retry")
    raise self.retry(exc=RuntimeError("again"), countdown=0, max_retries=2)


@task
def wide(number: int) -> str:
    return f"{number:0200d}"


class Stepwise(Task):
    """A task whose body the tests write."""

    retry_policy = QUICK

    def run(self, payload: str | None = None) -> Any: ...


def charge(order: str) -> str:
    witness(f"charge:{order}")
    return f"charged {order}"


@task(bind=True, retry_policy=QUICK)
def stepwise(self: Task, order: str) -> str:
    """One step in a function's body."""
    return self.step("charge", charge, order)


def enrol(name: str) -> str:
    """Write a row that can be written once only."""
    return str(Group.objects.create(name=name).pk)


@contextmanager
def dying_at(moment: int) -> Iterator[None]:
    """Kill this process at a moment of its talk with the database: each statement, and before and after each commit."""
    database: Any = connection
    moments, commit = count(), database._commit

    def pass_by() -> None:
        if next(moments) == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    def execute(run: Any, *args: Any) -> Any:
        pass_by()
        return run(*args)

    def commit_between() -> None:
        pass_by()
        commit()
        pass_by()

    with database.execute_wrapper(execute):
        database._commit = commit_between
        try:
            yield
        finally:
            del database._commit


@task(bind=True, base=IdempotentTask, key=NO_KEY, retry_policy=QUICK)
def checkpointed(self: Any, name: str, dies_at: int) -> list[int]:
    """Steps and a cursor; the first attempt dies at a moment."""
    with dying_at(dies_at) if self.request.retries == 0 else nullcontext():
        self.step("tell", witness, f"tell:{name}")
        self.atomic_step("enrol", enrol, name)
        for row in range(self.cursor("rows", 0), 3):
            with self.advance("rows", row + 1):
                enrol(f"{name}, row {row}")
                note.delay(f"{name}, row {row}")
    return [self.cursor("rows", 0)]


@task(bind=True, base=IdempotentTask, key=NO_KEY, retry_policy=QUICK)
def two_at_once(self: Any, gate: str) -> int:
    """Wait for a file of this attempt's own, then write and move the cursor."""
    number = self.request.retries + 1
    witness(f"start:{number}")
    while not Path(f"{gate}-{number}").exists():
        time.sleep(0.02)
    try:
        with self.advance("rows", number):
            enrol(f"of attempt {number}")
    except BaseException as error:
        witness(f"{number}:{type(error).__name__}")
        raise
    return number


@task(debounce=Debounce("customer:{customer}", quiet=30, longest=300))
def calmly(customer: int, what: str = "") -> str:
    """One run for a burst of calls."""
    witness(f"calmly {customer} {what}")
    return f"{customer} {what}"


@task(debounce=Debounce("customer:{customer}", quiet=0.5, longest=2))
def soon_calm(customer: int, what: str = "") -> str:
    """The same, for those who cannot wait."""
    witness(f"calm {customer} {what}")
    return f"{customer} {what}"


@task(throttle=Throttle("customer:{customer}", span=60))
def sparingly(customer: int, what: str = "") -> str:
    """One run in a minute."""
    witness(f"sparingly {customer} {what}")
    return f"{customer} {what}"


@task(throttle=Throttle("customer:{customer}", span=1))
def soon_sparing(customer: int, what: str = "") -> str:
    """One run in a second; says when it began."""
    witness(f"sparing {customer} {time.time():.3f} {what}")
    return f"{customer} {what}"


@task(key="told:{about}", key_scope=Sliding(timedelta(minutes=10)), base=IdempotentTask)
def tell_once(about: str) -> None:
    """Not again before it has been quiet for ten minutes."""


@task(bind=True, limits=[Concurrency("{task}", 1)])
def sleepy(self: Any, name: str, times: int = 1, seconds: float = 30) -> str:
    """Snoozes so often, then ends."""
    snoozed = self.request.retries
    witness(f"{name} {snoozed}")
    if snoozed < times:
        self.snooze(seconds, "not yet")
    return f"{name} after {snoozed}"


@task(bind=True, retry_policy=RetryPolicy(max_attempts=1, max_snoozes=2), key="drowsy")
def drowsy(self: Any) -> None:
    """Snoozes too often for its policy."""
    self.snooze(1)


@task(retry_policy=RetryPolicy(snooze_for=3600))
def old_sleeper() -> None:
    """Snoozes until it is too old for that."""
    raise Snooze(1)


@shared_task(autoretry_for=(Exception,), max_retries=1)
def auto(how: str, attempts: int = 0) -> None:
    """Celery tries it again whatever it raises."""
    _MENU[how]()


@task(base=TransactionalTask, bind=True)
def writes_and_snoozes(self: Any) -> None:
    """What it wrote is rolled back."""
    Group.objects.create(name="asleep")
    self.snooze(5)


# --- Chunks -----------------------------------------------------------------------------------------


class Mail(ChunkTask):
    """Three go together, or what there is after a minute; a text says what becomes of it."""

    size = 3
    max_wait = 60.0
    key = NO_KEY
    retry_policy = RetryPolicy(max_attempts=5, base=0.05, cap=0.2)

    def run(self, payloads: list[str]) -> list[Any]:
        witness(f"chunk:{','.join(payloads)}")
        for how in payloads:
            if how.startswith("all "):
                _of_chunk(how.removeprefix("all "))
        return [_outcome(how) for how in payloads]


def _of_chunk(how: str) -> None:
    match how:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "nap":
            time.sleep(0.5)
        case "hang":
            time.sleep(60)
        case _:
            _MENU[how]()


def _outcome(how: str) -> Any:
    match how:
        case "transient":
            return Failed(TransientError("try again"))
        case "permanent":
            return PermanentError("never")
        case "snooze":
            return Failed(Snooze(30))
        case "not json":
            return Done(object())
    return how.upper()


@chunk_task(size=100, max_wait=0.3, retry_policy=RetryPolicy(max_attempts=6, base=0.05, cap=0.2))
def send_together(payloads: list[str]) -> None:
    """A hundred at most, soon: for real workers."""
    witness(f"begin:{','.join(payloads)}")
    for how in payloads:
        if how.startswith("all "):
            _of_chunk(how.removeprefix("all "))
    witness(f"done:{','.join(payloads)}")


@chunk_task(size=2, max_wait=60.0, chunk_by="{payload[account]}", limits=[Concurrency("ledger", 1)])
def post(payloads: list[dict[str, Any]]) -> dict[int, Any]:
    """By account, one call at a time."""
    witness(f"post:{'+'.join(str(one['n']) for one in payloads)}")
    return {place: Failed(PermanentError("no")) for place, one in enumerate(payloads) if one["n"] < 0}


@chunk_task(size=2, max_wait=60.0)
def answer_as_told(payloads: list[dict[str, Any]]) -> Any:
    """Return what the first payload says."""
    return payloads[0]["returns"]
