"""The variables: explained where they are filled in, read where they arrive, and no secret among them."""

import re

import pytest

from tests.deploy.material import COMPOSE, DEPLOY, GUIDE, ROOT, UNITS, example

SECRETS = {"SECRET_KEY", "FLOWER_BASIC_AUTH", "POSTGRES_PASSWORD"}
FILES = sorted(
    path for path in DEPLOY.rglob("*") if path.is_file() and path.name != ".env" and "__pycache__" not in path.parts
)
# Read by the programs themselves: gunicorn and Flower.
KNOWN_TO_PROGRAMS = {"WEB_CONCURRENCY", "FLOWER_BASIC_AUTH"}

each_file = pytest.mark.parametrize("path", [*FILES, GUIDE], ids=lambda path: path.name)


def readers():
    """Everything that reads variables: the settings, compose, the units and the programs of the image."""
    settings = (ROOT / "project" / name for name in ("settings.py", "environment.py"))
    programs = (DEPLOY / name for name in ("entrypoint.sh", "probe.py"))
    return "\n".join(path.read_text() for path in (*settings, COMPOSE, *UNITS, *programs))


def asked_by(*paths):
    """The variables that compose or systemd fills in from the environment."""
    return {name for path in paths for name in re.findall(r"\$\{([A-Z_]+)", path.read_text())}


def read_by_settings():
    """The variables that the settings read."""
    text = (ROOT / "project" / "settings.py").read_text()
    return set(re.findall(r"(?:flag|words|get)\(\"([A-Z_]+)\"", text)) | {"SECRET_KEY"}


def set_by_compose():
    """The variables that compose hands to a container."""
    return set(re.findall(r"^ +([A-Z_]+): ", COMPOSE.read_text(), flags=re.MULTILINE))


@pytest.mark.parametrize("name", sorted(example()))
def test_a_variable_of_the_example_is_read_by_something(name):
    assert name in KNOWN_TO_PROGRAMS or re.search(rf"\$\{{{name}\b|\"{name}\"", readers())


@pytest.mark.parametrize("name", sorted(asked_by(COMPOSE, *UNITS)))
def test_a_variable_that_compose_or_a_unit_asks_for_is_in_the_example(name):
    assert name in example()


@pytest.mark.parametrize("name", sorted(read_by_settings() - {"DEBUG", "STATIC_ROOT"}))
def test_a_variable_that_the_settings_read_can_be_set_in_both_deployments(name):
    assert name in example()
    assert name in set_by_compose()


def test_the_example_names_each_variable_once_and_explains_it():
    lines = (DEPLOY / "env.example").read_text().splitlines()
    names = [line.split("=")[0] for line in lines if line and not line.startswith("#")]
    blocks = "\n".join(lines).split("\n\n")
    assert len(names) == len(set(names))
    assert all(block.startswith("#") for block in blocks)


def test_debug_is_never_offered():
    assert "DEBUG" not in example()
    assert "DEBUG:" not in COMPOSE.read_text()


def test_a_secret_is_left_empty():
    assert {name for name, value in example().items() if name in SECRETS and not value} == SECRETS


@pytest.mark.parametrize("name", ["DATABASE_URL", "BROKER_URL", "EMAIL_HOST"])
def test_an_address_in_the_example_is_on_loopback_and_without_a_password(name):
    assert re.fullmatch(r"(\w+://)?(\w+@)?127\.0\.0\.1(:\d+)?(/\w+)?", example()[name])


def test_the_filled_in_copy_stays_out_of_version_control():
    assert ".env" in (DEPLOY / ".gitignore").read_text().splitlines()


@each_file
def test_no_file_holds_a_secret(path):
    text = path.read_text()
    assert "PRIVATE KEY" not in text
    assert not re.search(r"://[\w.-]+:(?!\$\{|password@)[^\s@/]+@", text), "a password in an address"
    assert not [word for word in re.findall(r"[A-Za-z0-9+/_-]{32,}", text) if looks_random(word)]
    assert not re.search(r"(?:SECRET|PASSWORD|AUTH|TOKEN)\w*(?:=|: )(?![$\"?]|user:password)[^\s`]{6,}", text)


def looks_random(word):
    """Whether a long word mixes digits, capitals and small letters, as a key does and a path does not.

    >>> looks_random("9fK2hLx0Zq81mNvB4tYw7cRd6sPa3jGe"), looks_random("docs/how-to/deploy/environment-file")
    (True, False)
    """
    return all(re.search(kind, word) for kind in ("[0-9]", "[A-Z]", "[a-z]")) or bool(
        re.fullmatch(r"[0-9a-f]{32,}", word)
    )


@each_file
def test_no_file_holds_a_path_of_somebodys_machine(path):
    assert not re.search(r"/(?:work|root|home|Users|tmp/\w+/)\b", path.read_text().replace("ProtectHome", ""))
