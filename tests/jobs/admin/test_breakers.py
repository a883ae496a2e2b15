"""The page of the circuit breakers: who sees it, who may reset one, and that it is on record."""

from collections.abc import Callable
from datetime import timedelta

import pytest
from django.test import Client
from django.urls import reverse

from jobs import lifecycle
from jobs.models import Act, Circuit
from tests.jobs.admin.conftest import said

pytestmark = pytest.mark.django_db

LIST = "admin:jobs_circuit_changelist"
ACT = "admin:jobs_circuit_act"


def circuit(**given: object) -> Circuit:
    """An open one, of a key with a space."""
    now = lifecycle.database_now()
    fields = {
        "key": "imports of acme", "rule": "imports of {tenant}", "task": "shop.tasks.import_file", "error": "OSError",
        "failed_at": [1.0, 2.0, 3.0], "threshold": 3, "in_a_row": True, "opened_at": now,
        "open_until": now + timedelta(minutes=5), "openings": 2, "changed_at": now,
    }  # fmt: skip
    return Circuit.objects.create(**(fields | given))


def test_the_list_says_how_each_stands(chief: Client) -> None:
    circuit()
    html = chief.get(reverse(LIST)).content.decode()
    for words in ("imports of acme", ">open</span>", "3 of 3 in a row", ", 2 times", "import_file: OSError"):
        assert words in html
    Circuit.objects.update(open_until=lifecycle.database_now())
    assert ">half-open</span>" in chief.get(reverse(LIST)).content.decode()


def test_without_circuits_the_page_says_what_it_is_for(chief: Client) -> None:
    assert "No breaker knows of a failure" in chief.get(reverse(LIST)).content.decode()


def test_an_operator_resets_one_and_is_on_record(visitor: Callable[..., Client]) -> None:
    row = circuit()
    client = visitor("jobs.view_circuit", "jobs.reset_circuit")
    given = {"verb": "reset", "ids": row.pk, "confirmed": "1", "reason": "they are back"}
    page = client.post(reverse(ACT), given, follow=True)
    assert said(page) == ["1 circuit breaker closed."]
    assert Circuit.objects.get().open_until is None
    act = Act.objects.get()
    assert (act.verb, act.target, act.reason) == ("reset breaker", "imports of acme", "they are back")


def test_who_may_only_look_cannot_reset(visitor: Callable[..., Client]) -> None:
    row = circuit()
    client = visitor("jobs.view_circuit")
    html = client.get(reverse(LIST)).content.decode()
    assert "Reset" not in html
    assert client.post(reverse(ACT), {"verb": "reset", "ids": row.pk, "confirmed": "1"}).status_code == 403
    assert Circuit.objects.get().open_until is not None
