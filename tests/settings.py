"""The project's settings with the sample tasks installed; ``TEST_JOBS`` gives a process its own ``JOBS``, as JSON."""

import json
import os

from project.settings import *  # noqa: F403
from project.settings import INSTALLED_APPS

INSTALLED_APPS = [*INSTALLED_APPS, "tests.sample"]
JOBS = json.loads(os.environ.get("TEST_JOBS", "{}"))
