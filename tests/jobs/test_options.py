"""The options of one call: understood, or refused with what to write instead."""

from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import pytest

from jobs import options
from jobs.errors import OptionError
from jobs.states import Priority

OSLO = ZoneInfo("Europe/Oslo")


def test_an_unknown_option_is_refused_with_the_nearest():
    with pytest.raises(OptionError, match=r"unknown option 'tennant'\. Did you mean 'tenant'\?"):
        options.check_names("shop.charge", {"tennant": "x"})


def test_an_option_that_resembles_none_is_refused_with_our_own():
    with pytest.raises(OptionError, match="Mainstay's own are: correlation_id, debounce, key, metadata"):
        options.check_names("shop.charge", {"zzzz": 1})


@pytest.mark.parametrize("name", sorted(options.OURS | options.CELERYS))
def test_a_known_option_is_accepted(name):
    options.check_names("shop.charge", {name: None})


def test_a_stamp_that_is_announced_is_accepted():
    options.check_names("shop.charge", {"stamped_headers": ["release"], "release": "4"})


def test_no_option_of_celerys_apply_async_is_unknown():
    import inspect

    from celery.app.task import Task

    names = set(inspect.signature(Task.apply_async).parameters) - {"self", "args", "kwargs", "options"}
    options.check_names("shop.charge", dict.fromkeys(names - {"producer"}))


# --- When ------------------------------------------------------------------------------------------


def test_without_a_time_a_job_is_due_at_once():
    assert options.due({}, UTC) is None


@pytest.mark.parametrize("countdown", [5, 5.0, timedelta(seconds=5)])
def test_a_countdown_is_a_delay(countdown):
    assert options.due({"countdown": countdown}, UTC) == timedelta(seconds=5)


@pytest.mark.parametrize("countdown", [-1, "5", True, float("nan"), float("inf"), timedelta(seconds=-1), 10**9])
def test_a_countdown_that_is_no_number_of_seconds_is_refused(countdown):
    with pytest.raises(OptionError, match="countdown must be a number of seconds, 0 or more"):
        options.due({"countdown": countdown}, UTC)


def test_a_countdown_and_an_eta_together_are_refused():
    with pytest.raises(OptionError, match=r"either countdown .* or eta"):
        options.due({"countdown": 1, "eta": datetime.now(UTC)}, UTC)


def test_an_eta_without_a_zone_is_in_the_apps_zone():
    assert options.due({"eta": datetime(2030, 1, 31, 12)}, OSLO) == datetime(2030, 1, 31, 12, tzinfo=OSLO)  # noqa: DTZ001


def test_an_eta_may_be_text():
    assert options.due({"eta": "2030-01-31T12:00:00+00:00"}, OSLO) == datetime(2030, 1, 31, 12, tzinfo=UTC)


@pytest.mark.parametrize("eta", ["tomorrow", 5, datetime(2030, 1, 31, tzinfo=UTC).date()])
def test_an_eta_that_is_no_time_is_refused(eta):
    with pytest.raises(OptionError, match="eta must be a"):
        options.due({"eta": eta}, UTC)


def test_without_an_expiry_a_job_does_not_expire():
    assert options.expiry({}, timedelta(0), UTC) is None


@pytest.mark.parametrize("expires", [60, timedelta(minutes=1)])
def test_an_expiry_may_count_from_now(expires):
    assert options.expiry({"expires": expires}, timedelta(0), UTC) == timedelta(minutes=1)


@pytest.mark.parametrize("due_in", [timedelta(seconds=60), timedelta(seconds=61)])
def test_an_expiry_before_the_job_is_due_is_refused(due_in):
    with pytest.raises(OptionError, match=r"would expire after .* before it is due"):
        options.expiry({"expires": 60}, due_in, UTC)


def test_an_expiry_at_once_is_refused():
    with pytest.raises(OptionError, match="would expire"):
        options.expiry({"expires": 0}, timedelta(0), UTC)


def test_an_expiry_may_be_a_time():
    assert options.expiry({"expires": "2030-01-31"}, timedelta(0), UTC) == datetime(2030, 1, 31, tzinfo=UTC)


# --- Who -------------------------------------------------------------------------------------------


def test_an_id_may_be_a_uuid_or_its_text():
    made = uuid4()
    assert options.identity("task_id", made) == options.identity("task_id", str(made)) == made


def test_no_id_stays_none():
    assert options.identity("task_id", None) is None


@pytest.mark.parametrize("value", ["order-7", "", 7])
def test_an_id_that_is_no_uuid_is_refused_with_what_to_use_instead(value):
    with pytest.raises(OptionError, match=r"task_id must be a UUID.*give key=.* or tags="):
        options.identity("task_id", value)


def test_a_uuid_of_celerys_own_making_is_accepted():
    from celery.utils import uuid

    assert isinstance(options.identity("task_id", uuid()), UUID)


# --- How urgent ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "default", "expected"),
    [
        (None, None, Priority.NORMAL),
        (None, "low", Priority.LOW),
        ("high", "low", Priority.HIGH),
        (0, "low", Priority.CRITICAL),
        (None, 0, Priority.CRITICAL),
    ],
)
def test_the_priority_is_the_calls_then_the_tasks_then_normal(value, default, expected):
    assert options.priority(value, default) is expected


def test_a_priority_of_another_scale_is_refused():
    with pytest.raises(OptionError, match="Unknown priority 5"):
        options.priority(5, None)


# --- What it carries -------------------------------------------------------------------------------


def test_tags_are_kept_in_order_and_once():
    assert options.tags(["b", "a", "b"]) == ["b", "a"]


@pytest.mark.parametrize("value", ["nightly", [""], ["x" * 101], [7]])
def test_tags_that_are_no_list_of_short_texts_are_refused(value):
    with pytest.raises(OptionError, match="tags must be a list of texts of 1 to 100 characters"):
        options.tags(value)


def test_metadata_is_a_json_object():
    assert options.metadata({"order": 7}) == {"order": 7}


@pytest.mark.parametrize("value", [[], "x", {"a": object()}, {"a": float("nan")}, {"a": "x" * 10_000}])
def test_metadata_that_is_none_or_too_large_is_refused(value):
    with pytest.raises(OptionError, match="metadata must be a JSON object of at most 10,000 characters"):
        options.metadata(value)


@pytest.mark.parametrize(("value", "expected"), [(None, ""), ("ann", "ann"), (7, "7")])
def test_a_short_text_is_kept_as_text(value, expected):
    assert options.text("tenant", value, 100) == expected


@pytest.mark.parametrize("value", ["x" * 101, ["ann"], 1.5])
def test_a_text_that_is_none_or_too_long_is_refused(value):
    with pytest.raises(OptionError, match="tenant must be a text of at most 100 characters"):
        options.text("tenant", value, 100)
