"""The settings of a Django project that has never heard of Mainstay, for the comparison with plain Celery.

They import nothing of this repository's project, whose package would install Mainstay.
"""

import os
from typing import Any
from urllib.parse import unquote, urlsplit

SECRET_KEY = "only-for-chaos"
INSTALLED_APPS = ["django.contrib.contenttypes"]
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"


def database(url: str) -> dict[str, Any]:
    """The entry of DATABASES for an address of the harness."""
    parts = urlsplit(url)
    if parts.scheme == "sqlite":
        options = {"timeout": 20, "transaction_mode": "IMMEDIATE", "init_command": "PRAGMA journal_mode=WAL"}
        return {"ENGINE": "django.db.backends.sqlite3", "NAME": url.removeprefix("sqlite:///"), "OPTIONS": options}
    host, _, port = parts.netloc.rpartition("@")[2].partition(":")
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": unquote(parts.path[1:]),
        "USER": parts.username,
        "HOST": unquote(host),
        "PORT": port,
        "CONN_MAX_AGE": 60,
        "CONN_HEALTH_CHECKS": True,
        "OPTIONS": {"connect_timeout": 5},
    }


DATABASES = {"default": database(os.environ.get("DATABASE_URL") or "sqlite:///db.sqlite3")}
