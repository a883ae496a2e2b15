"""System checks: what is declared or set in a way that loses, doubles or strands jobs, each with its remedy.

They read settings and declarations only: never the broker, and the database only with ``--database``.
"""

from __future__ import annotations

from typing import Any, Final

from django.apps import apps
from django.core.checks import CheckMessage, Tags, register
from django.db import DatabaseError

from jobs import publisher
from jobs.checks import celery, surroundings, tasks
from jobs.checks.findings import error, warning
from jobs.errors import JobsError

INSTALL: Final = "from jobs.celery import install; install(app)"


@register("jobs")
def check(app_configs: Any = None, **kwargs: Any) -> list[CheckMessage]:
    """What is wrong in any environment."""
    found = [*surroundings.of_settings(), *surroundings.of_apps(), *surroundings.of_databases()]
    if any(message.id == "jobs.E001" for message in found):
        return found
    try:
        app = publisher.in_use().app
    except JobsError:
        return [*found, _not_installed()]
    return [*found, *celery.of_celery(app), *tasks.of_tasks(app)]


@register("jobs", deploy=True)
def check_deployment(app_configs: Any = None, **kwargs: Any) -> list[CheckMessage]:
    """What is wrong in production only."""
    try:
        app = publisher.in_use().app
    except JobsError:
        return [*surroundings.of_deployment()]
    return [*surroundings.of_deployment(), *celery.of_deployment(app)]


@register(Tags.database)
def check_schedules(app_configs: Any = None, databases: Any = None, **kwargs: Any) -> list[CheckMessage]:
    """Enabled schedules that cannot fire; they are rows, so this runs with ``--database`` only."""
    if not databases or not apps.is_installed("django_celery_beat"):
        return []
    from jobs.schedule import preview

    try:
        found = preview.problems()
    except DatabaseError:  # the tables are not there yet
        return []
    remedy = "Correct or disable it in the admin (Periodic tasks)."
    return [warning("W013", f"This schedule is enabled and cannot fire: {why}", remedy, name) for name, why in found]


@register(Tags.database)
def check_sharing(app_configs: Any = None, databases: Any = None, **kwargs: Any) -> list[CheckMessage]:
    """What live processes share by mistake: a name, a broker; with ``--database`` only."""
    if not databases:
        return []
    from jobs import epoch, lifecycle, roll

    try:
        names, broker = roll.named_alike(lifecycle.database_now() - roll.SILENT), epoch.shared()
    except DatabaseError:  # the tables are not there yet
        return []
    named, apart = "Start each with its own name, as in -n mail1@%h.", "Correct broker_url in one of them."
    found: list[CheckMessage] = [warning("W014", name, named, "workers") for name in names]
    return [*found, warning("W015", broker, apart, "broker_url")] if broker else found


def _not_installed() -> CheckMessage:
    return error(
        "E002",
        "Mainstay is not installed on a Celery app, or the module of that app is not imported: calls would not "
        "become jobs.",
        f"Add to the module of the Celery app: {INSTALL}. Import it in the __init__ of the project's package.",
        "Celery",
    )
