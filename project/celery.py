"""The Celery application of the project, with Mainstay installed."""

import os
from importlib.util import find_spec

from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")

app = Celery("project")
app.config_from_object("django.conf:settings", namespace="CELERY")
if find_spec("jobs.celery"):  # TEMPORARY
    from jobs.celery import install

    install(app)
app.autodiscover_tasks()
