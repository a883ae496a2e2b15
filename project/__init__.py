"""The Django project: settings, the Celery application, and the demo."""

from project.celery import app as celery_app

__all__ = ["celery_app"]
