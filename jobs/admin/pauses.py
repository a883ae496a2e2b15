"""Pauses: what is not to start jobs for now, with a way to begin and to end one."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern, path
from django.utils.safestring import SafeString

from jobs import control, declared
from jobs.admin.buttons import ActingAdmin, Verb
from jobs.admin.names import queues
from jobs.admin.wording import address, short_task, when
from jobs.errors import JobsError
from jobs.leap import occurring
from jobs.models import Job, Pause

PERMISSION = "jobs.pause_queue"


def resume(pause_id: int, by: str, reason: str) -> object:
    """End a pause by the id of its row; one that is gone has been ended already."""
    pause = Pause.objects.filter(pk=pause_id).first()
    return pause and control.resume(**{pause.kind: pause.name}, by=by, reason=reason)


RESUME = Verb(
    name="resume", label="Resume", permission=PERMISSION, question="Resume?",
    effect="What waits is sent again, most urgent first.", done="ended", perform=resume, possible=bool,
)  # fmt: skip


def task_names() -> list[str]:
    """The tasks that the project declares, and those of which there are jobs."""
    return sorted({*declared.tasks(), *occurring(Job, "task")})


class PauseForm(forms.Form):
    """What to pause, and why."""

    what = forms.ChoiceField(label="Queue or task")
    reason = forms.CharField(
        max_length=255,
        widget=forms.TextInput(attrs={"class": "vTextField"}),
        help_text="For those who wonder later.",
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        tasks = [(f"task:{name}", f"{short_task(name)} ({name})") for name in task_names()]
        field: Any = self.fields["what"]
        field.choices = [("Queues", [(f"queue:{name}", name) for name in queues()]), ("Tasks", tasks)]

    def chosen(self) -> dict[str, str]:
        """The choice as the keyword argument of the verb."""
        kind, _, name = self.cleaned_data["what"].partition(":")
        return {kind: name}


@admin.register(Pause)
class PauseAdmin(ActingAdmin):
    """What is paused."""

    list_display = ("name", "kind", "reason", "by", "since", "end")
    list_display_links = None
    ordering = ("kind", "name")
    verbs = (RESUME,)
    empty_template = "jobs/no_pauses.html"

    def get_urls(self) -> list[URLPattern]:
        """The page that asks what to pause."""
        return [
            path("pause/", self.admin_site.admin_view(self.pause), name="jobs_pause_pause"),
            *super().get_urls(),
        ]

    def get_list_display(self, request: HttpRequest) -> Any:
        """The columns; the button only for those who may press it."""
        columns = super().get_list_display(request)
        return columns if request.user.has_perm(PERMISSION) else [name for name in columns if name != "end"]

    def tools(self, request: HttpRequest) -> list[tuple[str, str]]:
        """The way to begin a pause."""
        return (
            [("Pause a queue or a task", address("admin:jobs_pause_pause"))]
            if request.user.has_perm(PERMISSION)
            else []
        )

    def pause(self, request: HttpRequest) -> HttpResponse:
        """Ask what to pause and why, then do it."""
        if not request.user.has_perm(PERMISSION):
            raise PermissionDenied
        form = PauseForm(request.POST or None, initial={"what": request.GET.get("what", "")})
        if form.is_valid() and self._paused(request, form):
            return HttpResponseRedirect(self.list_address())
        return self.rendered(request, "jobs/pause.html", {"title": "Pause a queue or a task", "form": form})

    def _paused(self, request: HttpRequest, form: PauseForm) -> bool:
        try:
            pause = control.pause(**form.chosen(), reason=form.cleaned_data["reason"], by=request.user.get_username())
        except JobsError as refusal:
            form.add_error(None, str(refusal))
            return False
        self.message_user(
            request, f"The {pause.kind} {pause.name} is paused. What runs now finishes.", messages.SUCCESS
        )
        return True

    @admin.display(description="since")
    def since(self, pause: Pause) -> SafeString | str:
        """When it began."""
        return when(pause.created_at)

    @admin.display(description="")
    def end(self, pause: Pause) -> SafeString:
        """The button that ends it."""
        return self.pressable(RESUME, pause)
