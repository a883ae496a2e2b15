"""When schedules fire: pure rules, against an oracle that looks at every minute, and around changes of the clock."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from types import SimpleNamespace
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.schedule import fires, rules
from jobs.schedule.fires import Clocked, Crontab, Interval, Rule, Solar
from jobs.schedule.rules import Unschedulable

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
OSLO, NEW_YORK, LORD_HOWE = ZoneInfo("Europe/Oslo"), ZoneInfo("America/New_York"), ZoneInfo("Australia/Lord_Howe")
SPRING, AUTUMN = datetime(2026, 3, 28, 23, tzinfo=UTC), datetime(2026, 10, 24, 22, tzinfo=UTC)  # midnight in Oslo


def crontab(text: str, zone: Any = UTC) -> Crontab:
    """A crontab as it is written: minute, hour, day of the month, month, day of the week."""
    names = ("minute", "hour", "day_of_month", "month_of_year", "day_of_week")
    return rules.crontab(SimpleNamespace(**dict(zip(names, text.split(), strict=True)), timezone=zone))


def shown(rule: Rule, zone: Any, begin: datetime, hours: int = 8) -> list[str]:
    """What the wall clock shows at the fires of a night, with the distance from UTC."""
    found = rule.between(begin - MINUTE, begin + hours * HOUR)
    return [f"{fire.astimezone(zone):%H:%M%z}" for fire in found]


# --- Properties -------------------------------------------------------------------------------------

BEGIN = datetime(2024, 1, 1, tzinfo=UTC)
moments = st.timedeltas(timedelta(0), timedelta(days=8 * 365)).map(lambda later: BEGIN + later)
zones = st.sampled_from([UTC, OSLO, NEW_YORK, LORD_HOWE, ZoneInfo("Asia/Kathmandu"), ZoneInfo("Africa/Casablanca")])
numbers = {60: st.integers(0, 59), 24: st.integers(0, 23), 31: st.integers(1, 28), 12: st.integers(1, 12)}


def fields(size: int) -> st.SearchStrategy[str]:
    listed = st.lists(numbers[size], min_size=1, max_size=4).map(lambda few: ",".join(map(str, few)))
    return st.one_of(st.just("*"), st.sampled_from(["*/2", "*/5"]), listed)


weekdays = st.sampled_from(["*", "0", "mon-fri", "6,7", "5-7"])
crontabs = st.builds(
    lambda *parts: crontab(" ".join(parts[:5]), parts[5]),
    fields(60), fields(24), st.sampled_from(["*", "1", "1,15", "28-31"]), fields(12), weekdays, zones,
)  # fmt: skip
intervals = st.builds(Interval, st.timedeltas(timedelta(seconds=20), timedelta(days=9)), moments)
any_rule = st.one_of(crontabs, intervals, st.builds(Clocked, moments))
lengths = st.timedeltas(timedelta(0), timedelta(days=4))


@given(any_rule, moments, lengths, lengths)
def test_a_time_cut_in_two_has_the_same_fires(rule: Rule, a: datetime, one: timedelta, two: timedelta) -> None:
    b, c = a + one, a + one + two
    assert [*rule.between(a, b), *rule.between(b, c)] == list(rule.between(a, c))


@given(any_rule, moments, lengths)
def test_fires_come_in_order_each_once_and_in_their_time(rule: Rule, begin: datetime, length: timedelta) -> None:
    found = list(rule.between(begin, begin + length))
    assert found == sorted(set(found))
    assert all(begin < fire <= begin + length for fire in found)


def every_minute(rule: Crontab, begin: datetime, end: datetime) -> Iterator[datetime]:
    """The oracle: look at the wall clock in each minute."""
    minute = begin.replace(second=0, microsecond=0)
    while minute <= end:
        wall = minute.astimezone(rule.zone)
        fits = (
            wall.minute in rule.minutes and wall.hour in rule.hours and wall.day in rule.days
            and wall.month in rule.months and wall.isoweekday() % 7 in rule.weekdays
        )  # fmt: skip
        if fits and minute > begin:
            yield minute
        minute += MINUTE


def changes(rule: Crontab, begin: datetime, end: datetime) -> bool:
    """Whether the clock is changed near a stretch of time."""
    days = range(-2, (end - begin).days + 3)
    return len({(begin + day * DAY).astimezone(rule.zone).utcoffset() for day in days}) > 1


@given(crontabs, moments, st.timedeltas(timedelta(0), timedelta(days=2)))
def test_a_crontab_fires_when_the_wall_clock_shows_its_times(rule: Crontab, begin: datetime, length: timedelta) -> None:
    end = begin + length
    if rule.hourly or not changes(rule, begin, end):
        assert list(rule.between(begin, end)) == list(every_minute(rule, begin, end))


@given(crontabs, st.sampled_from([SPRING, AUTUMN, datetime(2026, 3, 8, 5, tzinfo=UTC)]))
def test_around_a_change_every_time_of_the_day_fires_once(rule: Crontab, begin: datetime) -> None:
    if rule.hourly:
        return
    found = list(rule.between(begin - DAY, begin + 2 * DAY))
    walls = {(begin - DAY + n * MINUTE).astimezone(rule.zone).replace(tzinfo=None) for n in range(1, 3 * 24 * 60 + 1)}
    once = {wall for wall in walls if _fits(rule, wall)}
    assert {fire.astimezone(rule.zone).replace(tzinfo=None) for fire in found} >= once
    assert len({fire.astimezone(rule.zone).replace(tzinfo=None) for fire in found}) == len(found)


def _fits(rule: Crontab, wall: datetime) -> bool:
    on = wall.day in rule.days and wall.month in rule.months and wall.isoweekday() % 7 in rule.weekdays
    return on and wall.minute in rule.minutes and wall.hour in rule.hours


@given(any_rule, moments, st.timedeltas(timedelta(0), timedelta(days=30)), st.integers(1, 40))
def test_the_newest_fires_are_the_last_of_all(rule: Rule, begin: datetime, length: timedelta, most: int) -> None:
    every = list(rule.between(begin, begin + length))
    assert fires.newest(rule, begin, begin + length, most) == every[-most:]
    assert fires.count(rule, begin, begin + length) == min(len(every), max(fires.MOST_COUNTED, len(every)))


# --- Daylight saving --------------------------------------------------------------------------------


def test_a_time_that_the_clock_skips_fires_as_much_later_as_was_skipped() -> None:
    assert shown(crontab("30 2 * * *", OSLO), OSLO, SPRING) == ["03:30+0200"]


def test_a_time_that_the_clock_shows_twice_fires_the_first_time_only() -> None:
    assert shown(crontab("30 2 * * *", OSLO), OSLO, AUTUMN) == ["02:30+0200"]


def test_each_of_several_skipped_times_fires_once() -> None:
    assert shown(crontab("0,30 2,3 * * *", OSLO), OSLO, SPRING) == ["03:00+0200", "03:30+0200"]


def test_an_hourly_schedule_fires_in_both_of_two_equal_hours() -> None:
    expected = ["00:00-0400", "01:00-0400", "01:00-0500", "02:00-0500"]
    assert shown(crontab("0 * * * *", NEW_YORK), NEW_YORK, datetime(2026, 11, 1, 4, tzinfo=UTC), 3) == expected


def test_an_hourly_schedule_does_not_fire_in_an_hour_that_there_is_not() -> None:
    expected = ["00:00-0500", "01:00-0500", "03:00-0400", "04:00-0400"]
    assert shown(crontab("0 * * * *", NEW_YORK), NEW_YORK, datetime(2026, 3, 8, 5, tzinfo=UTC), 3) == expected


@pytest.mark.parametrize("night", [SPRING, AUTUMN])
def test_every_quarter_of_an_hour_stays_a_quarter_of_an_hour(night: datetime) -> None:
    found = list(crontab("*/15 * * * *", OSLO).between(night, night + 6 * HOUR))
    assert {later - sooner for sooner, later in pairwise(found)} == {timedelta(minutes=15)}


def test_a_daily_schedule_keeps_to_its_wall_clock_on_both_sides() -> None:
    found = crontab("0 9 * * *", OSLO).between(SPRING - DAY, SPRING + 2 * DAY)
    assert [f"{fire:%H:%M}" for fire in found] == ["08:00", "07:00", "07:00"]


def test_a_change_of_half_an_hour_is_right_too() -> None:
    spring = datetime(2026, 10, 3, 13, tzinfo=UTC)
    assert shown(crontab("15 2 * * *", LORD_HOWE), LORD_HOWE, spring) == ["02:45+1100"]


def test_a_day_that_a_country_skipped_does_not_stop_a_schedule() -> None:
    apia = ZoneInfo("Pacific/Apia")
    found = crontab("0 12 * * *", apia).between(datetime(2011, 12, 28, tzinfo=UTC), datetime(2012, 1, 1, tzinfo=UTC))
    assert [f"{fire.astimezone(apia):%d %H}" for fire in found] == ["28 12", "29 12", "31 12", "01 12"]


def test_an_interval_is_real_time() -> None:
    rule = Interval(6 * HOUR, SPRING)
    assert [fire - SPRING for fire in rule.between(SPRING, SPRING + DAY)] == [6 * HOUR, 12 * HOUR, 18 * HOUR, DAY]


# --- Rare and impossible ----------------------------------------------------------------------------


def test_a_rare_date_is_found() -> None:
    assert fires.first(crontab("0 0 29 2 1"), datetime(2026, 1, 1, tzinfo=UTC)) == datetime(2044, 2, 29, tzinfo=UTC)


def test_a_clocked_time_in_the_past_is_none() -> None:
    assert fires.first(Clocked(SPRING), SPRING) is None


def test_fires_of_years_are_counted_without_walking_them() -> None:
    rule = Interval(timedelta(seconds=1), SPRING)
    assert fires.count(rule, SPRING, SPRING + 3650 * DAY) == 3650 * 24 * 3600


def test_the_sun_is_asked_in_a_way_that_all_beats_ask_alike() -> None:
    def following(moment: datetime) -> datetime:
        noon = moment.replace(hour=12, minute=0, second=0, microsecond=moment.second * 1000)
        return noon if noon > moment else noon + DAY

    rule = Solar(following)
    begins = [SPRING + timedelta(hours=h, seconds=7) for h in range(8)]
    assert {fires.first(rule, begin) for begin in begins} == {datetime(2026, 3, 29, 12, tzinfo=UTC)}


@pytest.mark.parametrize("text", ["0 0 31 2 *", "0 0 30 2 *", "0 0 31 4,6,9,11 *"])
def test_an_impossible_date_is_refused_with_a_sentence(text: str) -> None:
    with pytest.raises(Unschedulable, match="There is no such date"):
        crontab(text)


@pytest.mark.parametrize("text", ["61 * * * *", "* * * * nonsense", "*/0 * * * *", "5- * * * *"])
def test_an_unreadable_crontab_is_refused_with_a_sentence(text: str) -> None:
    with pytest.raises(Unschedulable, match="cannot be read"):
        crontab(text)


def test_sunday_may_be_called_seven() -> None:
    assert crontab("0 0 * * 7").weekdays == frozenset({0})


@pytest.mark.parametrize(("every", "period"), [(0, "seconds"), (-5, "minutes"), (50, "microseconds"), (3, "moons")])
def test_an_interval_that_is_none_is_refused(every: int, period: str) -> None:
    with pytest.raises(Unschedulable):
        rules.interval(SimpleNamespace(every=every, period=period), SPRING)
