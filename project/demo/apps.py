"""The Django application of the sample shop."""

import logging

from django.apps import AppConfig


class DemoConfig(AppConfig):
    """Orders, payments, receipts and pictures of three small shops."""

    name = "project.demo"
    label = "demo"
    verbose_name = "Sample shop"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Keep httpx from logging a line per request: the jobs tell what came of it."""
        logging.getLogger("httpx").setLevel(logging.WARNING)
