"""Our side of the comparison as an app of the project: its tasks are found by Celery."""

from django.apps import AppConfig


class BenchConfig(AppConfig):
    """The tasks that are measured."""

    name = "tests.bench"
    label = "bench"
