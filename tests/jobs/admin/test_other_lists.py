"""Workers, and the audit trail."""

from datetime import timedelta
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from jobs.models import Act, Worker
from tests.jobs.admin import rows


def worker(**given: Any) -> Worker:
    now = timezone.now()
    fields: dict[str, Any] = {"name": "media@web-1", "pid": 1, "started_at": now, "seen_at": now, "queues": ["media"]}
    return Worker.objects.create(**(fields | given))


@pytest.mark.parametrize(("silent", "status"), [(timedelta(0), "live"), (timedelta(minutes=5), "stale")])
def test_a_silent_worker_is_stale(chief: Client, silent: timedelta, status: str) -> None:
    worker(seen_at=timezone.now() - silent)
    assert f">{status}</span>" in chief.get(reverse("admin:jobs_worker_changelist")).content.decode()


def test_a_worker_s_page_links_what_it_holds(chief: Client) -> None:
    job = rows.job("running")
    html = chief.get(reverse("admin:jobs_worker_change", args=[worker(holds=[str(job.pk)]).pk])).content.decode()
    assert reverse("admin:jobs_job_change", args=[job.pk]) in html


def test_a_worker_tells_of_slots_that_nobody_can_free(chief: Client) -> None:
    hung = worker(pool="threads", concurrency=4, stuck=1)
    listed = chief.get(reverse("admin:jobs_worker_changelist")).content.decode()
    assert "threads of 4, 1 held by bodies that cannot be stopped" in listed
    html = chief.get(reverse("admin:jobs_worker_change", args=[hung.pk])).content.decode()
    assert "1 held by bodies that cannot be stopped: restart this worker" in html


def test_without_workers_the_page_says_how_to_start_one(chief: Client) -> None:
    assert "celery -A project worker" in chief.get(reverse("admin:jobs_worker_changelist")).content.decode()


def test_the_audit_trail_is_found_by_user_verb_and_job(chief: Client) -> None:
    job = rows.job()
    kept = Act.objects.create(at=timezone.now(), by="ann", verb="retry", target="x", job_id=job.pk)
    Act.objects.create(at=timezone.now(), by="bob", verb="pause", target="queue mail")
    for term in ("ann", "retry", str(job.pk)):
        assert list(chief.get(reverse("admin:jobs_act_changelist"), {"q": term}).context["cl"].result_list) == [kept]


def test_an_entry_of_the_audit_trail_has_no_page_to_change_it(chief: Client) -> None:
    act = Act.objects.create(at=timezone.now(), by="ann", verb="retry", target="x", details={"token": "swordfish"})
    assert chief.post(reverse("admin:jobs_act_change", args=[act.pk]), {"by": "eve"}).status_code == 302
    act.refresh_from_db()
    assert act.by == "ann"
    assert "swordfish" not in chief.get(reverse("admin:jobs_act_changelist")).content.decode()


def test_what_was_set_stands_under_what_it_was_set_for(chief: Client) -> None:
    Act.objects.create(
        at=timezone.now(), by="ann", verb="allot", target="tokens gateway", details={"said": "5/s", "lasts": 3}
    )
    html = chief.get(reverse("admin:jobs_act_changelist")).content.decode()
    assert 'tokens gateway<div class="jobs-quiet jobs-narrow">said: 5/s, lasts: 3</div>' in html
