"""The Django application of the sample shop."""

from django.apps import AppConfig


class DemoConfig(AppConfig):
    """Orders, payments, receipts and pictures of three small shops."""

    name = "project.demo"
    label = "demo"
    verbose_name = "Sample shop"
    default_auto_field = "django.db.models.BigAutoField"
