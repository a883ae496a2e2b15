"""Debounce and throttle as arithmetic: whatever the calls, what is promised holds."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs import windows
from jobs.errors import DeclarationError, OptionError
from jobs.idempotency import Sliding
from jobs.windows import Debounce, Rule, Throttle, Window

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)

seconds = st.integers(1, 400).map(lambda tenths: tenths / 10)
gaps = st.lists(st.integers(0, 300).map(lambda tenths: timedelta(seconds=tenths / 10)), min_size=1, max_size=40)


def times(pauses: list[timedelta]) -> list[datetime]:
    """The moments of calls with these pauses before them."""
    moments, now = [], NOON
    for pause in pauses:
        now += pause
        moments.append(now)
    return moments


def debounced(rule: Rule, calls: list[datetime]) -> list[tuple[datetime, list[datetime]]]:
    """When the runs are, each with its calls."""
    runs: list[tuple[datetime, list[datetime]]] = []
    for call in calls:
        if runs and call < runs[-1][0]:
            together = [*runs[-1][1], call]
            runs.pop()
        else:
            together = [call]
        at = windows.due(rule, together[0], together[-1])
        assert at is not None
        runs.append((at, together))
    return runs


def throttled(rule: Rule, calls: list[datetime]) -> list[tuple[datetime, list[datetime]]]:
    """The same for a throttle, whose runs start when they are due."""
    runs: list[tuple[datetime, list[datetime]]] = []
    for call in calls:
        if runs and call < runs[-1][0]:
            runs[-1][1].append(call)
            continue
        at = windows.due(rule, call, call, started=runs[-1][0] if runs else None)
        assert at is not None
        runs.append((at, [call]))
    return runs


@given(seconds, seconds, gaps)
def test_a_debounced_call_waits_for_quiet_and_never_longer_than_the_longest(quiet, more, pauses):
    rule = Debounce("k", quiet, longest=quiet + more).rule
    for at, calls in debounced(rule, times(pauses)):
        assert at <= calls[0] + timedelta(seconds=rule.span)
        assert at == min(calls[0] + timedelta(seconds=rule.span), calls[-1] + timedelta(seconds=quiet))
        assert all(call < at for call in calls)


@given(seconds, seconds, gaps)
def test_calls_that_come_within_the_quiet_time_of_each_other_are_one_run_while_the_longest_lasts(quiet, more, pauses):
    rule = Debounce("k", quiet, longest=quiet + more).rule
    runs = debounced(rule, times(pauses))
    for (at, calls), (_, following) in pairwise(runs):
        apart = following[0] - calls[-1] >= timedelta(seconds=quiet)
        assert apart or at == calls[0] + timedelta(seconds=rule.span)


@given(seconds, st.booleans(), gaps)
def test_throttled_runs_are_a_span_apart_and_no_call_waits_for_longer(span, leading, pauses):
    rule = Throttle("k", span, leading=leading).rule
    runs = throttled(rule, times(pauses))
    for (before, _), (after, _) in pairwise(runs):
        assert after - before >= timedelta(seconds=span)
    for at, calls in runs:
        assert at - calls[0] <= timedelta(seconds=span)


@given(seconds, gaps)
def test_the_first_call_of_a_leading_throttle_does_not_wait(span, pauses):
    calls = times(pauses)
    assert throttled(Throttle("k", span).rule, calls)[0][0] == calls[0]


def test_nobody_knows_when_a_throttle_may_go_whose_run_before_has_yet_to_start():
    assert windows.due(Throttle("k", 5).rule, NOON, NOON, starting=True) is None


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Debounce("k", 0), "quiet must be a number of seconds above 0"),
        (lambda: Debounce("k", 30, longest=20), "longest (20) must not be shorter than quiet (30)"),
        (lambda: Debounce("k", 30, keep="last"), 'keep is "latest" or "first"'),
        (lambda: Throttle("k", -1), "span must be a number of seconds above 0"),
        (lambda: Throttle("k", 1, leading=False, trailing=False), "nothing would ever run"),
        (lambda: Throttle("k", 1, leading=1), "leading and trailing are True or False"),
        (lambda: Sliding(timedelta(0)), "longer than nothing"),
    ],
)
def test_a_window_that_makes_no_sense_is_refused_with_the_remedy(make, says):
    with pytest.raises(DeclarationError, match=says.replace("(", r"\(").replace(")", r"\)")):
        make()


def test_times_may_be_given_as_timedeltas():
    assert Debounce("k", timedelta(seconds=30), longest=timedelta(minutes=2)).rule[:2] == (30.0, 120.0)
    assert Throttle("k", timedelta(minutes=1)).rule.span == 60.0


def test_without_a_longest_a_debounced_job_waits_ten_times_the_quiet_time_at_most():
    assert Debounce("k", 3).rule.span == 30.0


def test_a_call_says_it_before_its_task():
    declared = Debounce("k", 3)
    assert windows.chosen("t", declared, {}) is declared
    assert windows.chosen("t", declared, {"debounce": False}) is None
    assert windows.chosen("t", declared, {"throttle": {"key": "x", "span": 2}}) == Throttle("x", 2)
    assert windows.chosen("t", declared, {"debounce": Debounce("x", 2)}) == Debounce("x", 2)


@pytest.mark.parametrize("value", [3, "k", Throttle("k", 1), {"quiet": 2}, {"key": "k", "quiet": -1}])
def test_a_call_that_says_it_wrongly_is_refused(value):
    with pytest.raises(OptionError, match="debounce of a call of t"):
        windows.chosen("t", None, {"debounce": value})


def test_a_call_cannot_have_both():
    with pytest.raises(OptionError, match="both debounce and throttle"):
        windows.chosen("t", None, {"debounce": Debounce("k", 1), "throttle": Throttle("k", 1)})


@pytest.mark.parametrize("window", [Debounce("order:{order}", 1), Throttle("order:{order}", 1)])
def test_a_key_that_the_body_cannot_give_is_refused(window: Window):
    with pytest.raises(DeclarationError, match=r"uses order, which its body does not take\. It takes: customer"):
        windows.check_template("t", window, _parameters(lambda customer: None))


def _parameters(function):
    import inspect

    return inspect.signature(function).parameters


def test_a_key_may_name_the_task_and_the_tenant():
    assert windows.bind("t", Debounce("{task} of {tenant} for {id}", 1), {"id": 7}, "acme").key == "t of acme for 7"
