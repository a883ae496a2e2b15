"""The audit trail: what operators did, to what, and why."""

from __future__ import annotations

import json
from typing import Any

from django.contrib import admin
from django.core.exceptions import ValidationError
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.utils.html import format_html
from django.utils.safestring import SafeString

from jobs.admin.base import ReadOnlyAdmin
from jobs.admin.filters import ByAge
from jobs.admin.wording import job_address, short_id, when
from jobs.masking import mask
from jobs.models import Act


class ByAgeOfAct(ByAge):
    """Not older than an hour, a day, a week."""

    column = "at"


@admin.register(Act)
class ActAdmin(ReadOnlyAdmin):
    """What operators did, newest first."""

    list_display = ("time", "by", "verb", "what", "reason", "job")
    list_display_links = None
    list_filter = (ByAgeOfAct,)
    ordering = ("-at", "-id")
    search_fields = ("by",)
    search_help_text = "A user's name, a verb or a job's id, in full."
    empty_template = "jobs/no_acts.html"

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        """The acts of a user, of a verb, or on a job."""
        term = search_term.strip()
        if not term:
            return queryset, False
        meant = Q(by=term) | Q(verb=term)
        try:
            return queryset.filter(meant | Q(job_id=Act._meta.get_field("job_id").to_python(term))), False
        except ValidationError:
            return queryset.filter(meant), False

    @admin.display(description="when")
    def time(self, act: Act) -> SafeString | str:
        """When it was done."""
        return when(act.at, units=1)

    @admin.display(description="job")
    def job(self, act: Act) -> SafeString | str:
        """The job that it was done to."""
        if not act.job_id:
            return ""
        return format_html('<a href="{}"><code>{}</code></a>', job_address(act.job_id), short_id(act.job_id))

    @admin.display(description="target")
    def what(self, act: Act) -> SafeString | str:
        """To what it was done; under it what else was kept of it."""
        target = "" if act.target == str(act.job_id) else act.target  # a column of its own leads to a job
        if not act.details:
            return target
        told = ", ".join(f"{name.replace('_', ' ')}: {_plain(value)}" for name, value in mask(act.details).items())
        return format_html('{}<div class="jobs-quiet jobs-narrow">{}</div>', target, told)


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
