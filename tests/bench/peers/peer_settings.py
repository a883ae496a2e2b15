"""Django's settings of a peer: a database, and what ``BENCH_SETTINGS`` says, which the report prints word for word."""

import json
import os
from typing import Any
from urllib.parse import unquote, urlsplit

SECRET_KEY = "only-for-bench-" + "x" * 50
INSTALLED_APPS = ["django.contrib.contenttypes"]
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
# Lines for each job cost everybody time, and say nothing here.
LOGGING = {"version": 1, "disable_existing_loggers": False, "root": {"level": "WARNING"}}


def database(url: str) -> dict[str, Any]:
    """The entry of DATABASES for the private server, as Django's documentation advises for a server in production."""
    parts = urlsplit(url)
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": unquote(parts.path[1:]),
        "USER": parts.username,
        "HOST": unquote(parts.netloc.rpartition("@")[2]),
        "CONN_MAX_AGE": 60,
        "CONN_HEALTH_CHECKS": True,
    }


CELERY_BROKER_URL = os.environ["BROKER_URL"]
DATABASES = {"default": database(os.environ["DATABASE_URL"])}
globals().update(json.loads(os.environ["BENCH_SETTINGS"]))
