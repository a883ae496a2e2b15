"""What follows a failure: its kind, read off real exceptions, and the decision, a pure value."""

import builtins
import errno
import smtplib
import socket
import subprocess
import threading
import urllib.error
import urllib.request
from contextlib import closing
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
import requests
from django.core import exceptions as django_errors
from django.db import IntegrityError, OperationalError
from hypothesis import given
from hypothesis import strategies as st

from jobs.errors import (
    AmbiguousError,
    DeclarationError,
    JobCancelled,
    LeaseLost,
    LeaseNotRenewed,
    PayloadError,
    PermanentError,
    RateLimited,
    Snooze,
    TransientError,
    WorkerLost,
)
from jobs.failures import Failure, Kind, retry_after
from jobs.retry import Bounds, History, RetryPolicy
from jobs.states import State

SECOND = timedelta(seconds=1)
POLICY = RetryPolicy()
WAITS = {"Retry-After": "7"}
STATUSES = {
    Kind.PERMANENT: (400, 401, 402, 403, 404, 405, 409, 410, 413, 422, 451, 501, 505),
    Kind.TRANSIENT: (408, 423, 425, 503),
    Kind.AMBIGUOUS: (500, 502, 504, 507),
    Kind.RATE_LIMITED: (429,),
}
KIND_OF = [(status, kind) for kind, statuses in STATUSES.items() for status in statuses]


# --- A server that answers, hangs and resets as its path says ---------------------------------------


class Answers(BaseHTTPRequestHandler):
    """``/503`` answers with that status and Retry-After; ``/hang`` waits; ``/reset`` drops the connection."""

    def do_GET(self):
        word = self.path.strip("/")
        if word == "hang":
            self.server.let_go.wait(10)
        elif word == "reset":
            self.connection.shutdown(socket.SHUT_RDWR)
        elif word == "cut":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"half")
        else:
            self.send_response(int(word))
            self.send_header("Retry-After", "7")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def log_message(self, *args):
        """Say nothing."""


@pytest.fixture(scope="module")
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as running:
        running.let_go = threading.Event()
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.let_go.set()
        running.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def nobody():
    """An address on which nobody listens."""
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


def by_requests(url):
    requests.get(url, timeout=0.2).raise_for_status()


def by_httpx(url):
    httpx.get(url, timeout=0.2).raise_for_status()


def by_urllib(url):
    with urllib.request.urlopen(url, timeout=0.2):
        pass


CLIENTS = [by_requests, by_httpx, by_urllib]


def raised(act, *args):
    """The exception that an act raises."""
    try:
        act(*args)
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def failure(act, *args):
    error = raised(act, *args)
    if isinstance(error, urllib.error.HTTPError):
        error.close()
    return POLICY.classify(error)


@pytest.mark.parametrize("ask", CLIENTS)
@pytest.mark.parametrize(("status", "kind"), KIND_OF)
def test_an_http_status_decides_the_kind_whatever_the_client(server, ask, status, kind):
    assert failure(ask, f"{server}/{status}").kind is kind


@pytest.mark.parametrize("ask", CLIENTS)
@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_the_wait_that_a_server_asks_for_is_heard_whatever_the_client(server, ask, status):
    assert failure(ask, f"{server}/{status}").delay == 7 * SECOND


@pytest.mark.parametrize("ask", CLIENTS)
def test_a_permanent_status_asks_for_no_wait(server, ask):
    assert failure(ask, f"{server}/404").delay is None


@pytest.mark.parametrize("ask", CLIENTS)
def test_the_reason_names_the_status(server, ask):
    assert failure(ask, f"{server}/503").reason == "HTTP 503"


@pytest.mark.parametrize("ask", CLIENTS)
def test_no_answer_in_time_is_ambiguous(server, ask):
    assert failure(ask, f"{server}/hang").kind is Kind.AMBIGUOUS


@pytest.mark.parametrize("ask", CLIENTS)
def test_a_connection_that_is_reset_is_ambiguous(server, ask):
    assert failure(ask, f"{server}/reset").kind is Kind.AMBIGUOUS


@pytest.mark.parametrize("ask", [by_requests, by_httpx])
def test_an_answer_that_is_cut_off_is_ambiguous(server, ask):
    assert failure(ask, f"{server}/cut").kind is Kind.AMBIGUOUS


@pytest.mark.parametrize("ask", CLIENTS)
def test_a_refused_connection_is_transient_whatever_the_client(nobody, ask):
    assert failure(ask, nobody).kind is Kind.TRANSIENT


@pytest.mark.parametrize("ask", CLIENTS)
def test_a_lost_answer_is_ambiguous_though_another_server_was_refused_before(nobody, server, ask):
    def fall_back():
        try:
            ask(nobody)
        except OSError:
            ask(f"{server}/reset")
        except httpx.ConnectError:
            ask(f"{server}/reset")

    assert failure(fall_back).kind is Kind.AMBIGUOUS


def test_a_malformed_address_is_permanent_with_requests():
    assert failure(by_requests, "no-scheme/at-all").kind is Kind.PERMANENT


def test_an_answer_that_is_no_json_is_permanent_with_requests():
    answer = requests.Response()
    answer._content = b"<html>"
    assert failure(answer.json).kind is Kind.PERMANENT


@pytest.mark.parametrize("cls", [requests.Timeout, requests.ReadTimeout, requests.ConnectionError])
def test_a_lost_answer_is_ambiguous_with_requests(cls):
    assert POLICY.classify(cls()).kind is Kind.AMBIGUOUS


@pytest.mark.parametrize("cls", [httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout])
def test_what_was_never_sent_is_transient_with_httpx(cls):
    assert POLICY.classify(cls("no")).kind is Kind.TRANSIENT


# --- The other exceptions of everyday life ----------------------------------------------------------

EVERYDAY = [
    (TransientError("x"), Kind.TRANSIENT),
    (PermanentError("x"), Kind.PERMANENT),
    (AmbiguousError("x"), Kind.AMBIGUOUS),
    (RateLimited(), Kind.RATE_LIMITED),
    (PayloadError("x"), Kind.PERMANENT),
    (ConnectionRefusedError("x"), Kind.TRANSIENT),
    (ConnectionResetError("x"), Kind.AMBIGUOUS),
    (BrokenPipeError("x"), Kind.AMBIGUOUS),
    (TimeoutError("x"), Kind.AMBIGUOUS),
    (socket.gaierror(-3, "Temporary failure in name resolution"), Kind.TRANSIENT),
    (OSError(errno.ENOSPC, "No space left on device"), Kind.TRANSIENT),
    (OSError(errno.EHOSTUNREACH, "No route to host"), Kind.TRANSIENT),
    (FileNotFoundError(errno.ENOENT, "No such file"), Kind.UNCLASSIFIED),
    (subprocess.TimeoutExpired("x", 1), Kind.AMBIGUOUS),
    (OperationalError("x"), Kind.TRANSIENT),
    (IntegrityError("x"), Kind.PERMANENT),
    (django_errors.ObjectDoesNotExist("x"), Kind.PERMANENT),
    (django_errors.ValidationError("x"), Kind.PERMANENT),
    (django_errors.PermissionDenied("x"), Kind.PERMANENT),
    (django_errors.ImproperlyConfigured("x"), Kind.PERMANENT),
    (smtplib.SMTPServerDisconnected("x"), Kind.AMBIGUOUS),
    (smtplib.SMTPDataError(451, b"try later"), Kind.TRANSIENT),
    (smtplib.SMTPDataError(550, b"no such user"), Kind.PERMANENT),
    (smtplib.SMTPRecipientsRefused({"a@b": (450, b"busy")}), Kind.TRANSIENT),
    (smtplib.SMTPRecipientsRefused({"a@b": (450, b"busy"), "c@d": (550, b"no")}), Kind.PERMANENT),
    (MemoryError(), Kind.LOST),
    (WorkerLost("x"), Kind.LOST),
    (LeaseLost("x"), Kind.LOST),
    (LeaseNotRenewed("x"), Kind.HANDED_BACK),
    (Snooze(5), Kind.SNOOZED),
    (JobCancelled("x"), Kind.CANCELLED),
    (ValueError("x"), Kind.UNCLASSIFIED),
    (KeyError("x"), Kind.UNCLASSIFIED),
    (ZeroDivisionError("x"), Kind.UNCLASSIFIED),
    (AssertionError("x"), Kind.UNCLASSIFIED),
]


@pytest.mark.parametrize(
    ("error", "kind"), EVERYDAY, ids=[f"{type(e).__name__}-{k.name}-{i}" for i, (e, k) in enumerate(EVERYDAY)]
)
def test_an_everyday_error_has_its_kind(error, kind):
    assert POLICY.classify(error).kind is kind


def test_a_missing_row_of_a_model_is_permanent():
    from django.contrib.auth.models import Group

    assert POLICY.classify(Group.DoesNotExist()).kind is Kind.PERMANENT


def test_an_error_derived_from_a_known_one_is_of_its_kind():
    class GatewayGone(ConnectionRefusedError):
        pass

    assert POLICY.classify(GatewayGone()).kind is Kind.TRANSIENT


def test_an_error_that_only_shares_the_name_of_a_known_one_is_unclassified():
    made = type("OperationalError", (Exception,), {"__module__": "shop.errors"})
    assert POLICY.classify(made()).kind is Kind.UNCLASSIFIED


def test_every_default_names_an_exception_that_exists():
    from importlib import import_module

    from jobs.failures import DEFAULT_KINDS

    def named(path):
        module, _, name = path.rpartition(".")
        return getattr(import_module(module), name)

    # asyncio's own name became an alias of the builtin in Python 3.11.
    listed = set(DEFAULT_KINDS) - {"asyncio.exceptions.TimeoutError"}
    assert [path for path in listed if not issubclass(named(path), builtins.BaseException)] == []


def test_rate_limited_carries_its_wait():
    assert POLICY.classify(RateLimited(retry_after=3)).delay == 3 * SECOND


def test_a_snooze_carries_its_wait_and_its_reason():
    assert POLICY.classify(Snooze(5, "the bank is closed")) == Failure(Kind.SNOOZED, "the bank is closed", 5 * SECOND)


# --- What a task says of its own errors -------------------------------------------------------------


class CardRefused(Exception):
    """An error of the task's own world."""


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("transient", Kind.TRANSIENT),
        ("permanent", Kind.PERMANENT),
        ("ambiguous", Kind.AMBIGUOUS),
        ("rate_limited", Kind.RATE_LIMITED),
    ],
)
def test_a_task_classifies_its_own_errors(name, kind):
    assert RetryPolicy(**{name: (CardRefused,)}).classify(CardRefused()).kind is kind


def test_a_task_may_overrule_a_default():
    assert RetryPolicy(permanent=(OSError,)).classify(ConnectionRefusedError()).kind is Kind.PERMANENT


@pytest.mark.parametrize("name", ["transient", "permanent", "ambiguous", "rate_limited"])
@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (Snooze(1), Kind.SNOOZED),
        (JobCancelled("x"), Kind.CANCELLED),
        (WorkerLost("x"), Kind.LOST),
        (LeaseLost("x"), Kind.LOST),
        (LeaseNotRenewed("x"), Kind.HANDED_BACK),
    ],
)
def test_a_policy_for_all_exceptions_leaves_mainstays_own_signals_alone(name, error, kind):
    assert RetryPolicy(**{name: (Exception,)}).classify(error).kind is kind


@pytest.mark.parametrize("wrong", [CardRefused, [CardRefused], (CardRefused(),), ("CardRefused",)])
def test_what_is_no_tuple_of_exception_classes_is_refused(wrong):
    with pytest.raises(DeclarationError, match="must be a tuple of exception classes"):
        RetryPolicy(transient=wrong)


@pytest.mark.parametrize("attempts", [0, -1, 1001])
def test_a_number_of_attempts_out_of_bounds_is_refused(attempts):
    with pytest.raises(DeclarationError, match="between 1 and 1000"):
        RetryPolicy(max_attempts=attempts)


@pytest.mark.parametrize(("base", "cap"), [(-1, 10), (10, 1)])
def test_a_base_that_is_negative_or_above_the_cap_is_refused(base, cap):
    with pytest.raises(DeclarationError, match="must be between 0 and cap"):
        RetryPolicy(base=base, cap=cap)


# --- Retry-After -----------------------------------------------------------------------------------

DATE = "Wed, 21 Oct 2015 07:28:00 GMT"
LATER = "Wed, 21 Oct 2015 07:28:30 GMT"


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({"Retry-After": "0"}, timedelta(0)),
        ({"Retry-After": " 120 "}, 120 * SECOND),
        ({"Retry-After": LATER, "Date": DATE}, 30 * SECOND),
        ({"Retry-After": DATE, "Date": LATER}, timedelta(0)),
        ({}, None),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "-5"}, None),
        ({"Retry-After": LATER}, None),
        ({"Retry-After": "9" * 40}, None),
    ],
)
def test_retry_after_is_read_as_seconds_or_as_a_date(headers, wait):
    assert retry_after(headers) == wait


# --- Backoff ---------------------------------------------------------------------------------------


@given(st.integers(1, 10_000), st.floats(0, 60), st.floats(60, 3600))
def test_the_longest_wait_never_exceeds_the_cap(attempt, base, cap):
    assert RetryPolicy(base=base, cap=cap).backoff(attempt) <= timedelta(seconds=cap)


@given(st.integers(1, 100))
def test_the_longest_wait_never_shrinks(attempt):
    assert POLICY.backoff(attempt) <= POLICY.backoff(attempt + 1)


@given(st.floats(0, 1), st.integers(1, 9))
def test_the_wait_lies_between_nothing_and_the_longest(jitter, attempt):
    decision = decide(Failure(Kind.TRANSIENT, "x"), jitter=jitter, attempt=attempt, allowed=10)
    assert timedelta(0) <= decision.delay <= POLICY.backoff(attempt)


# --- Decisions -------------------------------------------------------------------------------------


def decide(what, *, jitter=0.5, attempt=1, allowed=5, **history):
    return POLICY.decide(what, History(attempt=attempt, allowed=allowed, **history), Bounds(), jitter)


@pytest.mark.parametrize("kind", [Kind.TRANSIENT, Kind.ASKED, Kind.LOST, Kind.RATE_LIMITED])
def test_a_failure_that_may_pass_is_tried_again(kind):
    assert decide(Failure(kind, "x")).target is State.RETRYING


@pytest.mark.parametrize("kind", [Kind.PERMANENT, Kind.UNCLASSIFIED])
@pytest.mark.parametrize("idempotent", [True, False])
def test_a_failure_that_will_not_pass_goes_to_a_person_at_once(kind, idempotent):
    assert decide(Failure(kind, "x"), idempotent=idempotent).target is State.FAILED


def test_an_ambiguous_failure_of_an_idempotent_task_is_tried_again():
    assert decide(Failure(Kind.AMBIGUOUS, "x"), idempotent=True).target is State.RETRYING


def test_an_ambiguous_failure_of_any_other_task_goes_to_a_person_and_says_why():
    decision = decide(Failure(Kind.AMBIGUOUS, "HTTP 500"))
    assert decision.target is State.FAILED
    assert "it may have taken effect, and the task is not idempotent" in decision.reason


@pytest.mark.parametrize("kind", [Kind.TRANSIENT, Kind.AMBIGUOUS, Kind.ASKED, Kind.LOST])
def test_the_last_allowed_attempt_is_the_last(kind):
    decision = decide(Failure(kind, "x"), attempt=5, allowed=5, idempotent=True)
    assert decision.target is State.FAILED
    assert decision.reason.startswith("exhausted")


def test_a_cancelled_body_ends_cancelled():
    assert decide(Failure(Kind.CANCELLED, "wrong day")).target is State.CANCELLED


def test_a_snoozed_job_waits_exactly_as_long_as_asked():
    decision = decide(Failure(Kind.SNOOZED, "x", 90 * SECOND))
    assert (decision.target, decision.delay) == (State.PENDING, 90 * SECOND)


@pytest.mark.parametrize("kind", [Kind.SNOOZED, Kind.RATE_LIMITED])
def test_snoozed_and_rate_limited_attempts_are_not_consumed(kind):
    assert decide(Failure(kind, "x"), attempt=5, allowed=5).consumed is False


@pytest.mark.parametrize("kind", [Kind.TRANSIENT, Kind.PERMANENT, Kind.LOST])
def test_any_other_attempt_is_consumed(kind):
    assert decide(Failure(kind, "x")).consumed is True


@pytest.mark.parametrize("kind", [Kind.SNOOZED, Kind.RATE_LIMITED])
@pytest.mark.parametrize("history", [{"snoozes": 1000}, {"age": timedelta(days=31)}])
def test_a_job_that_is_only_ever_put_off_ends_with_a_person(kind, history):
    assert decide(Failure(kind, "x"), **history).target is State.FAILED


@pytest.mark.parametrize("jitter", [0.0, 1.0])
def test_a_rate_limited_job_waits_at_least_as_long_as_asked(jitter):
    assert decide(Failure(Kind.RATE_LIMITED, "x", 7 * SECOND), jitter=jitter).delay >= 7 * SECOND


def test_rate_limited_jobs_that_were_told_the_same_time_do_not_come_back_as_one():
    told = Failure(Kind.RATE_LIMITED, "x", 7 * SECOND)
    assert decide(told, jitter=0.0).delay != decide(told, jitter=1.0).delay


@pytest.mark.parametrize("kind", [Kind.RATE_LIMITED, Kind.TRANSIENT])
def test_nobody_else_makes_a_job_wait_for_years(kind):
    assert decide(Failure(kind, "x", timedelta(days=3650))).delay <= timedelta(days=1, seconds=1)


@pytest.mark.parametrize("kind", [Kind.SNOOZED, Kind.ASKED])
def test_a_body_may_make_its_own_job_wait_for_as_long_as_it_likes(kind):
    assert decide(Failure(kind, "x", timedelta(days=60))).delay == timedelta(days=60)


@pytest.mark.parametrize("jitter", [0.0, 1.0])
def test_a_transient_failure_waits_at_least_as_long_as_the_server_asked(jitter):
    assert decide(Failure(Kind.TRANSIENT, "HTTP 503", 7 * SECOND), jitter=jitter).delay >= 7 * SECOND


def test_a_task_that_asks_for_a_retry_gets_the_wait_that_it_asked_for():
    assert decide(Failure(Kind.ASKED, "x", SECOND / 10), jitter=1.0).delay == SECOND / 10


def test_the_first_loss_of_a_worker_is_retried_at_once():
    assert decide(Failure(Kind.LOST, "x"), losses=1, jitter=1.0).delay == timedelta(0)


def test_a_second_loss_is_retried_after_a_wait():
    assert decide(Failure(Kind.LOST, "x"), losses=2, jitter=1.0).delay > timedelta(0)


def test_a_job_that_keeps_losing_its_workers_is_poison():
    decision = decide(Failure(Kind.LOST, "killed"), losses=3, allowed=100)
    assert decision.target is State.FAILED
    assert decision.reason == "poison: lost 3 times, last: killed"


@pytest.mark.parametrize(("losses", "least", "most"), [(2, 1, 2), (3, 2, 4), (9, 128, 256)])
def test_a_suspect_waits_longer_after_each_loss_and_half_of_it_for_certain(losses, least, most):
    failure, history = Failure(Kind.LOST, "x"), History(attempt=1, allowed=9, losses=losses)
    waits = [RetryPolicy().decide(failure, history, Bounds(losses=99), jitter=j).delay for j in (0.0, 1.0)]
    assert [wait.total_seconds() for wait in waits] == [least, most]


def test_a_suspect_waits_also_where_its_policy_does_not():
    failure, history, bounds = Failure(Kind.LOST, "x"), History(attempt=2, allowed=9, losses=2), Bounds(losses=9)
    decision = RetryPolicy(base=0.0, cap=0.0).decide(failure, history, bounds, jitter=0.0)
    assert decision.delay == timedelta(seconds=0.5)


@given(
    kind=st.sampled_from(Kind), attempt=st.integers(1, 2000), allowed=st.integers(1, 1000), losses=st.integers(0, 10),
    snoozes=st.integers(0, 2000), idempotent=st.booleans(), jitter=st.floats(0, 1),
)  # fmt: skip
def test_every_decision_is_a_move_that_a_running_job_can_make(
    kind, attempt, allowed, losses, snoozes, idempotent, jitter
):
    from jobs.states import MOVES

    history = {"attempt": attempt, "allowed": allowed, "losses": losses, "snoozes": snoozes, "idempotent": idempotent}
    decision = decide(Failure(kind, "x"), jitter=jitter, **history)
    assert decision.target in MOVES[State.RUNNING]
    assert decision.reason


@given(st.sampled_from(Kind), st.integers(1, 50))
def test_nothing_is_tried_for_ever(kind, allowed):
    decision, losses, snoozes = None, 0, 0
    for attempt in range(1, 2001):
        losses += kind is Kind.LOST
        decision = decide(
            Failure(kind, "x"), attempt=attempt, allowed=allowed, losses=losses, snoozes=snoozes, idempotent=True
        )
        snoozes += not decision.consumed
        allowed += not decision.consumed
        if decision.target in (State.FAILED, State.CANCELLED):
            return
    raise AssertionError(f"still {decision} after 2000 attempts")
