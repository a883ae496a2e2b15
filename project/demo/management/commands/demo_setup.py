"""``manage.py demo_setup``: an account for the admin, and the schedules, as data."""

import secrets
from argparse import ArgumentParser
from typing import Any

from django.contrib.auth import get_user_model
from django.core.management.base import BaseCommand
from django_celery_beat.models import IntervalSchedule, PeriodicTask, PeriodicTasks

from project.demo.expected import NIGHTLY


class Command(BaseCommand):
    help = "Create the demo's administrator and its schedules; print the login."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--username", default="admin", help="Name of the administrator (default: admin).")
        parser.add_argument("--password", default="", help="Their password (default: a random one).")
        parser.add_argument("--every", type=int, default=5, help="Seconds between nightly reports (default: 5).")

    def handle(self, *args: Any, **options: Any) -> None:
        password = options["password"] or secrets.token_urlsafe(9)
        create_administrator(options["username"], password)
        create_schedules(options["every"])
        self.stdout.write(f"login: {options['username']} {password}")


def create_administrator(username: str, password: str) -> None:
    """Create the administrator, or give an existing one this password."""
    user, _ = get_user_model().objects.get_or_create(username=username, defaults={"email": f"{username}@example.test"})
    user.is_staff = user.is_superuser = user.is_active = True
    user.set_password(password)
    user.save()


def create_schedules(seconds: int) -> None:
    """Put the nightly report on the beat schedule, enabled."""
    interval, _ = IntervalSchedule.objects.get_or_create(every=seconds, period=IntervalSchedule.SECONDS)
    PeriodicTask.objects.update_or_create(
        name="Nightly report",
        defaults={
            "task": NIGHTLY,
            "interval": interval,
            "enabled": True,
            "description": f"Every {seconds} seconds in the demo, so that nobody has to stay up.",
        },
    )
    PeriodicTasks.update_changed()
