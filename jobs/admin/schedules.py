"""Periodic tasks: django-celery-beat's pages, with the policy for missed fires, the next fires, and refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar
from uuid import UUID

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import ValidationError
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils.functional import SimpleLazyObject
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django_celery_beat import admin as theirs
from django_celery_beat.models import CrontabSchedule, IntervalSchedule, PeriodicTask

from jobs import declared, drafts, outbox
from jobs.admin.wording import job_address, label, lasting, short_id, since
from jobs.errors import JobsError
from jobs.models import Schedule
from jobs.schedule import call, edits, ledger, preview, rules
from jobs.schedule.preview import Outlook

SHOWN = 10
POLICIES = (
    (Schedule.Misfire.SKIP.value, "skip: do nothing, wait for the next"),
    (Schedule.Misfire.ONCE.value, "once: make one up for all that were missed"),
    (Schedule.Misfire.ALL.value, "all: make up for each, up to 1,000 and seven days"),
)


class PeriodicTaskForm(theirs.PeriodicTaskForm):  # type: ignore[misc]
    """A periodic task with its policy; what could not be fired is refused here."""

    misfire = forms.ChoiceField(
        choices=POLICIES,
        label="Missed fires",
        initial=Schedule.Misfire.ONCE.value,
        required=False,
        help_text="What becomes of fires that were due while beat, the broker or the database was down.",
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        row = ledger.rows().filter(name=self.instance.name).first() if self.instance.pk else None
        if row is not None:
            self.initial["misfire"] = row.misfire

    def clean(self) -> dict[str, Any]:
        """Refuse arguments and options that the front door would refuse, and what can never fire."""
        cleaned: dict[str, Any] = super().clean()
        if not self.errors:
            task = PeriodicTask(**{f.name: cleaned[f.name] for f in PeriodicTask._meta.fields if f.name in cleaned})
            for refused in (_refused_call(task), _refused_time(task) if task.enabled else ""):
                if refused:
                    self.add_error(None, refused)
        return cleaned


def _refused_call(task: Any) -> str:
    """Why the call of a periodic task would be refused; nothing is left behind."""
    try:
        args, kwargs = call.content(task)
        now = ledger.clock()
        options = call.options_of(task, now, now)
        options.pop("expires", None)
        known = declared.task(task.task)
        job = drafts.draft(task.task, known, args, kwargs, options, declared.app().timezone)
        outbox.queue_of(job.queue, task.task, known, options)
    except JobsError as error:
        return str(error)
    return ""


def _refused_time(task: Any) -> str:
    if not any(getattr(task, kind, None) for kind in rules.KINDS):
        return ""  # theirs says so
    found = preview.outlook(task)
    # A clocked time that has just passed is fired at once.
    return "" if task.clocked is not None else found.problem


class PeriodicTaskAdmin(theirs.PeriodicTaskAdmin):  # type: ignore[misc]
    """django-celery-beat's page, and what the ledger knows."""

    form = PeriodicTaskForm
    fieldsets = (
        *theirs.PeriodicTaskAdmin.fieldsets[:2],
        (
            "Missed fires and what comes next",
            {"fields": ("misfire", "next_fires", "last_fires"), "classes": ("extrapretty", "wide")},
        ),
        *theirs.PeriodicTaskAdmin.fieldsets[2:],
    )
    readonly_fields = (*theirs.PeriodicTaskAdmin.readonly_fields, "next_fires", "last_fires")

    class Media:
        """The one stylesheet."""

        css: ClassVar = {"all": ["jobs/jobs.css"]}

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        """Save the task, and its policy; a schedule that was renamed takes its policy along."""
        super().save_model(request, obj, form, change)
        chosen = form.cleaned_data.get("misfire") or Schedule.Misfire.ONCE.value
        ledger.rows().update_or_create(name=obj.name, defaults={"misfire": chosen})
        edits.noted(obj)

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """The list, with a word about each schedule that is enabled and does not fire."""
        if request.method == "GET":
            for name, problem in preview.problems():
                self.message_user(
                    request, f'The schedule "{name}" is enabled and cannot fire. {problem}', messages.WARNING
                )
        return super().changelist_view(request, extra_context)  # type: ignore[no-any-return]

    def _after_bulk(self, queryset: QuerySet[Any]) -> None:
        for task in ledger.every().filter(pk__in=list(queryset.values_list("pk", flat=True))):
            edits.noted(task)

    @admin.action(description="Enable selected tasks", permissions=["change"])
    def enable_tasks(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        """Enable them: they begin now."""
        super().enable_tasks(request, queryset)
        self._after_bulk(queryset)

    @admin.action(description="Disable selected tasks", permissions=["change"])
    def disable_tasks(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        """Disable them: what they would have fired meanwhile is not missed."""
        super().disable_tasks(request, queryset)
        self._after_bulk(queryset)

    @admin.action(description="Toggle activity of selected tasks", permissions=["change"])
    def toggle_tasks(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        """Enable those that are disabled, disable the others."""
        super().toggle_tasks(request, queryset)
        self._after_bulk(queryset)

    @admin.action(description="Run selected tasks", permissions=["change"])
    def run_tasks(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        """Enqueue them now, beside their schedule; what is refused is said, not raised."""
        try:
            super().run_tasks(request, queryset)
        except (JobsError, ValueError) as refusal:
            self.message_user(request, f"Not run: {refusal}", messages.ERROR)

    def get_list_display(self, request: HttpRequest) -> Any:
        """The columns; all schedules are looked at once."""
        found: Any = SimpleLazyObject(lambda: {each.task.pk: each for each in preview.outlooks()})
        columns = (
            _column("next fire", lambda task: _next_fire(found[task.pk]) if task.pk in found else ""),
            _column("missed fires", lambda task: found[task.pk].misfire if task.pk in found else ""),
        )
        return ("name", "enabled", "scheduler", columns[0], "last_run_at", columns[1], "one_off")

    @admin.display(description="Next fires")
    def next_fires(self, task: Any) -> SafeString | str:
        """The next fires on the schedule's own clock."""
        if task is None or task.pk is None:
            return "Shown here once the schedule is saved."
        found = preview.outlook(task, SHOWN)
        if found.problem:
            return format_html("{} {}", label("cannot fire", "failed"), found.problem)
        rows = format_html_join(
            "", "<div><code>{}</code> <span class='jobs-quiet'>{}</span></div>",
            ((preview.local(fire, found.zone), since(fire, found.now)) for fire in found.fires),
        )  # fmt: skip
        head = "" if task.enabled else format_html("<p class='jobs-quiet'>If it were enabled:</p>")
        if found.overdue_since is not None:
            sentence = "A fire is overdue since {} and not decided yet. Is a beat running?"
            head = format_html("<p>{}</p>", sentence.format(preview.local(found.overdue_since, found.zone)))
        return format_html("{}<div class='readonly'>{}</div>", head, rows)

    @admin.display(description="Last fires")
    def last_fires(self, task: Any) -> SafeString | str:
        """What the ledger says of the last fires."""
        if task is None or task.pk is None:
            return "None yet."
        found = preview.outlook(task)
        rows = format_html_join(
            "", "<div><code>{}</code> {} <span class='jobs-quiet'>{}</span></div>",
            ((preview.local(t.fire_at, found.zone), _became(t.job_id, t.left_out), t.reason)
             for t in preview.recent(task.name, SHOWN)),
        )  # fmt: skip
        return format_html("<div class='readonly'>{}</div>", rows) if rows else "None yet."


def _column(title: str, value: Callable[[Any], Any]) -> Callable[[Any], Any]:
    value.short_description = title  # type: ignore[attr-defined]
    return value


def _next_fire(found: Outlook) -> SafeString | str:
    """When a schedule fires next, or why it does not."""
    if not found.task.enabled:
        return ""
    if found.problem:
        return label("cannot fire", "failed", found.problem)
    if found.overdue_since is not None:
        text = f"overdue by {lasting(found.now - found.overdue_since)}"
        return label(text, "retrying", "Beat has not decided it yet: is a beat running?")
    at = found.next_at
    if at is None:
        return label("due", "reserved")
    return format_html("<span title='{}'>{}</span>", preview.local(at, found.zone), since(at, found.now))


def _became(job_id: UUID | None, left_out: int) -> SafeString | str:
    if job_id is not None:
        return format_html('<a href="{}">job {}</a>', job_address(job_id), short_id(job_id))
    if left_out > 1:
        return label(f"{left_out:,} left out", "cancelled")
    return label("left out", "cancelled") if left_out else ""


class CrontabForm(forms.ModelForm):  # type: ignore[type-arg]
    """A crontab that some date fits."""

    def clean(self) -> dict[str, Any] | None:
        """Refuse what no date fits, and what cannot be read."""
        cleaned = super().clean()
        if cleaned is not None and not self.errors:
            fields = [f.name for f in CrontabSchedule._meta.fields if f.name in cleaned]
            _checked(lambda: rules.crontab(CrontabSchedule(**{name: cleaned[name] for name in fields})))
        return cleaned


class IntervalForm(forms.ModelForm):  # type: ignore[type-arg]
    """An interval that can be kept."""

    def clean(self) -> dict[str, Any] | None:
        """Refuse what is too short or too long."""
        cleaned = super().clean()
        if cleaned is not None and not self.errors:
            made = IntervalSchedule(every=cleaned["every"], period=cleaned["period"])
            _checked(lambda: rules.interval(made, ledger.clock()))
        return cleaned


def _checked(read: Any) -> None:
    try:
        read()
    except rules.Unschedulable as problem:
        raise ValidationError(str(problem)) from None


class CrontabAdmin(theirs.CrontabScheduleAdmin):  # type: ignore[misc]
    """Crontabs."""

    form = CrontabForm


class IntervalAdmin(theirs.IntervalScheduleAdmin):  # type: ignore[misc]
    """Intervals."""

    form = IntervalForm


def _take_over() -> None:
    """Put our pages in the place of django-celery-beat's own; a project's pages stay."""
    site: Any = admin.site
    for model, own, ours in (
        (PeriodicTask, theirs.PeriodicTaskAdmin, PeriodicTaskAdmin),
        (CrontabSchedule, theirs.CrontabScheduleAdmin, CrontabAdmin),
        (IntervalSchedule, theirs.IntervalScheduleAdmin, IntervalAdmin),
    ):
        if type(site._registry.get(model)) is own:
            site.unregister(model)
            site.register(model, ours)


_take_over()
