"""What becomes of fires that are due, by policy."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from jobs.schedule import fires, misfires
from jobs.schedule.fires import Interval
from jobs.schedule.misfires import ALL, MOST, ONCE, SKIP, Plan

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
SECOND, HOUR, DAY = timedelta(seconds=1), timedelta(hours=1), timedelta(days=1)
DAILY = Interval(DAY, NOON)


def plan(rule: fires.Rule, late: timedelta, missed: int, policy: str, every: timedelta = DAY) -> Plan | None:
    """What becomes of so many missed fires, when the last was due so long ago."""
    last = NOON + missed * every
    return misfires.decide(rule, NOON, last + late, last + late, policy)


def test_nothing_is_due_before_its_time() -> None:
    assert misfires.decide(DAILY, NOON, NOON + 23 * HOUR, NOON + 23 * HOUR, ALL) is None


def test_a_fire_in_time_is_fired_under_any_policy() -> None:
    plans = [plan(DAILY, SECOND, 1, policy) for policy in (SKIP, ONCE, ALL)]
    assert plans == [Plan((NOON + DAY,))] * 3


def test_skip_leaves_a_daily_fire_out_that_is_three_hours_late() -> None:
    made = plan(DAILY, 3 * HOUR, 1, SKIP)
    assert made is not None
    assert (made.fire, made.left_out, made.until) == ((), (NOON + DAY,), NOON + DAY)


def test_once_fires_a_daily_fire_that_is_three_hours_late() -> None:
    assert plan(DAILY, 3 * HOUR, 1, ONCE) == Plan((NOON + DAY,))


def test_once_fires_the_last_of_several() -> None:
    made = plan(DAILY, 3 * HOUR, 3, ONCE)
    assert made is not None
    assert (made.fire, made.left_out) == ((NOON + 3 * DAY,), (NOON + DAY, NOON + 2 * DAY))


def test_all_fires_each_in_order() -> None:
    made = plan(DAILY, 3 * HOUR, 3, ALL)
    assert made == Plan((NOON + DAY, NOON + 2 * DAY, NOON + 3 * DAY))


def test_all_is_bounded_in_age() -> None:
    made = plan(DAILY, 3 * HOUR, 30, ALL)
    assert made is not None
    assert (len(made.fire), len(made.left_out)) == (7, 23)


def test_all_is_bounded_in_number() -> None:
    made = plan(Interval(SECOND, NOON), 10 * SECOND, 5000, ALL, SECOND)
    assert made is not None
    assert len(made.fire) == MOST
    assert len(made.left_out) - 1 + made.uncounted == 5010 - MOST


def test_a_short_stall_loses_nothing_under_skip() -> None:
    made = plan(Interval(SECOND, NOON), timedelta(0), 4, SKIP, SECOND)
    assert made == Plan(tuple(NOON + n * SECOND for n in (1, 2, 3, 4)))


def test_after_an_outage_only_the_last_is_fired_although_others_are_hardly_late() -> None:
    made = plan(Interval(SECOND, NOON), timedelta(0), 30, SKIP, SECOND)
    assert made is not None
    assert (made.fire, len(made.left_out)) == ((NOON + 30 * SECOND,), 29)


def test_a_fire_whose_job_would_have_expired_is_left_out() -> None:
    made = misfires.decide(DAILY, NOON, NOON + DAY + HOUR, NOON + DAY + HOUR, ALL, lifetime=timedelta(minutes=10))
    assert made is not None
    assert (made.fire, made.reason) == ((), "expired before it could be fired")


@given(
    st.sampled_from([SKIP, ONCE, ALL]), st.integers(1, 100_000), st.integers(0, 100_000),
    st.timedeltas(timedelta(seconds=1), timedelta(hours=8)), st.one_of(st.none(), st.timedeltas(SECOND, DAY)),
)  # fmt: skip
def test_every_fire_is_accounted_for(
    policy: str, missed: int, late: int, every: timedelta, lifetime: timedelta | None
) -> None:
    rule, now = Interval(every, NOON), NOON + missed * every + timedelta(seconds=late)
    made = misfires.decide(rule, NOON, now, now, policy, lifetime=lifetime)
    assert made is not None
    accounted = len(made.fire) + len(made.left_out) - bool(made.uncounted) + made.uncounted
    assert accounted == rule.count(NOON, now)
    assert len(made.left_out) <= misfires.MOST_RECORDED + 1
    assert len(made.fire) <= MOST
    assert [*made.left_out, *made.fire] == sorted({*made.left_out, *made.fire})
    assert made.until == fires.newest(rule, NOON, now, 1)[0]
