#!/usr/bin/env python
"""The command line of the project: a mistake in the environment is one line, not a traceback."""

import os
import sys


def main() -> None:
    """Run the Django command that the command line names."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")
    from django.core.exceptions import ImproperlyConfigured
    from django.core.management import execute_from_command_line
    from django.db import OperationalError

    try:
        execute_from_command_line(sys.argv)
    except (ImproperlyConfigured, OperationalError) as error:
        if "--traceback" in sys.argv:
            raise
        sys.exit(f"manage.py: {explanation(error)}")


def explanation(error: Exception) -> str:
    """The error as one line that names the setting to look at.

    >>> explanation(ValueError("no\\nnewlines"))
    'no newlines'
    """
    from django.db import OperationalError

    sentence = " ".join(str(error).split())
    if isinstance(error, OperationalError):
        from project.environment import without_password

        address = os.environ.get("DATABASE_URL", "db.sqlite3, the default")
        return f"the database (DATABASE_URL: {without_password(address)}) says: {sentence}"
    return sentence


if __name__ == "__main__":
    main()
