"""The JOBS dictionary: defaults, and mistakes that are named."""

from dataclasses import fields

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings

from jobs import conf

NUMBERS = [f.name for f in fields(conf.Settings) if f.name not in ("QUEUES", *conf.SWITCHES)]


def test_an_empty_dictionary_means_the_defaults():
    assert conf.read({}) == conf.Settings()


def test_a_given_value_takes_the_place_of_its_default():
    assert conf.read({"LEASE": 60}).LEASE == 60


def test_a_misspelt_setting_is_refused_with_the_nearest_name():
    with pytest.raises(ImproperlyConfigured, match=r"JOBS has no setting 'LEASES'\. Did you mean 'LEASE'\?"):
        conf.read({"LEASES": 60})


def test_a_setting_in_lower_case_is_refused_with_its_name():
    with pytest.raises(ImproperlyConfigured, match=r"Did you mean 'PAYLOAD_LIMIT'\?"):
        conf.read({"payload_limit": 60})


def test_a_setting_that_resembles_none_is_refused_with_all_names():
    with pytest.raises(ImproperlyConfigured, match=r"It has: LEASE, HEARTBEAT, .*QUEUES\."):
        conf.read({"ZZZ": 1})


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [0, -1, True, "20", None, float("nan")])
def test_a_number_that_is_none_or_not_above_zero_is_refused(name, value):
    with pytest.raises(ImproperlyConfigured, match=rf"JOBS\['{name}'\] must be a number above 0"):
        conf.read({name: value})


@pytest.mark.parametrize("value", ["default", ["default", 3]])
def test_queues_that_are_no_list_of_names_are_refused(value):
    with pytest.raises(ImproperlyConfigured, match="must be a list of queue names"):
        conf.read({"QUEUES": value})


@pytest.mark.parametrize("value", ["no", 0, 1, None])
def test_a_choice_that_is_neither_true_nor_false_is_refused(value):
    with pytest.raises(ImproperlyConfigured, match=r"JOBS\['FAST_BROKER'\] must be True or False, not"):
        conf.read({"FAST_BROKER": value})


@pytest.mark.parametrize("value", [None, [], "LEASE", 5])
def test_jobs_must_be_a_dictionary(value):
    with pytest.raises(ImproperlyConfigured, match="JOBS must be a dictionary"):
        conf.read(value)


def test_the_settings_follow_an_override(settings):
    settings.JOBS = {"LEASE": 7}
    assert conf.current().LEASE == 7


def test_the_settings_follow_the_end_of_an_override():
    before = conf.current()
    with override_settings(JOBS={"LEASE": 7}):
        assert conf.current() != before
    assert conf.current() == before


def test_the_settings_cannot_be_changed_in_place():
    with pytest.raises(AttributeError):
        conf.Settings().LEASE = 1


def test_the_default_lease_outlasts_two_missed_heartbeats():
    assert conf.Settings().LEASE > 3 * conf.Settings().HEARTBEAT
