"""Django's door to the jobs app."""

from __future__ import annotations

from django.apps import AppConfig, apps


class JobsConfig(AppConfig):
    """Registers Mainstay's checks, and watches the schedules where django-celery-beat is installed."""

    name = "jobs"
    verbose_name = "Jobs"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Register the system checks; listen to edits of schedules."""
        from jobs import checks  # noqa: F401

        if apps.is_installed("django_celery_beat"):
            from jobs.schedule import edits

            edits.watch()
