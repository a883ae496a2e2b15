"""Checks of what is around the jobs: the setting ``JOBS``, the apps beside them, the databases."""

from __future__ import annotations

from collections.abc import Iterator

from django.apps import apps
from django.conf import settings
from django.core.checks import CheckMessage, Info
from django.core.exceptions import ImproperlyConfigured
from django.db import DEFAULT_DB_ALIAS, connections, router

from jobs import conf
from jobs.checks.findings import error, warning


def of_settings() -> Iterator[CheckMessage]:
    """The ``JOBS`` setting."""
    try:
        given = conf.read(getattr(settings, "JOBS", {}))
    except ImproperlyConfigured as wrong:
        yield error("E001", str(wrong), "Correct JOBS in the settings; every entry has a default.", "JOBS")
        return
    if given.LEASE <= 2 * given.HEARTBEAT:
        yield error(
            "E003",
            f"The lease ({given.LEASE:g} s) is not longer than two heartbeats ({given.HEARTBEAT:g} s each): "
            "one late heartbeat would take a running job from its worker.",
            "Set JOBS['LEASE'] to more than twice JOBS['HEARTBEAT'].",
            "JOBS",
        )


def of_apps() -> Iterator[CheckMessage]:
    """What must be installed beside this app."""
    if not apps.is_installed("dlq"):
        yield warning(
            "W004",
            "The app 'dlq' is not installed: a failed job would have no dead letter, and could not be replayed.",
            "Add 'dlq' to INSTALLED_APPS and run manage.py migrate.",
            "INSTALLED_APPS",
        )


def of_databases() -> Iterator[CheckMessage]:
    """Where the rows live."""
    home = router.db_for_write(apps.get_model("jobs", "Job"))
    if apps.is_installed("dlq") and (letters := router.db_for_write(apps.get_model("dlq", "DeadLetter"))) != home:
        yield error(
            "E012",
            f"Jobs live in the database {home!r}, dead letters in {letters!r}: a failure and its letter could not "
            "commit together.",
            "Let DATABASE_ROUTERS send the apps 'jobs' and 'dlq' to the same database.",
            "DATABASE_ROUTERS",
        )
    if home != DEFAULT_DB_ALIAS:
        yield warning(
            "W008",
            f"Jobs live in the database {home!r}: what is enqueued inside a transaction of {DEFAULT_DB_ALIAS!r} does "
            "not commit or roll back with it.",
            f"Keep jobs in the database of your data, or enqueue inside transaction.atomic(using={home!r}); then "
            "silence this check.",
            "DATABASE_ROUTERS",
        )


def of_deployment() -> Iterator[CheckMessage]:
    """What a development machine may do."""
    if settings.DEBUG:
        yield warning(
            "W006",
            "DEBUG is on: workers and the conductor keep the text of every query in memory.",
            "Set DEBUG to False.",
            "DEBUG",
        )
    home = router.db_for_write(apps.get_model("jobs", "Job"))
    if "sqlite" in connections.databases[home]["ENGINE"]:
        yield Info(
            "Jobs live in SQLite: one machine, one writer at a time.",
            hint="It is sound for small sites on one machine; with more, use PostgreSQL.",
            obj="DATABASES",
            id="jobs.I001",
        )
