"""The settings of the tests, with the tasks of the matrix and the place where processes may be told to die."""

import os

from tests.settings import *  # noqa: F403
from tests.settings import INSTALLED_APPS

INSTALLED_APPS = ["tests.chaos", *(app for app in INSTALLED_APPS if app not in {"project.demo", "tests.sample"})]
if visibility := os.environ.get("CHAOS_VISIBILITY"):
    CELERY_BROKER_TRANSPORT_OPTIONS = {
        "visibility_timeout": int(visibility),
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
    }
