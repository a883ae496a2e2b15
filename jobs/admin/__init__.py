"""The admin of jobs: pages for operators, shaped for millions of rows. Every button is a verb of ``jobs.control``."""

from __future__ import annotations

from jobs.admin import acts, jobs, pauses, workers  # noqa: F401
