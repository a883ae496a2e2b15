"""What becomes of messages that nobody here can run: written down once, shown with secrets hidden, ended in time."""

import threading
from contextlib import nullcontext
from datetime import timedelta
from itertools import repeat
from typing import Any
from unittest.mock import Mock
from uuid import uuid4

import pytest
from celery.exceptions import InvalidTaskError
from django.db import OperationalError
from django.test import Client
from django.urls import reverse
from kombu.exceptions import ContentDisallowed

from dlq import replay
from dlq.models import DeadLetter
from jobs import control, lifecycle, shown, strays, transport
from jobs.consumer import Keeper, check_call, stray_from
from jobs.errors import PayloadError, Refused
from jobs.models import Job
from jobs.payload import Payload
from jobs.publisher import HEADER
from jobs.states import State
from jobs.strays import Call, Stray
from tests.platform import drain, fresh, hurry
from tests.sample.tasks import add, note

pytestmark = pytest.mark.django_db

JUNK = Stray(wrong="It is not a message.", queue="default", body=b'{"password": "hunter2", "user": "ann"')


def test_junk_is_buried_once_under_an_id_made_of_its_content(sent: list[str]) -> None:
    for _ in range(2):
        strays.keep(JUNK)
    letter = DeadLetter.objects.get()
    assert (letter.job_id, letter.payload, letter.error_message) == (
        strays.bury(JUNK), '{"password": "hunter2", "user": "ann"', "It is not a message.",
    )  # fmt: skip


def test_other_junk_is_another_letter(sent: list[str]) -> None:
    for body in (b"a", b"b"):
        strays.keep(Stray(wrong="no", queue="default", body=body))
    assert DeadLetter.objects.count() == 2


def test_junk_with_an_id_is_found_by_it(sent: list[str]) -> None:
    wanted = uuid4()
    strays.keep(Stray(wrong="no", id=wanted, body=b"x"))
    assert DeadLetter.objects.get().job_id == wanted


def test_junk_with_the_id_of_a_job_is_kept_beside_it(sent: list[str]) -> None:
    job = add.delay(1, 2)
    for _ in range(2):
        strays.keep(Stray(wrong="no", id=fresh(job).pk, body=b"x"))
    assert Job.objects.count() == 2
    assert DeadLetter.objects.get().payload == "x"


@pytest.mark.parametrize(
    "body", [b"\x00\xff\xfe", "\x00\ud800", b"[NaN]", "é" * 10, b"", b"x" * 300_000, "\U0001f600" * 70_000]
)
def test_any_text_can_be_kept_and_is_bounded(sent: list[str], body: Any) -> None:
    headers: Any = {
        "a\x00": "\ud800",
        "n": float("nan"),
        "deep": [[["\x00"]]],
        "bytes": b"\xff",
        7: object(),
        "args": "x" * 9000,
    }
    strays.keep(Stray(wrong="no \x00 \ud800", task="t" * 400, queue="default", body=body, headers=headers))
    letter = DeadLetter.objects.get()
    assert len(letter.payload) <= 64 * 1024
    assert "\x00" not in letter.payload + letter.error_message
    assert len(str(letter.headers)) < 10_000


def test_what_cannot_be_stored_is_stored_bare(sent: list[str]) -> None:
    strays.keep(Stray(wrong="no", body=b"\xff", queue="default").bare())
    assert DeadLetter.objects.get().payload == r"b'\xff'"


def test_headers_that_repeat_the_payload_are_left_out(sent: list[str]) -> None:
    strays.keep(Stray(wrong="no", body=b"x", headers={"argsrepr": "('hunter2',)", "task": "t", "token": "abc"}))
    kept = DeadLetter.objects.get().headers["metadata"]["message"]["headers"]
    assert kept == {"task": "t", "token": "abc"}


def test_secrets_in_broken_text_are_hidden(sent: list[str]) -> None:
    strays.keep(JUNK)
    text = shown.payload(strays.NAMELESS, DeadLetter.objects.get().payload).text
    assert "hunter2" not in text
    assert "ann" in text


def test_the_pages_of_an_unreadable_message_show_it_with_its_secrets_hidden(
    sent: list[str], admin_client: Client, settings: Any
) -> None:
    settings.SECURE_SSL_REDIRECT = False
    strays.keep(JUNK)
    letter = DeadLetter.objects.get()
    for page in (("dlq_deadletter", letter.pk), ("jobs_job", letter.job_id)):
        html = admin_client.get(reverse(f"admin:{page[0]}_change", args=[page[1]])).content.decode()
        assert "ann" in html
        assert "hunter2" not in html


# --- Replay -------------------------------------------------------------------------------------------------


def test_a_message_that_names_no_task_is_not_replayed(sent: list[str]) -> None:
    strays.keep(JUNK)
    letter = DeadLetter.objects.get()
    for payload in (None, Payload((1, 2))):
        with pytest.raises(Refused, match="names no task of this project"):
            replay.replay(letter.pk, by="ann", payload=payload)


def test_an_unreadable_message_of_a_known_task_is_replayed_with_a_payload_that_fits(sent: list[str]) -> None:
    strays.keep(Stray(wrong="no", task=add.name, queue="default", body=b"[1, 2"))
    letter = DeadLetter.objects.get()
    with pytest.raises(PayloadError, match="not JSON"):
        replay.replay(letter.pk, by="ann")
    with pytest.raises(PayloadError, match="cannot be called"):
        replay.replay(letter.pk, by="ann", payload=Payload((1, 2, 3)))
    job = replay.replay(letter.pk, by="ann", payload=Payload((1, 2)))
    drain()
    assert fresh(job).result == "3"


# --- Messages of ours -----------------------------------------------------------------------------------------


def ours(job: Any, *, unknown: bool = True) -> Stray:
    """The message of a job that could not be run."""
    return Stray(wrong="no", task="t", body=b"x", job=fresh(job).pk, unknown=unknown)


def test_a_job_of_an_unknown_task_waits_longer_each_time_and_keeps_its_count(sent: list[str]) -> None:
    job, waits = add.delay(1, 2), []
    for _ in range(5):
        strays.keep(ours(job))
        waiting = fresh(job)
        assert (waiting.state, waiting.reason) == (State.PENDING, strays.UNKNOWN)
        waits.append((waiting.due_at - lifecycle.database_now()).total_seconds())
        hurry()
        lifecycle.reserve_due(10)
    assert all(longest / 2 - 0.5 < wait <= longest for wait, longest in zip(waits, (1, 2, 4, 8, 16), strict=True))


def test_a_worker_that_comes_up_makes_due_what_it_knows(sent: list[str]) -> None:
    known, unknown = add.delay(1, 2), note.delay("x")
    for round_ in range(10):
        if round_:
            hurry()
            lifecycle.reserve_due(10)
        for job in (known, unknown):
            strays.keep(ours(job))
    assert strays.wake([add.name]) == 1
    assert fresh(known).due_at <= lifecycle.database_now() < fresh(unknown).due_at


def test_a_job_of_an_unknown_task_ends_as_a_letter(sent: list[str], settings: Any) -> None:
    settings.JOBS = {"MAX_SENDS": 3}
    job = add.delay(1, 2)
    for _ in range(3):
        strays.keep(ours(job))
        hurry()
        lifecycle.reserve_due(10)
    assert (fresh(job).state, fresh(job).error_type) == (State.FAILED, "jobs.errors.UnknownTask")
    assert DeadLetter.objects.get().reason == "sent 3 times; no worker here knows its task yet"


def test_a_broker_that_is_away_in_between_does_not_begin_the_count_anew(sent: list[str]) -> None:
    from jobs import outbox

    job = add.delay(1, 2)
    strays.keep(ours(job))
    hurry()
    outbox.take_back(lifecycle.reserve_due(10), "the broker could not be reached")
    assert fresh(job).sends == 1


@pytest.mark.parametrize("unknown", [True, False])
def test_a_message_that_was_overtaken_changes_nothing(sent: list[str], unknown: bool) -> None:
    job = add.delay(1, 2)
    control.cancel(fresh(job).pk, reason="not wanted", by="ann")
    strays.keep(ours(job, unknown=unknown))
    assert fresh(job).state == State.CANCELLED


@pytest.mark.parametrize("forgotten", [False, True])
def test_a_message_of_ours_without_a_row_is_kept_where_the_database_was_set_back(
    sent: list[str], monkeypatch: pytest.MonkeyPatch, forgotten: bool
) -> None:
    monkeypatch.setattr("jobs.epoch.is_forgotten", lambda _: forgotten)
    gone = uuid4()
    strays.keep(Stray(wrong="no", task="t", body=b"x", job=gone, unknown=True))
    assert [str(job.pk) for job in Job.objects.all()] == ([str(gone)] if forgotten else [])


# --- Foreign calls of unknown tasks ---------------------------------------------------------------------------------


def test_a_foreign_call_of_an_unknown_task_becomes_a_job_that_waits_once(sent: list[str]) -> None:
    wanted = uuid4()
    call = Call([1], {"a": 2}, {"task_id": str(wanted), "queue": "payments"})
    for _ in range(2):
        strays.keep(Stray(wrong="", task="no.such.task", id=wanted, queue="payments", call=call, unknown=True))
    job = Job.objects.get()
    assert (job.pk, job.state, job.reason, job.queue) == (wanted, State.PENDING, strays.UNKNOWN, "payments")
    assert (job.payload, job.sends) == ('{"args":[1],"kwargs":{"a":2}}', 1)
    assert job.due_at > lifecycle.database_now()


def test_a_foreign_call_that_cannot_be_recorded_becomes_a_letter(sent: list[str]) -> None:
    call = Call([float("nan")], {}, {"link": [5]})
    strays.keep(Stray(wrong="", task="no.such.task", id=uuid4(), call=call, unknown=True))
    assert DeadLetter.objects.get().task == "no.such.task"


def test_a_foreign_delay_is_kept(sent: list[str]) -> None:
    due = (lifecycle.database_now() + timedelta(hours=1)).isoformat()
    strays.keep(Stray(wrong="", task="no.such.task", id=uuid4(), call=Call([], {}, {"eta": due}), unknown=True))
    found = Job.objects.get().due_at
    assert found is not None
    assert found.isoformat() == due


# --- Reading ----------------------------------------------------------------------------------------------------------


def received(body: Any = None, **fields: Any) -> Any:
    """A message as kombu hands it over."""
    defaults = {
        "headers": {"task": note.name, "id": "order-7"}, "properties": {}, "delivery_info": {"routing_key": "default"},
        "content_type": "application/json", "content_encoding": "utf-8", "body": b"raw",
        "payload": [[1], {}, None] if body is None else body,
    }  # fmt: skip
    return Mock(**(defaults | fields))


def read(message: Any, error: BaseException | None = None, *, unknown: bool = False) -> Stray:
    return stray_from(message, error, unknown=unknown, queues={"default": 1})


@pytest.mark.parametrize(
    ("message", "error", "words"),
    [
        (received(headers=None, body={"hello": 1}), None, "names no task"),
        (received(headers={"task": note.name}), KeyError("id"), "has no id"),
        (received(body=[1]), ValueError("odd"), "not a list of args"),
        (received(content_type="text/x-poem"), ContentDisallowed("no"), "'text/x-poem' is not accepted"),
        (received(content_type=transport.RAW), None, "not a message of Celery's"),
        (received(), InvalidTaskError("its eta is no time"), "its eta is no time"),
    ],
)
def test_a_message_says_what_is_wrong_with_it(message: Any, error: Any, words: str) -> None:
    assert words in read(message, error).wrong


def test_a_message_of_ours_is_known_by_its_header() -> None:
    job = uuid4()
    ours = read(received(headers={"task": "t", "id": str(job), HEADER: {"job": str(job)}}), unknown=True)
    assert (ours.job, ours.unknown, ours.call) == (job, True, None)


@pytest.mark.parametrize("header", [5, {}, {"job": "no uuid"}, {"tracked": False}, [1]])
def test_an_odd_header_is_not_ours(header: Any) -> None:
    assert read(received(headers={"task": "t", "id": "x", HEADER: header})).job is None


def test_a_foreign_call_is_read_from_both_protocols() -> None:
    new = read(received(headers={"task": "no.such", "id": "order-7"}), unknown=True)
    old = read(received(headers={}, body={"task": "no.such", "id": "order-7", "args": [1], "kwargs": {}}), unknown=True)
    assert new.call is not None
    assert new.call == old.call


@pytest.mark.parametrize(("args", "kwargs", "embed"), [(5, {}, None), ([], [1], None), ([], {1: 2}, None), ([], {}, 5)])
def test_what_is_no_call_is_refused_before_the_pool_gets_it(args: Any, kwargs: Any, embed: Any) -> None:
    with pytest.raises(InvalidTaskError):
        check_call(args, kwargs, embed)


def test_the_same_content_of_a_list_has_the_same_tag() -> None:
    one, same, other = (transport.envelope(content, "q") for content in (b"x", b"x", b"y"))
    tags = [message["properties"]["delivery_tag"] for message in (one, same, other)]
    assert tags[0] == tags[1] != tags[2]


# --- Keeping before acknowledging -------------------------------------------------------------------------------------


@pytest.fixture
def keeper(monkeypatch: pytest.MonkeyPatch) -> Keeper:
    """A keeper whose database acts happen where the test says."""
    monkeypatch.setattr("jobs.gate.talking", nullcontext)
    monkeypatch.setattr("jobs.outage.pauses", lambda: repeat(0.01))
    return Keeper()


def kept_after(keeper: Keeper, monkeypatch: pytest.MonkeyPatch, *answers: Any) -> list[Any]:
    """What was done, in order, with one stray, where keeping it has these answers."""
    acts: list[Any] = []
    left, done = list(answers), threading.Event()

    def keep(stray: Stray) -> None:
        answer = left.pop(0)
        acts.append("bare" if stray.body != JUNK.body else "keep")
        if answer is not None:
            raise answer

    def call_soon(*_: Any) -> None:
        acts.append("acknowledge")
        done.set()

    monkeypatch.setattr(strays, "keep", keep)
    keeper.take(Mock(call_soon=call_soon), Mock(), JUNK)
    assert done.wait(5)
    return acts


def test_a_stray_is_acknowledged_once_the_database_has_it(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    away = OperationalError("gone")
    assert kept_after(keeper, monkeypatch, away, away, None) == ["keep", "keep", "keep", "acknowledge"]


def test_a_stray_that_cannot_be_stored_is_stored_bare(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    assert kept_after(keeper, monkeypatch, ValueError("odd"), None) == ["keep", "bare", "acknowledge"]
