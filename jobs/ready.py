"""Django's apps, set up where nobody did it yet: Celery's own commands (status, inspect, call, result) do not."""

from __future__ import annotations

import django
from django.apps import apps


def ensure() -> None:
    """Set Django up, unless that is done or being done."""
    if not apps.ready and not getattr(apps, "loading", False):
        django.setup()
