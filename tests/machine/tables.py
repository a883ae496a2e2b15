"""The tables of the platform, emptied between two examples."""

from __future__ import annotations

from django.apps import apps
from django.contrib.auth.models import Group
from django.db import connection
from django.db.models import Model

from tests.machine import ledger


def _refers(model: type[Model]) -> bool:
    """Whether its rows refer to others, and have to go before them."""
    return any(field.many_to_one for field in model._meta.fields)


def emptied() -> None:
    """Begin anew: no jobs, no letters, nothing witnessed."""
    models = [model for app in ("dlq", "jobs") for model in apps.get_app_config(app).get_models()]
    with connection.cursor() as cursor:
        for model in sorted(models, key=lambda model: (model.__name__ == "Job", not _refers(model))):
            if model.__name__ != "DeadLetter":
                cursor.execute(f"DELETE FROM {model._meta.db_table}") if model.__name__ != "Job" else None
        cursor.execute("DELETE FROM dlq_deadletter")
        cursor.execute("DELETE FROM jobs_job")
    Group.objects.all().delete()
    ledger.forget()
