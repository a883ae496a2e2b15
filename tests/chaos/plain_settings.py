"""The settings of a Django project that has never heard of Mainstay, for the comparison with plain Celery."""

import os
from pathlib import Path

from project import environment

SECRET_KEY = "only-for-chaos"
INSTALLED_APPS = ["django.contrib.contenttypes"]
DATABASES = {"default": environment.database(os.environ.get("DATABASE_URL") or "sqlite:///db.sqlite3", Path.cwd())}
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
