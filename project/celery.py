"""The Celery application of the project, with Mainstay installed."""

import os

from celery import Celery
from celery.signals import setup_logging

from jobs.celery import install

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")

app = Celery("project")
app.config_from_object("django.conf:settings", namespace="CELERY")
install(app)
app.autodiscover_tasks()


@setup_logging.connect
def log_as_django_does(**_: object) -> None:
    """Keep Celery from replacing the handlers and levels of LOGGING; LOG_LEVEL sets the level."""
