"""The examples in the help are commands that work as they stand."""

import shlex

import pytest
from django.core.management import get_commands, load_command_class

from jobs.management.verbs import VerbCommand


def loaded(name: str) -> VerbCommand:
    command = load_command_class(get_commands()[name], name)
    assert isinstance(command, VerbCommand)
    return command


EXAMPLES = [example for name in ("jobs", "dlq") for verb in loaded(name).verbs for example in verb.examples]


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_is_understood(example: str) -> None:
    name, *words = shlex.split(example.split(" | ")[0])
    given = loaded(name).create_parser("manage.py", name).parse_args(words)
    assert given.verb == words[0]


@pytest.mark.parametrize("name", ["jobs", "dlq"])
def test_the_help_lists_the_verbs_and_the_exit_codes(name: str) -> None:
    text = loaded(name).create_parser("manage.py", name).format_help()
    assert all(f"    {verb.name}" in text for verb in loaded(name).verbs)
    assert "exit codes: 0 done, 1 refused" in text


def test_djangos_own_options_may_follow_the_verb() -> None:
    given = loaded("jobs").create_parser("manage.py", "jobs").parse_args(["list", "--no-color", "--traceback"])
    assert given.no_color
    assert given.traceback


@pytest.mark.parametrize("name", ["jobs", "dlq"])
def test_every_verb_has_an_example(name: str) -> None:
    assert [verb.name for verb in loaded(name).verbs if not verb.examples] == []
