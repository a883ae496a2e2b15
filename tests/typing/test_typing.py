"""A type checker knows the parameters and the result of ``delay()``, for classes and for functions."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
pytestmark = pytest.mark.slow


def lines_refused_by_mypy(name, cache):
    """The lines of a file in which mypy finds errors."""
    found = checked("mypy", "--config-file", HERE / "mypy.ini", "--cache-dir", cache, "--no-error-summary", HERE / name)
    return {int(line) for line in re.findall(rf"{name}:(\d+): error:", found)}


def lines_refused_by_pyright(name, _cache):
    """The lines of a file in which pyright finds errors."""
    found = json.loads(checked("pyright", "--pythonpath", sys.executable, "--outputjson", HERE / name))
    errors = [one for one in found["generalDiagnostics"] if one["severity"] == "error"]
    return {one["range"]["start"]["line"] + 1 for one in errors}


def checked(program, *arguments):
    done = subprocess.run(
        [sys.executable, "-m", program, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.stdout


def marked(name):
    """The lines of a file that say they are to be refused."""
    return {n for n, line in enumerate((HERE / name).read_text().splitlines(), 1) if line.endswith("# refused")}


@pytest.fixture(scope="module", params=["mypy", "pyright"])
def refused(request, tmp_path_factory):
    """The lines of a file that a type checker refuses."""
    if importlib.util.find_spec(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    ask = {"mypy": lines_refused_by_mypy, "pyright": lines_refused_by_pyright}[request.param]
    cache = tmp_path_factory.mktemp("cache")
    return lambda name: ask(name, cache)


def test_calls_that_fit_the_body_are_accepted_with_the_type_of_its_result(refused):
    assert refused("accepted.py") == set()


def test_calls_that_do_not_fit_the_body_are_refused_each(refused):
    assert refused("refused.py") == marked("refused.py")


def test_there_is_something_to_refuse():
    assert len(marked("refused.py")) > 15
