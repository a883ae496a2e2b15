"""Somebody at the admin, as in the tests of jobs."""

from tests.jobs.admin.conftest import chief, visitor

__all__ = ["chief", "visitor"]
