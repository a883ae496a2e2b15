"""Circuit breakers: under which keys jobs failed of late, what is parked until when, with a way to let it go on."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import BooleanField, ExpressionWrapper, F, Q, QuerySet
from django.db.models.functions import Now
from django.http import HttpRequest
from django.utils.html import format_html
from django.utils.safestring import SafeString

from jobs import control
from jobs.admin.buttons import ActingAdmin, Verb
from jobs.admin.wording import job_address, label, short_task, when
from jobs.breaker import Phase
from jobs.models import Circuit

PERMISSION = "jobs.reset_circuit"
TONES = {Phase.CLOSED: "completed", Phase.OPEN: "failed", Phase.HALF_OPEN: "retrying"}
MEANINGS = {
    Phase.CLOSED: "jobs with this key start",
    Phase.OPEN: "no job with this key starts",
    Phase.HALF_OPEN: "a few are let through, to see whether they fail",
}


def reset(circuit_id: int, by: str, reason: str) -> object:
    """Close a circuit by the id of its row; one that is gone knows of no failure."""
    row = Circuit.objects.filter(pk=circuit_id).first()
    return row and control.reset_breaker(row.key, by=by, reason=reason)


RESET = Verb(
    name="reset", label="Reset", permission=PERMISSION, question="Close this circuit?",
    effect="The jobs with its key go on at once, and its failures are forgotten.", done="closed", perform=reset,
    possible=bool,
)  # fmt: skip


def _phase(row: Any) -> Phase:
    if row.open_until is None:
        return Phase.CLOSED
    return Phase.OPEN if row.is_open else Phase.HALF_OPEN


@admin.register(Circuit)
class CircuitAdmin(ActingAdmin):
    """The circuits of which something is known."""

    list_display = ("key", "circuit", "until", "failures", "opened", "last", "end")
    list_display_links = None
    ordering = (F("open_until").desc(nulls_last=True), "key")
    search_fields = ("key",)
    verbs = (RESET,)
    empty_template = "jobs/no_breakers.html"

    def get_list_display(self, request: HttpRequest) -> tuple[str, ...]:
        """The columns; the button only for those who may press it."""
        return tuple(name for name in self.list_display if name != "end" or request.user.has_perm(PERMISSION))

    def get_queryset(self, request: HttpRequest) -> QuerySet[Circuit]:
        """The rows, each with whether it is open by the database's clock."""
        is_open = ExpressionWrapper(Q(open_until__gt=Now()), output_field=BooleanField())
        rows: QuerySet[Circuit] = super().get_queryset(request)
        return rows.annotate(is_open=is_open)

    @admin.display(description="circuit")
    def circuit(self, row: Circuit) -> SafeString:
        """Closed, open or half-open."""
        phase = _phase(row)
        return label(phase.value, TONES[phase], MEANINGS[phase])

    @admin.display(description="until")
    def until(self, row: Circuit) -> SafeString | str:
        """When the first probe may go."""
        return when(row.open_until) if _phase(row) is Phase.OPEN else ""

    @admin.display(description="failures")
    def failures(self, row: Circuit) -> str:
        """How many, and how many open it."""
        return f"{len(row.failed_at)} of {row.threshold}{' in a row' if row.in_a_row else ''}"

    @admin.display(description="opened")
    def opened(self, row: Circuit) -> SafeString | str:
        """When it did last, and how often without closing."""
        again = f", {row.openings} times" if row.openings > 1 else ""
        return format_html("{}{}", when(row.opened_at), again) if row.opened_at else ""

    @admin.display(description="last failure")
    def last(self, row: Circuit) -> SafeString:
        """Of which task, with which error."""
        text = f"{short_task(row.task)}: {row.error}".strip(": ")
        shown = '<a href="{}">{}</a>' if row.job_id else "{1}"
        return format_html(shown, job_address(row.job_id or ""), text)

    @admin.display(description="")
    def end(self, row: Circuit) -> SafeString:
        """The button that closes it."""
        return self.pressable(RESET, row)
