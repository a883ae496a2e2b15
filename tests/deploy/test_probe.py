"""The health check of the image, asked about real listeners."""

import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from tests.deploy.material import DEPLOY, DOCKERFILE


class Listener(HTTPServer):
    """Answers every GET with ``status`` and remembers what it was asked."""

    status = 200

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.asked = []


class Answer(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append((self.path, self.headers["Host"]))
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, *args):
        pass


@pytest.fixture
def listener():
    server = Listener()
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def stage(tmp_path):
    """A celery command that finds nobody, and the file that names the process."""
    celery = tmp_path / "celery"
    celery.write_text('#!/bin/sh\necho "asked: $*" >&2\nexit "${CELERY_EXIT:-69}"\n')
    celery.chmod(0o755)
    return {**os.environ, "PATH": f"{tmp_path}:/usr/bin:/bin", "MAINSTAY_ROLE_FILE": str(tmp_path / "role")}


def probe(environ, *role):
    return subprocess.run(
        [sys.executable, DEPLOY / "probe.py", *role], env=environ, capture_output=True, text=True, check=False
    )


def ask_web(stage, listener, **environ):
    return probe({**stage, "PROBE_WEB_PORT": str(listener.server_port), **environ}, "web")


@pytest.mark.parametrize("status", [200, 301])
def test_web_is_well_when_it_answers_its_login_page(stage, listener, status):
    listener.status = status
    assert ask_web(stage, listener).returncode == 0


@pytest.mark.parametrize("status", [400, 404, 500, 503])
def test_web_is_ill_when_it_answers_with_an_error(stage, listener, status):
    listener.status = status
    asked = ask_web(stage, listener, ALLOWED_HOSTS="jobs.example,localhost")
    assert asked.returncode == 1
    assert f"answered {status} for host jobs.example" in asked.stderr


def test_web_is_ill_when_nobody_listens(stage, listener):
    listener.server_close()
    assert ask_web(stage, listener).returncode == 1


@pytest.mark.parametrize(
    ("allowed", "host"),
    [
        ("jobs.example, localhost", "jobs.example"),
        (".example", "example"),
        ("*", "localhost"),
        ("", "localhost"),
    ],
)
def test_web_is_asked_under_a_name_that_it_allows(stage, listener, allowed, host):
    ask_web(stage, listener, ALLOWED_HOSTS=allowed)
    assert listener.asked == [("/admin/login/", host)]


def test_flower_is_asked_for_its_health_page(stage, listener):
    assert probe({**stage, "PROBE_FLOWER_PORT": str(listener.server_port)}, "flower").returncode == 0
    assert listener.asked[0][0] == "/healthcheck"


@pytest.mark.parametrize(("role", "node"), [("worker", "celery@"), ("beat", "celerybeat@")])
def test_a_worker_or_beat_that_does_not_answer_is_ill(stage, role, node):
    silent = probe(stage, role)
    assert silent.returncode == 1
    assert f"--destination {node}" in silent.stderr


def test_a_worker_that_answers_is_well(stage):
    assert probe({**stage, "CELERY_EXIT": "0"}, "worker").returncode == 0


def test_the_process_is_the_one_that_the_container_was_started_as(stage, tmp_path):
    (tmp_path / "role").write_text("beat\n")
    assert probe(stage).stderr.startswith("beat: ")


def test_a_one_shot_command_is_not_probed(stage):
    assert probe(stage, "migrate").returncode == 0


def test_the_image_uses_the_probe():
    text = DOCKERFILE.read_text()
    assert "COPY deploy/probe.py /usr/local/bin/mainstay-probe" in text
    assert 'CMD ["mainstay-probe"]' in text
