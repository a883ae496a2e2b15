"""The compose file: valid, closed to the outside, and patient enough with a worker that stops."""

import re

import pytest

from project.celery import app
from tests.deploy.material import COMPOSE, DEPLOY, compose, from_pip, seconds, verdict

OURS = {"web", "worker", "beat", "conductor", "flower", "migrate"}
STORES = {"postgres", "redis"}
SERVICES = compose()["services"]


def test_the_compose_schema_accepts_the_file():
    assert not verdict(from_pip("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", COMPOSE)


def test_yamllint_accepts_the_file():
    assert not verdict(from_pip("yamllint"), "--strict", "--config-file", DEPLOY / "yamllint.yaml", COMPOSE)


def test_the_services_are_those_of_the_platform():
    assert set(SERVICES) == OURS | STORES


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_a_port_is_published_on_loopback_only(name):
    assert all(str(port).startswith("127.0.0.1:") for port in SERVICES[name].get("ports", []))
    assert "network_mode" not in SERVICES[name]


@pytest.mark.parametrize("name", sorted(STORES))
def test_a_store_is_reachable_by_the_services_only(name):
    assert "ports" not in SERVICES[name]
    assert SERVICES[name]["networks"] == ["data"]
    assert compose()["networks"]["data"]["internal"] is True


@pytest.mark.parametrize("name", sorted(STORES))
def test_an_image_is_pinned_to_a_patch_release_and_keeps_its_data(name):
    assert re.fullmatch(rf"{name}:\d+\.\d+(\.\d+)?-alpine", SERVICES[name]["image"])
    volume, _, _ = SERVICES[name]["volumes"][0].partition(":")
    assert volume in compose()["volumes"]


def test_redis_writes_to_disk_and_evicts_nothing():
    command = " ".join(SERVICES["redis"]["command"])
    assert "--appendonly yes" in command
    assert "--maxmemory-policy noeviction" in command


@pytest.mark.parametrize("name", sorted(OURS))
def test_a_service_of_ours_runs_the_process_of_its_name(name):
    assert SERVICES[name]["command"] == [name]


@pytest.mark.parametrize("name", sorted(OURS))
def test_a_service_of_ours_can_gain_no_privileges(name):
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["read_only"] is True
    assert not service.get("privileged")
    assert "user" not in service


def test_a_stopping_worker_has_time_for_its_soft_shutdown():
    soft = app.conf.worker_soft_shutdown_timeout
    assert soft > 0
    assert soft + 10 <= seconds(SERVICES["worker"]["stop_grace_period"])


@pytest.mark.parametrize("name", sorted(OURS - {"migrate"}))
def test_nothing_starts_before_the_tables_and_the_broker_are_there(name):
    assert SERVICES[name]["depends_on"] == {
        "migrate": {"condition": "service_completed_successfully"},
        "redis": {"condition": "service_healthy"},
    }


def test_migrate_runs_once_after_the_database_is_there():
    assert SERVICES["migrate"]["restart"] == "no"
    assert SERVICES["migrate"]["depends_on"] == {"postgres": {"condition": "service_healthy"}}


@pytest.mark.parametrize("name", sorted(STORES))
def test_a_store_has_a_health_check(name):
    assert SERVICES[name]["healthcheck"]["test"]


def test_only_what_the_image_cannot_probe_goes_without_its_health_check():
    assert {name for name in OURS if "healthcheck" in SERVICES[name]} == {"conductor", "migrate"}


@pytest.mark.parametrize("secret", ["SECRET_KEY", "POSTGRES_PASSWORD", "FLOWER_BASIC_AUTH"])
def test_without_a_secret_compose_refuses_to_start(secret):
    uses = re.findall(rf"\$\{{{secret}(.{{0,2}})", COMPOSE.read_text())
    assert uses
    assert set(uses) == {":?"}


def test_the_password_of_flower_is_known_to_flower_alone():
    assert [name for name in SERVICES if "FLOWER_BASIC_AUTH" in SERVICES[name].get("environment", {})] == ["flower"]
