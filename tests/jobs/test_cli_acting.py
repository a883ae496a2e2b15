"""``manage.py jobs cancel``, ``retry``, ``prune``, ``pause``, ``resume``: what they do, refuse and keep on record."""

import getpass
import sys
from datetime import timedelta
from io import StringIO
from uuid import uuid4

import pytest
from django.utils import timezone

from jobs import tally
from jobs.models import Act, Job, Pause
from tests.jobs.admin.rows import CHARGE, job, letter
from tests.jobs.cli import Answer, Terminal, run

pytestmark = pytest.mark.django_db


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch):
    """Type this when asked."""

    def typed(text: str) -> None:
        monkeypatch.setattr(sys, "stdin", Terminal(text))

    return typed


@pytest.fixture(autouse=True)
def nobody_types(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", StringIO())


def long_ago(state: str = "completed", **given: object) -> Job:
    return job(state, finished_at=timezone.now() - timedelta(days=31), **given)


def test_a_waiting_job_is_cancelled_with_reason_and_name() -> None:
    waiting = job()
    run("jobs", "cancel", waiting.pk, "--reason", "wrong file", "--by", "ann")
    waiting.refresh_from_db()
    act = Act.objects.get()
    assert (waiting.state, waiting.reason) == ("cancelled", "wrong file")
    assert (act.verb, act.by, act.reason, act.job_id) == ("cancel", "ann", "wrong file", waiting.pk)


def test_who_does_it_is_by_default_the_user_of_the_machine() -> None:
    run("jobs", "cancel", job().pk)
    assert Act.objects.get().by == getpass.getuser()


def test_a_running_job_is_asked_to_stop() -> None:
    running = job("running")
    answer = run("jobs", "cancel", running.pk)
    running.refresh_from_db()
    assert running.cancel_requested_at
    assert "asked to stop" in answer.out


def test_one_job_is_cancelled_without_asking() -> None:
    assert run("jobs", "cancel", job().pk).code == 0


def test_many_jobs_are_not_cancelled_without_consent_where_nobody_can_be_asked() -> None:
    jobs = [job(), job()]
    answer = run("jobs", "cancel", *(each.pk for each in jobs))
    assert (answer.code, answer.err) == (2, "This would cancel 2 jobs. Add --yes to do it without being asked.\n")
    assert Job.objects.filter(state="pending").count() == 2


def test_who_says_no_on_a_terminal_changes_nothing(answers) -> None:
    job(queue="mail")
    answers("n\n")
    answer = run("jobs", "cancel", "--queue", "mail", terminal=True)
    assert (answer.code, Job.objects.get().state) == (1, "pending")


def test_who_says_yes_on_a_terminal_is_obeyed(answers) -> None:
    job(queue="mail")
    answers("y\n")
    run("jobs", "cancel", "--queue", "mail", terminal=True)
    assert Job.objects.get().state == "cancelled"


def test_filters_choose_unfinished_jobs_only() -> None:
    job("completed", queue="mail")
    waiting = job("retrying", queue="mail")
    job(queue="payments")
    done = run("jobs", "cancel", "--queue", "mail", "--yes", "--json").json["cancelled"]
    assert [each["id"] for each in done] == [str(waiting.pk)]


def test_the_limit_bounds_what_filters_choose() -> None:
    for _ in range(3):
        job(queue="mail")
    run("jobs", "cancel", "--queue", "mail", "--limit", 2, "--yes")
    assert Job.objects.filter(state="cancelled").count() == 2


def test_neither_ids_nor_filters_cancels_nothing() -> None:
    job()
    answer = run("jobs", "cancel", "--yes")
    assert (answer.code, Job.objects.get().state) == (2, "pending")


def test_what_is_refused_does_not_stop_the_others() -> None:
    done, waiting = job("completed"), job()
    answer = run("jobs", "cancel", done.pk, waiting.pk, "--yes", "--json")
    waiting.refresh_from_db()
    assert (answer.code, waiting.state) == (1, "cancelled")
    assert list(answer.json["refused"]) == [str(done.pk)]
    assert "1 of 2 jobs were refused." in answer.err


def test_a_waiting_job_is_made_due() -> None:
    later = job()
    run("jobs", "retry", later.pk)
    later.refresh_from_db()
    assert later.due_at <= timezone.now()


def test_a_failed_job_is_not_retried_but_replayed() -> None:
    assert "replay its dead letter" in run("jobs", "retry", job("failed").pk).err


def test_an_unknown_job_cannot_be_retried() -> None:
    assert run("jobs", "retry", uuid4()).code == 1


# --- Prune ----------------------------------------------------------------------------------------


def test_recount_says_how_many_there_are() -> None:
    for _ in range(2):
        long_ago()
    tally.fold()
    Job.objects.first().delete()
    assert run("jobs", "recount").out == "1 finished job in the table.\n"
    assert run("jobs", "recount", "--json").json == {"finished": 1}


def test_prune_without_an_age_deletes_nothing() -> None:
    long_ago()
    answer = run("jobs", "prune", "--yes")
    assert (answer.code, Job.objects.count()) == (2, 1)
    assert answer.err.startswith("Prune needs an age")


def test_prune_lets_old_jobs_go_and_keeps_recent_ones() -> None:
    long_ago()
    recent = job("completed")
    answer = run("jobs", "prune", "--older-than", "30d", "--yes")
    assert (list(Job.objects.all()), answer.out) == ([recent], "1 job pruned.\n")


def test_prune_keeps_unfinished_jobs_however_old() -> None:
    job(created_at=timezone.now() - timedelta(days=99))
    run("jobs", "prune", "--older-than", "1d", "--yes")
    assert Job.objects.count() == 1


def test_prune_keeps_a_failed_job_while_its_letter_is_open() -> None:
    letter(of=long_ago("failed"))
    run("jobs", "prune", "--older-than", "30d", "--state", "failed", "--yes")
    assert Job.objects.count() == 1


def test_prune_asks_for_consent_where_nobody_can_be_asked() -> None:
    long_ago()
    answer = run("jobs", "prune", "--older-than", "30d")
    assert (answer.code, Job.objects.count()) == (2, 1)


def test_a_dry_run_counts_and_keeps() -> None:
    long_ago()
    answer = run("jobs", "prune", "--older-than", "30d", "--dry-run", "--json")
    assert (answer.json, Job.objects.count()) == ({"found": 1, "pruned": 0, "dry_run": True}, 1)


def test_prune_stops_at_its_limit() -> None:
    for _ in range(3):
        long_ago()
    run("jobs", "prune", "--older-than", "30d", "--limit", 2, "--yes")
    assert Job.objects.count() == 1


def test_prune_is_on_record() -> None:
    long_ago()
    run("jobs", "prune", "--older-than", "30d", "--yes", "--by", "ann")
    assert Act.objects.filter(verb="prune", by="ann").exists()


def test_a_bad_age_is_refused_with_examples() -> None:
    assert "'thirty' is not an age. Write 90s, 30m, 2h, 7d" in run("jobs", "prune", "--older-than", "thirty").err


# --- Pause, resume --------------------------------------------------------------------------------


def pause(*words: str) -> Answer:
    return run("jobs", "pause", *words)


def test_a_queue_is_paused_with_its_reason() -> None:
    pause("--queue", "payments", "--reason", "gateway is down", "--by", "ann")
    found = Pause.objects.get()
    assert (found.kind, found.name, found.reason, found.by) == ("queue", "payments", "gateway is down", "ann")


def test_a_task_is_paused_by_the_last_part_of_its_name() -> None:
    pause("--task", "ChargeOrder")
    assert Pause.objects.get().name == CHARGE


def test_an_unknown_queue_is_not_paused() -> None:
    answer = pause("--queue", "paymens")
    assert (Pause.objects.count(), answer.code) == (0, 2)
    assert "It has: default, mail, media, payments, reports, suppliers." in answer.err


def test_an_unknown_task_is_not_paused_and_the_nearest_is_named() -> None:
    answer = pause("--task", "ChargeOder")
    assert Pause.objects.count() == 0
    assert f"Did you mean {CHARGE!r}?" in answer.err


def test_either_a_queue_or_a_task_must_be_named() -> None:
    assert pause().code == 1
    assert pause("--queue", "mail", "--task", "ChargeOrder").code == 1


def test_a_paused_queue_is_resumed() -> None:
    pause("--queue", "payments")
    assert run("jobs", "resume", "--queue", "payments", "--json").json["paused"] is False
    assert Pause.objects.count() == 0


def test_a_task_that_is_gone_from_the_code_can_still_be_resumed() -> None:
    Pause.objects.create(kind="task", name="shop.tasks.Gone", created_at=timezone.now())
    run("jobs", "resume", "--task", "Gone")
    assert Pause.objects.count() == 0


def test_what_is_not_paused_cannot_be_resumed() -> None:
    pause("--queue", "mail")
    answer = run("jobs", "resume", "--queue", "payments")
    assert (answer.code, answer.err) == (2, "The queue payments is not paused. Paused: queue mail.\n")


# --- Snooze -----------------------------------------------------------------------------------------


def test_jobs_are_put_off_for_a_while() -> None:
    waiting = job("retrying")
    answer = run("jobs", "snooze", waiting.pk, "--for", "2h", "--reason", "closed")
    waiting.refresh_from_db()
    assert answer.code == 0
    assert waiting.due_at > timezone.now() + timedelta(minutes=110)
    assert "due at" in answer.out


def test_jobs_are_put_off_until_a_time() -> None:
    waiting = job("retrying", queue="mail")
    assert run("jobs", "snooze", "--queue", "mail", "--at", "2040-01-31T12:00", "--json").json["snoozed"]
    waiting.refresh_from_db()
    assert waiting.due_at.year == 2040


@pytest.mark.parametrize("how", [(), ("--for", "2h", "--at", "2040-01-31"), ("--for", "soon")])
def test_how_long_is_to_be_said_once(how: tuple[str, ...]) -> None:
    assert "--for" in run("jobs", "snooze", job("retrying").pk, *how).err


def test_a_job_that_has_ended_is_not_put_off() -> None:
    answer = run("jobs", "snooze", job("completed").pk, "--for", "2h")
    assert (answer.code, "only a job that waits can be snoozed" in answer.err) == (1, True)
