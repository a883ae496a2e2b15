"""The admin of jobs: pages for operators, shaped for millions of rows. Every button is a verb of ``jobs.control``."""

from __future__ import annotations

from django.apps import apps

from jobs.admin import acts, breakers, jobs, limits, lines, pauses, workers  # noqa: F401

if apps.is_installed("django_celery_beat"):
    from jobs.admin import schedules  # noqa: F401
