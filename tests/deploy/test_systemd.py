"""The systemd units: accepted by systemd, confined, and patient enough with a worker that stops."""

import re

import pytest

from project.celery import app
from tests.deploy.material import UNITS, directives, from_debian, seconds, verdict

NAMES = {unit.stem.rstrip("@").removeprefix("mainstay-"): unit for unit in UNITS}
HARDENING = {
    "NoNewPrivileges": "yes",
    "CapabilityBoundingSet": "",
    "PrivateDevices": "yes",
    "PrivateTmp": "yes",
    "ProtectHome": "yes",
    "ProtectSystem": "strict",
    "ProtectKernelModules": "yes",
    "ProtectKernelTunables": "yes",
    "RestrictSUIDSGID": "yes",
    "SystemCallFilter": "@system-service",
}
MOST_EXPOSED = 25  # tenths of systemd's exposure level: 0 is sealed, 100 is open

each_unit = pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)


def installable(unit, folder):
    """A copy as an administrator would enable it, with a command that exists on this machine."""
    text = re.sub(r"^(ExecStart\w*)=.*$", r"\1=/bin/true", unit.read_text(), flags=re.MULTILINE)
    copy = folder / unit.name.replace("@.", "@1.")
    copy.write_text(text)
    return copy


def test_there_is_a_unit_for_each_process():
    assert set(NAMES) == {"web", "worker", "beat", "conductor", "flower"}


@each_unit
def test_systemd_accepts_the_unit(unit, tmp_path):
    assert not verdict(from_debian("systemd-analyze"), "verify", "--man=no", installable(unit, tmp_path))


@each_unit
def test_systemd_finds_the_unit_well_confined(unit, tmp_path):
    analyze = from_debian("systemd-analyze")
    options = ["security", "--offline=true", f"--threshold={MOST_EXPOSED}"]
    assert not verdict(analyze, *options, installable(unit, tmp_path))


@each_unit
def test_the_unit_is_confined(unit):
    found = directives(unit)
    assert {name: found.get(name, ["(missing)"])[-1] for name in HARDENING} == HARDENING


@each_unit
def test_the_unit_runs_as_a_user_of_its_own_with_its_secrets_in_a_file(unit):
    found = directives(unit)
    assert found["User"] == ["mainstay"]
    assert found["EnvironmentFile"] == ["/etc/mainstay/env"]


@each_unit
def test_only_the_main_process_is_asked_to_stop_and_it_is_given_time(unit):
    found = directives(unit)
    assert found["Type"] == ["exec"]
    assert found["KillMode"] == ["mixed"]
    assert seconds(found["TimeoutStopSec"][0]) >= 15


@each_unit
def test_the_unit_is_started_again_when_it_ends(unit):
    assert directives(unit)["Restart"] == ["always"]


def test_a_stopping_worker_has_time_for_its_soft_shutdown():
    found = directives(NAMES["worker"])
    soft = app.conf.worker_soft_shutdown_timeout
    assert "REMAP_SIGTERM=SIGQUIT" in found["Environment"]
    assert soft > 0
    assert soft + 10 <= seconds(found["TimeoutStopSec"][0])


def test_there_may_be_any_number_of_workers():
    assert NAMES["worker"].name == "mainstay-worker@.service"
    assert "--hostname worker%i@%H" in directives(NAMES["worker"])["ExecStart"][0]


@pytest.mark.parametrize(("name", "listening"), [("web", "--bind 127.0.0.1:"), ("flower", "--address=127.0.0.1 ")])
def test_what_listens_listens_on_loopback(name, listening):
    assert listening in directives(NAMES[name])["ExecStart"][0]


def test_flower_is_not_started_without_a_password():
    assert directives(NAMES["flower"])["ExecStartPre"] == ["/usr/bin/test -n ${FLOWER_BASIC_AUTH}"]
