"""Somebody at the admin."""

from collections.abc import Callable
from typing import Any

import pytest
from django.test import Client

from tests.jobs.admin import rows

Visitor = Callable[..., Client]


@pytest.fixture
def visitor(db: None, client: Client) -> Visitor:
    """A client logged in as a member of staff with exactly these permissions."""

    def log_in(*permissions: str) -> Client:
        client.force_login(rows.operator(*permissions))
        return client

    return log_in


@pytest.fixture
def chief(admin_client: Client) -> Client:
    """A client logged in as a superuser."""
    return admin_client


def said(response: Any) -> list[str]:
    """The messages that a page shows."""
    return [str(message) for message in response.context["messages"]]
