"""Reading the process environment: each value is understood, or refused in one sentence with the remedy."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qsl, unquote, urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from django.core.exceptions import ImproperlyConfigured

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
YES, NO = {"1", "true", "yes", "on"}, {"", "0", "false", "no", "off"}

SQLITE_OPTIONS = {
    "timeout": 20,
    # A write transaction that starts as a reader cannot wait for another writer; it fails at once.
    "transaction_mode": "IMMEDIATE",
    "init_command": "PRAGMA journal_mode=WAL",
}

POSTGRESQL_OPTIONS = {
    "connect_timeout": 5,
    # A server that is gone without a word is noticed within about ten seconds, well before a lease ends.
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,  # milliseconds
}


def flag(name: str, default: bool = False, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether the variable ``name`` says yes.

    >>> flag("DEBUG", environ={"DEBUG": "on"}), flag("DEBUG", environ={})
    (True, False)
    """
    text = environ.get(name)
    if text is None:
        return default
    if (word := text.strip().lower()) in YES | NO:
        return word in YES
    raise ImproperlyConfigured(f"{name}={text!r} is neither yes nor no. Set it to 1 or 0.")


def words(name: str, default: str = "", environ: Mapping[str, str] = os.environ) -> list[str]:
    """The comma-separated words of the variable ``name``.

    >>> words("ALLOWED_HOSTS", environ={"ALLOWED_HOSTS": "a.example, b.example"})
    ['a.example', 'b.example']
    """
    return [word.strip() for word in environ.get(name, default).split(",") if word.strip()]


def number(name: str, default: int, environ: Mapping[str, str] = os.environ) -> int:
    """The whole number that the variable ``name`` holds."""
    text = environ.get(name) or str(default)
    if not text.strip().isdigit():
        raise ImproperlyConfigured(f"{name}={text!r} is not a whole number. Set it to one, as in {name}={default}.")
    return int(text)


def log_level(environ: Mapping[str, str] = os.environ) -> str:
    """The level that LOG_LEVEL names.

    >>> log_level(environ={"LOG_LEVEL": "debug"})
    'DEBUG'
    """
    level = environ.get("LOG_LEVEL", "INFO").upper()
    if level not in LEVELS:
        raise ImproperlyConfigured(f"LOG_LEVEL={level!r} is not a level. Set it to one of {', '.join(LEVELS)}.")
    return level


def time_zone(environ: Mapping[str, str] = os.environ) -> str:
    """The time zone that TIME_ZONE names."""
    name = environ.get("TIME_ZONE") or "UTC"
    try:
        return ZoneInfo(name).key
    except (ZoneInfoNotFoundError, ValueError) as error:
        raise ImproperlyConfigured(f"TIME_ZONE={name!r} is not a time zone. Write it as Europe/Berlin.") from error


def queue_kind(environ: Mapping[str, str] = os.environ) -> Literal["classic", "quorum"]:
    """The kind of queue that RABBITMQ_QUEUES names; other brokers have one kind only.

    >>> queue_kind(environ={"RABBITMQ_QUEUES": "quorum"})
    'quorum'
    """
    kind = environ.get("RABBITMQ_QUEUES") or "classic"
    if kind == "classic":
        return "classic"
    if kind == "quorum":
        return "quorum"
    raise ImproperlyConfigured(f"RABBITMQ_QUEUES={kind!r} is not a kind of queue. Set it to classic or quorum.")


def secret_key(debug: bool, environ: Mapping[str, str] = os.environ) -> str:
    """SECRET_KEY, which only a project in DEBUG may go without."""
    if key := environ.get("SECRET_KEY", ""):
        return key
    if debug:
        return "django-insecure-for-development-only"
    raise ImproperlyConfigured(
        "SECRET_KEY is not set. Put a long random string into the environment variable SECRET_KEY "
        "(or set DEBUG=1 on a development machine)."
    )


def database(url: str, base: Path) -> dict[str, Any]:
    """The entry of DATABASES that ``url`` names; a relative SQLite path is taken from ``base``.

    >>> database("sqlite:///jobs.sqlite3", Path("/srv"))["NAME"]
    '/srv/jobs.sqlite3'
    >>> database("postgres://ann:s%40fe@db:5433/shop", Path("/srv"))["PASSWORD"]
    's@fe'
    """
    try:
        scheme = urlsplit(url).scheme
    except ValueError as error:
        raise refused(url, f"it is not an address ({error})") from error
    if scheme == "sqlite":
        return sqlite(url, base)
    if scheme in {"postgres", "postgresql"}:
        return postgresql(url)
    raise refused(url, "its scheme is not one of sqlite, postgres or postgresql")


def sqlite(url: str, base: Path) -> dict[str, Any]:
    """The entry for a SQLite file, set up so that several processes can write."""
    parts = urlsplit(url)
    if parts.netloc:
        raise refused(url, "a SQLite path follows three slashes")
    path = unquote(parts.path).removeprefix("/")
    if path in {"", ":memory:"}:
        raise refused(url, "a worker cannot see another process's memory, so it must name a file")
    return {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": str(base / path),
        "OPTIONS": dict(SQLITE_OPTIONS),
    }


def postgresql(url: str) -> dict[str, Any]:
    """The entry for a PostgreSQL server; a host that starts with %2F is the folder of a Unix socket."""
    parts = urlsplit(url)
    account, _, address = parts.netloc.rpartition("@")
    user, _, password = account.partition(":")
    host, port = host_and_port(url, address)
    name = unquote(parts.path).removeprefix("/")
    if not name or "/" in name:
        raise refused(url, "it must end with /name, the name of one database")
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": name,
        "USER": unquote(user),
        "PASSWORD": unquote(password),
        "HOST": host,
        "PORT": port,
        "CONN_MAX_AGE": 60,
        "CONN_HEALTH_CHECKS": True,
        "OPTIONS": {**POSTGRESQL_OPTIONS, **dict(parse_qsl(parts.query))},
    }


def host_and_port(url: str, address: str) -> tuple[str, str]:
    """The two halves of ``address``; an IPv6 address stands in brackets."""
    host, colon, port = address.rpartition(":")
    if not colon or address.endswith("]"):
        host, port = address, ""
    if port and not (port.isdigit() and 0 < int(port) < 65536):
        raise refused(url, f"{port!r} is not a port number")
    return unquote(host).removeprefix("[").removesuffix("]"), port


def refused(url: str, reason: str) -> ImproperlyConfigured:
    """The error for a database address that cannot be understood."""
    return ImproperlyConfigured(
        f"DATABASE_URL={without_password(url)!r} cannot be used: {reason}. "
        "Write postgres://user:password@host:5432/name or sqlite:///file.sqlite3."
    )


def without_password(url: str) -> str:
    """The address as it may be shown.

    >>> without_password("postgres://ann:secret@db/shop")
    'postgres://ann:***@db/shop'
    """
    scheme, separator, rest = url.partition("://")
    account, at, address = rest.rpartition("@")
    user, colon, _ = account.partition(":")
    return f"{scheme}{separator}{user}{':***' if colon else ''}{at}{address}"
