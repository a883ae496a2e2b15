"""The project's settings, with the tasks that are measured in place of the demo's."""

from project.settings import *  # noqa: F403
from project.settings import INSTALLED_APPS

INSTALLED_APPS = ["tests.bench", *(app for app in INSTALLED_APPS if app != "project.demo")]
