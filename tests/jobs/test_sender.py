"""A thread sends for its callers: in order, together what came together, and never at the price of a job."""

import threading
import time
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
from celery import signals
from django.core.management import call_command
from django.db import transaction
from django.test import TestCase
from django.utils import timezone

from jobs import outbox, publisher, sender
from jobs.errors import BrokerUnavailable
from jobs.models import Job
from jobs.publisher import Failures, Publisher
from jobs.states import State
from tests.platform import fresh
from tests.sample.tasks import add

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def by_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process that has not sent anything so far."""
    before = publisher.in_use()
    publisher.use(Publisher(before.app, before._send_task))
    for name, value in {"_in_caller": False, "_ended": False, "_lines": {}}.items():
        monkeypatch.setattr(sender, name, value)
    yield
    sender.flush()
    publisher.use(before)


class Broker:
    """Takes messages, and can be made to wait or to fail."""

    def __init__(self) -> None:
        self.open, self.reached = threading.Event(), threading.Event()
        self.batches: list[list[str]] = []
        self.threads: list[str] = []
        self.fails = False
        self.open.set()

    @property
    def ids(self) -> list[str]:
        """What it has, in order."""
        return [one for batch in self.batches for one in batch]

    def take(self, jobs: Sequence[Job]) -> Failures:
        """As ``publish_many``."""
        self.reached.set()
        assert self.open.wait(10)
        if self.fails:
            publisher.in_use()._pause()
            return {job.pk: BrokerUnavailable("no answer") for job in jobs}
        self.batches.append([str(job.pk) for job in jobs])
        self.threads.append(threading.current_thread().name)
        return {}

    def take_one(self, job: Job) -> None:
        """As ``publish``."""
        for error in self.take([job]).values():
            raise error


@pytest.fixture
def broker_here(monkeypatch: pytest.MonkeyPatch, by_thread: None) -> Iterator[Broker]:
    """In the place of the real one."""
    broker = Broker()
    monkeypatch.setattr(publisher.in_use(), "publish_many", broker.take)
    monkeypatch.setattr(publisher.in_use(), "publish", broker.take_one)
    yield broker
    broker.open.set()


@pytest.fixture
def busy(broker_here: Broker) -> Broker:
    """A broker that takes its time with what its thread brings."""
    broker_here.open.clear()
    add.delay(0, 0)
    assert broker_here.reached.wait(10)
    return broker_here


def sent_by(broker: Broker) -> set[str]:
    """The threads that brought messages, once all are there."""
    assert sender.flush(10)
    return set(broker.threads)


HERE = {threading.main_thread().name}
THREAD = {"mainstay-sender"}


# --- A thread sends ---


def test_a_call_returns_when_its_row_is_there_and_the_message_follows(busy: Broker) -> None:
    job = add.delay(1, 2)
    assert (fresh(job).state, fresh(job).sends) == (State.RESERVED, 1)
    assert busy.ids == []
    busy.open.set()
    assert sender.flush(10)
    assert busy.ids[-1] == job.id
    assert set(busy.threads) == THREAD


def test_messages_keep_the_order_of_the_calls(broker_here: Broker) -> None:
    jobs = [add.delay(n, 2).id for n in range(50)]
    assert sender.flush(10)
    assert broker_here.ids == jobs


def test_what_comes_while_the_thread_sends_goes_together(busy: Broker) -> None:
    jobs = [add.delay(n, 2).id for n in range(5)]
    busy.open.set()
    assert sender.flush(10)
    assert busy.batches[1:] == [jobs]


def test_an_old_mark_behind_a_fresh_one_is_renewed(busy: Broker) -> None:
    fresh_one, old = fresh(add.delay(1, 2)), fresh(add.delay(3, 4))
    long_ago = timezone.now() - timedelta(seconds=60)
    Job.objects.filter(pk=old.pk).update(sent_at=long_ago)
    line = sender._own_line()
    waiting = [one._replace(marked=time.monotonic() - 60) if one.job.pk == old.pk else one for one in line._waiting]
    line._waiting.clear()
    line._waiting.extend(waiting)
    busy.open.set()
    assert sender.flush(10)
    assert busy.ids[-2:] == [str(fresh_one.pk), str(old.pk)]
    assert fresh(old).sent_at > long_ago + timedelta(seconds=50)


def test_who_sends_for_others_ends_although_they_go_on(broker_here: Broker) -> None:
    job, served = fresh(add.delay(1, 2)), list[int]()
    assert sender.flush(10)
    line = sender.Line()

    def send(jobs: list[Job], marked: float) -> None:
        served.append(len(jobs))
        if len(served) < 50:
            line.add([job], time.monotonic(), send)

    line.add([job, job], time.monotonic(), send)
    line.send_here()
    assert served == [2]


def test_a_fork_waits_until_the_thread_has_sent(busy: Broker) -> None:
    threading.Timer(0.3, busy.open.set).start()
    sender._before_fork()
    assert busy.ids
    sender._after_fork()
    add.delay(1, 2)
    assert sender.flush(10)
    assert len(busy.ids) == 2


def test_a_fork_does_not_wait_for_ever(busy: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender, "FORK_WAITS", 0.1)
    sender._before_fork()
    sender._after_fork()
    busy.open.set()
    assert sender.flush(10)
    assert len(busy.ids) == 1


def test_of_two_forks_at_once_the_one_that_waited_in_vain_keeps_nobody_waiting(
    broker_here: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "FORK_WAITS", 0.05)
    sender._own_line()
    for act in (sender._before_fork, sender._before_fork, sender._after_fork, sender._after_fork):
        act()
    job = add.delay(1, 2)
    assert sender.flush(5)
    assert broker_here.ids == [job.id]


def test_a_transaction_that_rolls_back_sends_nothing(broker_here: Broker) -> None:
    with suppress(ZeroDivisionError), transaction.atomic():
        add.delay(1, 2)
        raise ZeroDivisionError
    assert sender.flush(10)
    assert broker_here.ids == []


def test_what_could_not_be_sent_is_pending_again(busy: Broker) -> None:
    jobs = [add.delay(n, 2) for n in range(3)]
    busy.fails = True
    busy.open.set()
    assert sender.flush(10)
    assert {(fresh(job).state, fresh(job).sends) for job in jobs} == {(State.PENDING, 0)}


def test_after_a_failure_new_calls_do_not_even_reach_the_thread(
    broker_here: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker_here.fails = True
    add.delay(1, 2)
    assert sender.flush(10)
    monkeypatch.setattr(sender, "hand_over", None)
    assert fresh(add.delay(3, 4)).state == State.PENDING


def test_the_thread_keeps_no_connection_to_the_database(broker_here: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[Any] = []
    take_back = outbox.take_back

    def watched(jobs: Sequence[Job], reason: str) -> None:
        take_back(jobs, reason)
        used.append(outbox.lifecycle.database())

    monkeypatch.setattr(outbox, "take_back", watched)
    broker_here.fails = True
    add.delay(1, 2)
    assert sender.flush(10)
    assert [connection.connection for connection in used] == [None]


def test_an_error_of_one_sending_does_not_end_the_thread(broker_here: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(jobs: Sequence[Job], **_: Any) -> int:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(outbox, "send", fail)
        add.delay(1, 2)
        assert sender.flush(10)
    job = add.delay(3, 4).id
    assert sender.flush(10)
    assert broker_here.ids == [job]


def test_flush_says_when_time_was_too_short(busy: Broker) -> None:
    assert not sender.flush(0.01)
    busy.open.set()
    assert sender.flush(10)


# --- The caller sends ---


def test_the_caller_sends_where_the_settings_say_so(broker_here: Broker, settings: Any) -> None:
    settings.JOBS = {"SEND_IN_THREAD": False}
    job = add.delay(1, 2)
    assert (broker_here.ids, set(broker_here.threads)) == ([job.id], HERE)


def tell_workers() -> None:
    signals.worker_process_init.send(sender=None)


def tell_beat() -> None:
    call_command("conductor", "--once", verbosity=0)


@pytest.mark.parametrize("begin", [tell_workers, tell_beat], ids=["a child of a worker", "the conductor"])
def test_the_caller_sends_in(begin: Callable[[], None], broker_here: Broker) -> None:
    begin()
    job = add.delay(1, 2)
    assert (broker_here.ids, set(broker_here.threads)) == ([job.id], HERE)


@pytest.mark.parametrize("signal", [signals.before_task_publish, signals.after_task_publish, signals.task_sent])
def test_the_caller_sends_where_somebody_watches_its_messages(signal: Any, broker_here: Broker) -> None:
    """Tracing reads the context of the caller."""

    def watch(**_: Any) -> None:
        pass

    signal.connect(watch)
    try:
        add.delay(1, 2)
        assert broker_here.threads == list(HERE)
    finally:
        signal.disconnect(watch)


def test_the_caller_sends_where_its_transaction_goes_on(broker_here: Broker) -> None:
    """Another thread would not see the rows of a ``TestCase``."""
    with transaction.atomic(), TestCase.captureOnCommitCallbacks(execute=True):
        add.delay(1, 2)
    assert broker_here.threads == list(HERE)


def test_the_caller_sends_what_it_enqueues_in_bulk(broker_here: Broker) -> None:
    with transaction.atomic():
        jobs = [add.delay(n, 2).id for n in range(outbox.FEW + 1)]
    assert (broker_here.ids, set(broker_here.threads)) == (jobs, HERE)


def test_the_caller_sends_where_no_thread_can_be_started(broker_here: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    add.delay(1, 2)
    assert broker_here.threads == list(HERE)


@pytest.mark.parametrize(
    ("options", "threads"), [({}, HERE), ({"master": True}, HERE), ({"enable-threads": True}, THREAD),
                             ({"threads": b"4"}, THREAD)],
)  # fmt: skip
def test_under_uwsgi_the_caller_sends_unless_threads_run(
    options: dict[str, Any], threads: set[str], broker_here: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sender.sys.modules, "uwsgi", types.SimpleNamespace(opt=options))
    add.delay(1, 2)
    assert sent_by(broker_here) == threads


def test_the_caller_sends_what_the_thread_has_not_taken(broker_here: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a host that has stopped its threads."""
    monkeypatch.setattr(sender.Line, "wake", lambda self: None)
    first = add.delay(1, 2).id
    assert broker_here.ids == []
    monkeypatch.setattr(sender, "LATE", 0.0)
    second = add.delay(3, 4).id
    assert (broker_here.ids, set(broker_here.threads)) == ([first, second], HERE)


def test_a_caller_that_sends_itself_does_not_overtake_what_waits(broker_here: Broker, settings: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sender.Line, "wake", lambda self: None)
        first = add.delay(1, 2).id
    settings.JOBS = {"SEND_IN_THREAD": False}
    second = add.delay(3, 4).id
    assert broker_here.ids == [first, second]


@pytest.mark.parametrize("bounds", [{"FULL": 2}, {"MANY": 1, "LARGE": 60}], ids=["jobs", "characters"])
def test_when_as_much_waits_as_may_the_caller_waits_for_the_broker(
    bounds: dict[str, int], busy: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in bounds.items():
        monkeypatch.setattr(sender, name, value)
    add.delay(1, 2)
    add.delay(3, 4)
    threading.Timer(0.2, busy.open.set).start()
    last = add.delay(5, 6).id
    assert busy.open.is_set()
    assert sender.flush(10)
    assert busy.ids[-1] == last


def test_a_caller_does_not_wait_for_ever_for_its_turn(busy: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender, "FULL", 1)
    monkeypatch.setattr(sender, "OUR_TURN", 0.01)
    jobs = [add.delay(n, 2).id for n in range(3)]
    assert busy.ids == []
    busy.open.set()
    assert sender.flush(10)
    assert busy.ids[1:] == jobs
