"""The project's settings with the sample tasks installed; ``TEST_JOBS`` gives a process its own ``JOBS``, as JSON.

``TEST_WINDOW`` and ``TEST_PREFETCH`` are the seconds of a worker's soft shutdown and its prefetch.
"""

import json
import os

from project.settings import *  # noqa: F403
from project.settings import INSTALLED_APPS

INSTALLED_APPS = [*INSTALLED_APPS, "tests.sample"]
JOBS = json.loads(os.environ.get("TEST_JOBS", "{}"))
if "TEST_WINDOW" in os.environ:
    CELERY_WORKER_SOFT_SHUTDOWN_TIMEOUT = float(os.environ["TEST_WINDOW"])
if "TEST_PREFETCH" in os.environ:
    CELERY_WORKER_PREFETCH_MULTIPLIER = int(os.environ["TEST_PREFETCH"])
