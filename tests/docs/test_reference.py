"""The reference says what the code says: names, defaults, units of choice; nothing is missing, nothing is invented."""

import re
import tomllib
from dataclasses import fields

import pytest
from django.apps import apps
from django.core.management import load_command_class

from jobs import celery, checks, conf, failures, options, retry, signals, states, task
from jobs.management.verbs import VerbCommand
from tests.docs.material import ROOT, code, page, table


def rows(name, heading):
    """The rows of a table, by the first cell."""
    return {code(first): [code(cell) for cell in rest] for first, *rest in table(page(name).prose, heading)}


# --- Settings --------------------------------------------------------------------------------------


def test_the_settings_are_those_of_the_code_with_their_defaults():
    said = {name: default for name, (default, *_) in rows("docs/reference/settings.md", "JOBS").items()}
    assert said == {
        f.name: repr(f.default_factory() if callable(f.default_factory) else f.default) for f in fields(conf.Settings)
    } | {"QUEUES": "()"}


def test_the_defaults_that_install_sets_are_those_of_the_code():
    said = {name: value for name, (value,) in rows("docs/reference/settings.md", "Celery's settings").items()}
    assert said == {name: repr(value) for name, value in celery.DEFAULTS.items()}


def test_the_environment_variables_are_read_by_the_project():
    source = (ROOT / "project" / "settings.py").read_text() + (ROOT / "project" / "environment.py").read_text()
    heading = "Environment variables of this repository's project"
    assert [name for name in rows("docs/reference/settings.md", heading) if f'"{name}"' not in source] == []


# --- Tasks and calls -------------------------------------------------------------------------------


def test_the_options_of_a_task_are_those_of_the_code():
    assert set(rows("docs/reference/tasks.md", "Options")) == task._DECLARABLE


def test_the_options_of_a_chunk_are_those_of_the_code():
    said = {name: default for name, (default, *_) in rows("docs/reference/tasks.md", "Options of a chunk").items()}
    assert said == {name: repr(getattr(task.ChunkTask, name)).replace("None", "none") for name in task._OF_CHUNKS}


def test_the_bases_are_there_to_be_imported():
    assert [base for base in rows("docs/reference/tasks.md", "Base classes") if not hasattr(task, base)] == []


def test_what_a_body_may_use_is_there():
    from jobs import errors

    words = rows("docs/reference/tasks.md", "Inside a body")
    used = {re.match(r"self\.(\w+)", word)[1] for word in words if word.startswith("self.")}
    raised = {re.match(r"raise (\w+)", word)[1] for word in words if word.startswith("raise")}
    assert [name for name in used if not hasattr(task.Task, name)] == []
    assert [name for name in raised if not hasattr(errors, name)] == []


def test_the_options_of_a_call_are_known_to_the_code():
    said = {word for cell in rows("docs/reference/calls.md", "Options") for word in re.findall(r"\w+", cell)}
    assert said <= options.OURS | options.CELERYS
    assert said >= options.OURS


# --- Retries ---------------------------------------------------------------------------------------


def test_the_kinds_of_failure_are_those_of_the_code():
    assert set(rows("docs/reference/retries.md", "Retries")) == {kind.value for kind in failures.Kind}


def test_the_options_of_a_retry_policy_are_those_of_the_code():
    said = {name: default for name, (default, *_) in rows("docs/reference/retries.md", "RetryPolicy").items()}
    assert said == {f.name: repr(f.default) for f in fields(retry.RetryPolicy)}


def test_the_kinds_of_exceptions_are_those_of_the_code():
    said = {name: kind for name, (kind,) in rows("docs/reference/retries.md", "Defaults by exception").items()}
    assert said == {name.removeprefix("builtins."): kind.value for name, kind in failures.DEFAULT_KINDS.items()}


# --- States ----------------------------------------------------------------------------------------


def test_the_states_mean_what_the_code_says():
    said = rows("docs/reference/states.md", "What they mean")
    assert {state: meaning for state, (meaning, *_) in said.items()} == {
        state.value: meaning for state, meaning in states.MEANING.items()
    }


def test_the_names_that_celery_sees_are_those_of_the_code():
    said = rows("docs/reference/states.md", "What they mean")
    assert {state: cells[-1] for state, cells in said.items()} == {
        state.value: name for state, name in states.CELERY_STATE.items()
    }


def test_the_moves_are_those_of_the_code():
    said = rows("docs/reference/states.md", "Moves")
    assert {state: set(re.findall(r"\w+", targets)) - {"none"} for state, (targets,) in said.items()} == {
        state.value: {target.value for target in targets} for state, targets in states.MOVES.items()
    }


def test_the_diagram_shows_only_moves_that_exist():
    diagram = re.search(r"```mermaid\n(.*?)```", page("docs/reference/states.md").text, re.DOTALL)[1]
    shown = re.findall(r"^ +(\w+) --> (\w+)$", diagram, re.MULTILINE)
    assert shown
    assert [(a, b) for a, b in shown if states.State(b) not in states.MOVES[states.State(a)]] == []


# --- Commands --------------------------------------------------------------------------------------

COMMANDS = {"jobs": load_command_class("jobs", "jobs"), "dlq": load_command_class("dlq", "dlq")}
EVERYWHERE = {
    "--json",
    "--help",
    "--traceback",
    "--no-color",
    "--force-color",
    "--settings",
    "--pythonpath",
    "--verbosity",
}


def verbs_of(name):
    """The options of each verb of a command, by the verb."""
    parser = COMMANDS[name].create_parser("manage.py", name)
    several = next(action for action in parser._actions if action.dest == "verb")
    return {
        verb: {o for action in child._actions for o in action.option_strings if o.startswith("--")} - EVERYWHERE
        for verb, child in several.choices.items()
    }


@pytest.mark.parametrize("name", COMMANDS)
def test_the_commands_are_verb_commands(name):
    assert isinstance(COMMANDS[name], VerbCommand)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_verbs_of_a_command_have_the_options_that_the_page_names(name):
    text = page("docs/reference/commands.md").text.split(f"## manage.py {name}\n")[1]
    filters = set(re.findall(r"--[\w-]+", re.search(r"The filters are (.*?)\. ", text, re.DOTALL)[1]))
    said = {
        verb: set(re.findall(r"--[\w-]+", given)) | (filters if "filters" in given else set())
        for verb, (_, given) in rows("docs/reference/commands.md", f"manage.py {name}").items()
    }
    assert said == verbs_of(name)


# --- The rest --------------------------------------------------------------------------------------


def test_the_permissions_are_those_of_the_models():
    said = set(rows("docs/reference/admin.md", "Permissions"))
    made = {
        f"{model._meta.app_label}.{codename}"
        for label in ("jobs", "dlq")
        for model in apps.get_app_config(label).get_models()
        for codename in [
            *(f"{action}_{model._meta.model_name}" for action in model._meta.default_permissions),
            *(codename for codename, _ in model._meta.permissions),
        ]
    }
    assert said == made


def test_the_checks_are_those_of_the_code():
    source = "".join(room.read_text() for room in (ROOT / "jobs" / "checks").glob("*.py"))
    assert checks.check
    made = {f"jobs.{number}" for number in re.findall(r'"(?:jobs\.)?([EWI]\d{3})"', source)}
    assert set(rows("docs/reference/checks.md", "Checks")) == made


def test_the_signals_are_those_of_the_code():
    from django.dispatch import Signal

    made = {name for name, value in vars(signals).items() if isinstance(value, Signal)}
    assert set(rows("docs/reference/signals.md", "Signals")) == made


@pytest.mark.parametrize("call", sorted(rows("docs/reference/api.md", "The Python API")))
def test_a_call_of_the_api_takes_the_arguments_that_the_page_names(call):
    import importlib
    import inspect

    path, arguments = re.fullmatch(r"([\w.]+)\((.*)\)", call).groups()
    module, _, name = path.rpartition(".")
    parameters = inspect.signature(getattr(importlib.import_module(module), name)).parameters
    assert set(re.findall(r"\b(?!or\b)[a-z_]+", arguments)) <= set(parameters)


def test_the_filters_of_find_are_those_of_the_code():
    import inspect

    from jobs import stats

    text = re.search(r"`find` takes (.*?)\n\n", page("docs/reference/api.md").text, re.DOTALL)[1]
    assert set(re.findall(r"`(\w+)`", text)) == set(inspect.signature(stats.find).parameters)


def test_every_dependency_has_its_reason():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    names = {re.match(r"[\w-]+", one)[0] for one in wanted} - {"mainstay"}
    said = {name for cell in rows("docs/decisions.md", "Dependencies") for name in cell.split(", ")}
    assert names <= said
    assert said - names <= {"kombu", "redis"}  # they come with celery[redis], and are imported


def test_the_versions_that_the_readme_names_are_those_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    text = page("README.md").text
    assert project["requires-python"] == ">=3.11"
    assert "Python 3.11 or newer, Django 5.2 or 6.0 and Celery 5.7" in text
    assert {"celery[redis]>=5.7,<5.8", "django>=5.2,<6.1"} <= set(project["dependencies"])


def test_the_make_targets_that_the_readme_names_exist():
    targets = set(re.findall(r"^([a-z]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`?make ([a-z]+)", page("README.md").text)) - {"a"} <= targets
