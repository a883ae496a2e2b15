"""Calls that cannot be meant so: one sentence each, and nothing left behind."""

from typing import Any

import pytest

from jobs.errors import OptionError, PayloadError
from jobs.models import Job
from tests.sample.tasks import add

pytestmark = pytest.mark.django_db

MISTAKES: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "a link that is no signature": ({"args": (1, 2), "link": "x"}, OptionError, "take signatures such as"),
    "a link that is a number": ({"args": (1, 2), "link_error": 5}, OptionError, "take signatures such as"),
    "a queue that is a number": ({"args": (1, 2), "queue": 5}, OptionError, "the name of a queue"),
    "a queue without a name": ({"args": (1, 2), "queue": ""}, OptionError, "the name of a queue"),
    "keyword arguments in a list": ({"kwargs": [1]}, PayloadError, "must be a dictionary"),
    "limits, which are the task's": ({"args": (1, 2), "limits": []}, OptionError, "is declared on the task"),
    "a rate limit as Celery has it": ({"args": (1, 2), "rate_limit": "1/s"}, OptionError, "is declared on the task"),
    "a burst without its length": ({"args": (1, 2), "debounce": {"key": "a"}}, OptionError, "it lacks quiet"),
    "a burst with a slip": (
        {"args": (1, 2), "throttle": {"key": "a", "span": 1, "spam": 5}},
        OptionError,
        "it does not know spam",
    ),
    "a burst with a number that cannot be": (
        {"args": (1, 2), "debounce": {"key": "a", "quiet": 0}},
        OptionError,
        "quiet must be a number of seconds above 0",
    ),
    "arguments that are a number": ({"args": 5}, PayloadError, "must be a list or a tuple"),
    "arguments that are a text": ({"args": "ab"}, PayloadError, "must be a list or a tuple"),
    "keyword arguments without names": ({"kwargs": {1: 2}}, PayloadError, "by parameter name"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistaken_call_is_refused_in_a_sentence_and_leaves_nothing(mistake: str) -> None:
    call, error, sentence = MISTAKES[mistake]
    with pytest.raises(error, match=sentence):
        add.apply_async(**call)
    assert not Job.objects.exists()
