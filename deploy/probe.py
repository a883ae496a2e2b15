#!/usr/bin/env python
"""Whether the process in this container answers: exit 0 if it does, 1 with a reason if it does not."""

import os
import socket
import subprocess
import sys
from http.client import HTTPConnection, HTTPException
from pathlib import Path

TIMEOUT = 10.0  # seconds
ROLE_FILE = "/tmp/mainstay-role"  # noqa: S108 - the container's own, and its only place to write


def main() -> str | None:
    """Probe the process that the command line names, or the one that this container was started as."""
    role = sys.argv[1] if len(sys.argv) > 1 else started_role()
    probe = PROBES.get(role)
    problem = probe() if probe else ""
    return f"{role}: {problem}" if problem else None


def started_role() -> str:
    """The name that the entrypoint wrote down when it started."""
    return Path(os.environ.get("MAINSTAY_ROLE_FILE", ROLE_FILE)).read_text().strip()


def web() -> str:
    """What is wrong with the web process, asked for its login page as a browser would ask."""
    first_host = os.environ.get("ALLOWED_HOSTS", "").split(",")[0].strip().lstrip(".*")
    return http_problem(int(os.environ.get("PROBE_WEB_PORT", "8000")), "/admin/login/", first_host or "localhost")


def flower() -> str:
    """What is wrong with Flower; its health page needs no password."""
    return http_problem(int(os.environ.get("PROBE_FLOWER_PORT", "5555")), "/healthcheck", "localhost")


def worker() -> str:
    """What is wrong with this container's worker, asked over the broker."""
    return ping_problem(f"celery@{socket.gethostname()}")


def beat() -> str:
    """What is wrong with this container's beat: it stops answering when its loop stalls."""
    return ping_problem(f"celerybeat@{socket.gethostname()}")


def http_problem(port: int, path: str, host: str) -> str:
    """Why a GET on loopback was not answered with success or a redirect; empty if it was."""
    connection = HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
    try:
        connection.request("GET", path, headers={"Host": host, "X-Forwarded-Proto": "https"})
        status = connection.getresponse().status
    except (OSError, HTTPException) as error:
        return f"no answer on port {port} ({error})"
    finally:
        connection.close()
    return "" if status < 400 else f"{path} answered {status} for host {host}"


def ping_problem(node: str) -> str:
    """Why the node did not answer Celery's ping; empty if it did."""
    command = ["celery", "--app", "project", "inspect", "ping", "--timeout", "5", "--destination", node]
    ping = subprocess.run(command, capture_output=True, text=True, check=False)
    return "" if ping.returncode == 0 else f"{node} does not answer: {ping.stderr.strip()[-200:]}"


# The conductor and one-shot commands have nothing to ask yet: they are well while they run.
PROBES = {"web": web, "worker": worker, "beat": beat, "flower": flower}

if __name__ == "__main__":
    sys.exit(main())
