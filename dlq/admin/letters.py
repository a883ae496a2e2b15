"""The list of dead letters, the page of one, and its replay."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from django.contrib import admin, messages
from django.contrib.admin import SimpleListFilter
from django.contrib.admin.views.main import ChangeList
from django.core.exceptions import PermissionDenied, ValidationError
from django.db import connections, router
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern, path
from django.utils.html import format_html
from django.utils.http import urlencode
from django.utils.safestring import SafeString

from dlq import replay
from dlq.admin.replay_form import ReplayForm
from dlq.models import DeadLetter, Status
from jobs import shown
from jobs.admin import timeline
from jobs.admin.base import Rows
from jobs.admin.buttons import ActingAdmin, Verb
from jobs.admin.filters import ByAge, ByTask, linked
from jobs.admin.paginator import CappedPaginator, OrderedPaginator
from jobs.admin.tracebacks import Traceback
from jobs.admin.wording import exactly, job_address, label, short_id, short_task, when
from jobs.errors import JobsError, PayloadError
from jobs.leap import ALL, occurring
from jobs.masking import mask
from jobs.models import Job

MOST_ALIKE = 100
_BEFORE_STATUS = ("task", "tenant", "fingerprint", "q")  # in an index
FAT_COLUMNS = ("payload", "headers", "traceback", "attempts", "closing_reason")
TONES = {
    Status.OPEN: "failed",
    Status.REPLAYED: "reserved",
    Status.RESOLVED: "completed",
    Status.DISCARDED: "cancelled",
}

REPLAY = Verb(
    name="replay", label="Replay", permission="dlq.replay_deadletter", question="Replay?",
    effect="Each letter's job is sent again as a new job with the same payload; the letter is closed as replayed.",
    done="replayed", perform=lambda pk, by, reason: replay.replay(pk, by=by, reason=reason),
    possible=lambda letter: letter.is_open,
)  # fmt: skip
RESOLVE = Verb(
    name="resolve", label="Resolve", permission="dlq.resolve_deadletter", question="Resolve?",
    effect="The letter is closed: what it stands for was dealt with in another way. The job stays failed.",
    done="resolved", perform=lambda pk, by, reason: replay.resolve(pk, by=by, reason=reason),
    possible=lambda letter: letter.is_open, needs_reason=True,
)  # fmt: skip
DISCARD = Verb(
    name="discard", label="Discard", permission="dlq.resolve_deadletter", question="Discard?",
    effect="The letter is closed: nobody will deal with it. The job stays failed, and may be pruned later.",
    done="discarded", perform=lambda pk, by, reason: replay.discard(pk, by=by, reason=reason),
    possible=lambda letter: letter.is_open, needs_reason=True, dangerous=True,
)  # fmt: skip


class ByStatus(SimpleListFilter):
    """What became of the letter; open ones unless asked otherwise."""

    title = "status"
    parameter_name = "status"
    ALL = "all"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """The four, and all of them."""
        return [*((status.value, status.value) for status in Status), (self.ALL, "all")]

    def value(self) -> str:
        """The status in force."""
        return super().value() or Status.OPEN.value

    def choices(self, changelist: ChangeList) -> Any:
        """The choices; leaving it out means open."""
        for value, text in self.lookup_choices:
            at = changelist.get_query_string({self.parameter_name: value})
            yield {"selected": self.value() == value, "query_string": at, "display": text}

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """The letters of the status."""
        return queryset if self.value() == self.ALL else queryset.filter(status=self.value())


class LetterList(Rows):
    """The list of letters, with how many are alike."""

    def get_results(self, request: HttpRequest) -> None:
        """Count the open letters of each fingerprint on the page, no further than ``MOST_ALIKE``."""
        super().get_results(request)
        self.result_list = list(self.result_list)
        alike = open_alike({letter.fingerprint for letter in self.result_list})
        for letter in self.result_list:
            letter.alike = alike[letter.fingerprint]


def open_alike(fingerprints: Collection[str]) -> dict[str, int]:
    """How many open letters have each fingerprint; one more than ``MOST_ALIKE`` means that there are more."""
    if not fingerprints:
        return {}
    few = (
        f"SELECT 1 FROM {DeadLetter._meta.db_table} AS letter WHERE letter.fingerprint = asked.fingerprint "
        f"AND letter.status = '{Status.OPEN.value}' LIMIT {MOST_ALIKE + 1}"
    )
    asked = ", ".join(["(%s)"] * len(fingerprints))
    with connections[router.db_for_read(DeadLetter)].cursor() as cursor:
        cursor.execute(
            f"WITH asked(fingerprint) AS (VALUES {asked}) "
            f"SELECT fingerprint, (SELECT COUNT(*) FROM ({few}) AS few) FROM asked",
            list(fingerprints),
        )
        return {str(fingerprint): int(number) for fingerprint, number in cursor.fetchall()}


@admin.register(DeadLetter)
class DeadLetterAdmin(ActingAdmin):
    """Dead letters, newest first; open ones unless asked otherwise."""

    list_display = ("task_name", "error", "why", "age", "status_badge", "alike")
    list_display_links = ("task_name",)
    list_filter = (ByStatus, ByTask, ByAge, linked("fingerprint"), linked("tenant"))
    ordering = ("-created_at", "-id")
    search_fields = ("id",)
    search_help_text = "A letter's number, a job's id, or the beginning of a task's name."
    verbs = (REPLAY, RESOLVE, DISCARD)
    page_template = "dlq/letter.html"
    empty_template = "dlq/no_letters.html"

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """All letters; a list needs only its columns."""
        rows = super().get_queryset(request)
        match = request.resolver_match
        return rows.defer(*FAT_COLUMNS) if match and (match.url_name or "").endswith("_changelist") else rows

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        """The list that counts the alike."""
        return LetterList

    def get_paginator(
        self, request: HttpRequest, queryset: QuerySet[Any], per_page: int, *args: Any, **kwargs: Any
    ) -> CappedPaginator:
        """Count along the index of the list; in that of a task, letters of all statuses are in another order."""
        apart = request.GET.get("status") == ByStatus.ALL and any(request.GET.get(name) for name in _BEFORE_STATUS)
        kind = CappedPaginator if apart else OrderedPaginator
        return kind(queryset, per_page, *args, **kwargs)

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        """The letters that the term means."""
        term = search_term.strip()
        return (queryset.filter(**_meaning(term)) if term else queryset), False

    def get_urls(self) -> list[URLPattern]:
        """The page that replays one letter."""
        view = self.admin_site.admin_view(self.replay)
        return [path("<path:object_id>/replay/", view, name="dlq_deadletter_replay"), *super().get_urls()]

    def page(self, request: HttpRequest, row: DeadLetter) -> dict[str, Any]:
        """What a letter's page shows."""
        alike = open_alike([row.fingerprint])[row.fingerprint]
        return {
            "title": str(row),
            "letter": row,
            "name": short_task(row.task),
            "badge": self.status_badge(row),
            "payload": shown.payload(row.task, row.payload),
            "headers": shown.pretty(mask(row.headers)) if row.headers else "",
            "traceback": Traceback(row.traceback),
            "attempts": timeline.of_records(row.attempts or []),
            "created": exactly(row.created_at),
            "age": when(row.created_at),
            "closed": when(row.closed_at),
            "alike": f"{MOST_ALIKE:,}+" if alike > MOST_ALIKE else f"{alike:,}",
            "alike_address": f"{self.list_address()}?{urlencode({'fingerprint': row.fingerprint})}",
            "job_address": job_address(row.job_id),
            "job_short": short_id(row.job_id),
            "replay": self._replay_of(row),
            "buttons": [verb for verb in self.buttons(request, row) if verb is not REPLAY],
            "may_replay": request.user.has_perm(REPLAY.permission),
        }

    def _replay_of(self, letter: DeadLetter) -> dict[str, Any] | None:
        record = getattr(letter, "replay", None)
        if record is None:
            return None
        job = Job.objects.only("id", "state", "task").filter(pk=record.job_id).first()
        diff = ReplayForm.difference(letter.task, record.payload_before, record.payload_after) if record.edited else []
        return {
            "record": record,
            "job": job,
            "at": when(record.at),
            "address": job_address(record.job_id),
            "diff": diff,
        }

    def replay(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Edit the payload and give a reason; look at the difference; send it."""
        letter = self.row(request, object_id)
        if letter is None:
            return self.missing(request, object_id)
        if not request.user.has_perm(REPLAY.permission):
            raise PermissionDenied
        if not letter.is_open:
            self.message_user(request, f"This letter is {letter.status} already.", messages.WARNING)
            return HttpResponseRedirect(self.row_address(letter))
        form = ReplayForm(letter, request.POST or None, editable=request.user.has_perm("dlq.edit_payload"))
        step = request.POST.get("step", "edit")
        if step == "edit" or not form.is_valid():
            return self._ask(request, letter, form, "dlq/replay.html")
        if step != "send":
            return self._ask(request, letter, form, "dlq/replay_confirm.html")
        return self._send(request, letter, form)

    def _ask(self, request: HttpRequest, letter: DeadLetter, form: ReplayForm, template: str) -> HttpResponse:
        context = {
            "title": f"Replay {short_task(letter.task)}", "letter": letter, "form": form,
            "letter_address": self.row_address(letter), "job_short": short_id(letter.job_id),
        }  # fmt: skip
        return self.rendered(request, template, context)

    def _send(self, request: HttpRequest, letter: DeadLetter, form: ReplayForm) -> HttpResponse:
        try:
            job = replay.replay(
                letter.pk, by=request.user.get_username(), reason=form.reason, payload=form.edited,
                priority=form.priority_given,
            )  # fmt: skip
        except PayloadError as error:
            form.add_error("payload", str(error))
            return self._ask(request, letter, form, "dlq/replay.html")
        except JobsError as refusal:
            self.message_user(request, str(refusal), messages.ERROR)
            return HttpResponseRedirect(self.row_address(letter))
        self.message_user(request, "Replayed as this new job. The letter is closed.", messages.SUCCESS)
        return HttpResponseRedirect(job_address(job.pk) or self.row_address(letter))

    @admin.display(description="task")
    def task_name(self, letter: DeadLetter) -> SafeString:
        """The last part of the task's name; under it the tenant."""
        shown = '<span title="{}">{}</span><div class="jobs-quiet">{}</div>'
        return format_html(shown, letter.task, short_task(letter.task), letter.tenant)

    @admin.display(description="error")
    def error(self, letter: DeadLetter) -> SafeString | str:
        """The error, with the beginning of its message."""
        return format_html(
            '<strong title="{}">{}</strong><div class="jobs-quiet jobs-clip" title="{}">{}</div>',
            letter.error_type, short_task(letter.error_type), letter.error_message[:500], letter.error_message[:160],
        )  # fmt: skip

    @admin.display(description="reason")
    def why(self, letter: DeadLetter) -> str:
        """Why it will not run again."""
        return letter.reason

    @admin.display(description="died")
    def age(self, letter: DeadLetter) -> SafeString | str:
        """How long ago."""
        return when(letter.created_at, units=1)

    @admin.display(description="status")
    def status_badge(self, letter: DeadLetter) -> SafeString:
        """What became of it."""
        return label(letter.status, TONES[Status(letter.status)])

    @admin.display(description="alike")
    def alike(self, letter: Any) -> SafeString | str:
        """How many open letters have the same fingerprint."""
        number = f"{MOST_ALIKE:,}+" if letter.alike > MOST_ALIKE else f"{letter.alike:,}"
        title = "open letters with the same task, error and place in the code"
        return format_html(
            '<a href="?{}" title="{}">{}</a>', urlencode({"fingerprint": letter.fingerprint}), title, number
        )


def _meaning(term: str) -> dict[str, Any]:
    if term.isdecimal() and len(term) < 18:
        return {"pk": int(term)}
    try:
        return {"job_id": Job._meta.pk.to_python(term)}
    except ValidationError:
        begins = term.lower()
    names = occurring(DeadLetter, "task", most=ALL)
    return {"task__in": [n for n in names if n.lower().startswith(begins) or short_task(n).lower().startswith(begins)]}
