"""A task of the next release: only workers that are told to import this module know it."""

from jobs.task import task
from tests.sample.tasks import witness


@task
def tomorrow(line: str) -> str:
    witness(f"tomorrow:{line}")
    return line
