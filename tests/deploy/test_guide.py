"""The guide names only files, variables, services and units that exist."""

import re

import pytest

from tests.deploy.material import GUIDE, ROOT, UNITS, compose, example

TEXT = GUIDE.read_text()


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\bdeploy/[\w@./-]*\w", TEXT)) - {"deploy/.env"}))
def test_a_file_that_the_guide_names_exists(path):
    assert (ROOT / path).exists()


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`([A-Z]+_[A-Z_]+|HTTPS)(?:=\S*)?`", TEXT))))
def test_a_variable_that_the_guide_names_is_in_the_example(name):
    assert name in example() or name == "REMAP_SIGTERM"


@pytest.mark.parametrize("service", sorted(compose()["services"]))
def test_the_guide_says_what_each_service_is(service):
    assert re.search(rf"\| `{service}`", TEXT)


@pytest.mark.parametrize("unit", sorted(set(re.findall(r"mainstay-[a-z]+", TEXT)) - {"mainstay-probe"}))
def test_a_unit_that_the_guide_names_exists(unit):
    assert unit in {path.stem.rstrip("@") for path in UNITS}
