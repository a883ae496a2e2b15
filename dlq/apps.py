"""Django's door to the dlq app."""

from __future__ import annotations

from django.apps import AppConfig


class DlqConfig(AppConfig):
    """Connects the capture of dead letters to what the jobs app announces."""

    name = "dlq"
    verbose_name = "Dead letters"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Listen inside the transactions that record failures and replays."""
        from dlq import capture

        capture.connect()
