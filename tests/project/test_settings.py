"""What the environment says is understood, or refused in one line that names the remedy."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from django.core.exceptions import ImproperlyConfigured

from jobs import conf
from project import environment
from tests.children import ROOT

HERE = Path("/srv/shop")
SECRET = "x" * 60


def run(*command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the project with nothing but ``variables`` in its environment."""
    environ = {"PATH": os.environ["PATH"], **variables}
    arguments = [sys.executable, "manage.py", *command]
    return subprocess.run(arguments, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60, check=False)


def test_a_postgres_address_names_user_password_host_port_and_database() -> None:
    entry = environment.database("postgres://ann:s%3Acret@db.example:5433/shop", HERE)
    named = {key: entry[key] for key in ("USER", "PASSWORD", "HOST", "PORT", "NAME")}
    assert named == {
        "USER": "ann",
        "PASSWORD": "s:cret",
        "HOST": "db.example",
        "PORT": "5433",
        "NAME": "shop",
    }


@pytest.mark.parametrize(
    ("address", "host", "port"),
    [("db", "db", ""), ("[::1]:6000", "::1", "6000"), ("[::1]", "::1", ""), ("%2Fvar%2FRun", "/var/Run", "")],
)
def test_a_postgres_host_may_be_a_name_an_ipv6_address_or_a_socket(address: str, host: str, port: str) -> None:
    entry = environment.database(f"postgresql://ann@{address}/shop", HERE)
    assert (entry["HOST"], entry["PORT"]) == (host, port)


def test_what_follows_the_question_mark_goes_to_the_driver() -> None:
    assert environment.database("postgres://db/shop?sslmode=require", HERE)["OPTIONS"]["sslmode"] == "require"


def test_a_postgres_server_that_is_gone_without_a_word_is_noticed_before_a_lease_ends() -> None:
    options = environment.database("postgres://db/shop", HERE)["OPTIONS"]
    unanswered = options["keepalives_idle"] + options["keepalives_count"] * options["keepalives_interval"]
    lease = conf.Settings().LEASE
    assert options["keepalives"] == 1
    assert 0 < max(options["connect_timeout"], unanswered, options["tcp_user_timeout"] / 1000) < lease


def test_an_address_may_say_how_long_a_silent_server_is_waited_for() -> None:
    options = environment.database("postgres://db/shop?tcp_user_timeout=500", HERE)["OPTIONS"]
    assert options["tcp_user_timeout"] == "500"


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///jobs.sqlite3", "/srv/shop/jobs.sqlite3"),
        ("sqlite:////var/jobs.sqlite3", "/var/jobs.sqlite3"),
    ],
)
def test_a_sqlite_path_is_relative_after_three_slashes_and_absolute_after_four(url: str, path: str) -> None:
    assert environment.database(url, HERE)["NAME"] == path


def test_sqlite_is_set_up_for_several_writers() -> None:
    options = environment.database("sqlite:///jobs.sqlite3", HERE)["OPTIONS"]
    assert options["transaction_mode"] == "IMMEDIATE"
    assert "journal_mode=WAL" in options["init_command"]


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("mysql://ann@db/shop", "its scheme is not one of"),
        ("/var/jobs.sqlite3", "its scheme is not one of"),
        ("sqlite://jobs.sqlite3", "three slashes"),
        ("sqlite:///:memory:", "it must name a file"),
        ("sqlite:///", "it must name a file"),
        ("postgres://db", "the name of one database"),
        ("postgres://db/shop/orders", "the name of one database"),
        ("postgres://db:port/shop", "'port' is not a port number"),
        ("postgres://db:70000/shop", "'70000' is not a port number"),
        ("postgres://[db/shop", "not an address"),
    ],
)
def test_a_database_address_that_cannot_be_used_says_why_and_how_to_write_it(url: str, reason: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=reason) as refusal:
        environment.database(url, HERE)
    assert "Write postgres://user:password@host:5432/name or sqlite:///file.sqlite3." in str(refusal.value)


def test_a_refused_address_does_not_show_its_password() -> None:
    with pytest.raises(ImproperlyConfigured) as refusal:
        environment.database("mysql://ann:hush@db/shop", HERE)
    assert "hush" not in str(refusal.value)


def test_a_flag_that_is_neither_yes_nor_no_is_refused() -> None:
    with pytest.raises(ImproperlyConfigured, match="DEBUG='maybe' is neither yes nor no"):
        environment.flag("DEBUG", environ={"DEBUG": "maybe"})


def test_a_number_that_is_none_is_refused() -> None:
    with pytest.raises(ImproperlyConfigured, match="EMAIL_PORT='smtp' is not a whole number"):
        environment.number("EMAIL_PORT", 25, environ={"EMAIL_PORT": "smtp"})


@pytest.mark.parametrize("name", ["Europe/Atlantis", "../etc", "Berlin"])
def test_a_time_zone_that_does_not_exist_is_refused(name: str) -> None:
    with pytest.raises(ImproperlyConfigured, match="is not a time zone"):
        environment.time_zone({"TIME_ZONE": name})


def test_a_log_level_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ImproperlyConfigured, match="LOG_LEVEL='LOUD' is not a level"):
        environment.log_level({"LOG_LEVEL": "loud"})


def test_a_command_without_a_secret_key_says_in_one_line_what_to_set() -> None:
    answer = run("check")
    assert answer.returncode == 1
    assert re.fullmatch(r"manage.py: SECRET_KEY is not set\. .*DEBUG=1.*\n", answer.stderr)


def test_debug_needs_no_secret_key() -> None:
    assert run("check", DEBUG="1").returncode == 0


def test_a_production_environment_passes_the_deployment_checks() -> None:
    answer = run("check", "--deploy", "--fail-level", "WARNING", SECRET_KEY="".join(map(chr, range(48, 123))))
    assert answer.returncode == 0, answer.stderr


def test_a_database_that_does_not_answer_is_one_line_with_its_address_and_no_password() -> None:
    answer = run("migrate", SECRET_KEY=SECRET, DATABASE_URL="postgres://ann:hush@127.0.0.1:9/shop")
    assert answer.returncode == 1
    assert re.fullmatch(r"manage.py: the database \(DATABASE_URL: postgres://ann:\*\*\*@127.*\n", answer.stderr)


def test_a_traceback_is_there_for_those_who_ask() -> None:
    answer = run("migrate", "--traceback", SECRET_KEY=SECRET, DATABASE_URL="postgres://ann@127.0.0.1:9/shop")
    assert "Traceback" in answer.stderr


def test_every_queue_has_an_exchange_of_its_own() -> None:
    from project.celery import app

    routes = {name: (queue.exchange.name, queue.routing_key) for name, queue in app.amqp.queues.items()}
    assert routes == {name: (name, name) for name in ("default", "payments", "mail", "media", "reports", "suppliers")}


def test_a_queue_that_the_project_does_not_declare_is_refused() -> None:
    from celery.exceptions import QueueNotFound

    from project.celery import app

    with pytest.raises((QueueNotFound, KeyError)):
        app.amqp.queues["paymnets"]
