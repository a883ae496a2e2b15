"""Verbs as buttons: who may press them, the question and the reason before, the sentence after."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from django.contrib import messages
from django.core.exceptions import PermissionDenied, ValidationError
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern, path
from django.utils.html import format_html
from django.utils.safestring import SafeString

from jobs.admin.base import ReadOnlyAdmin
from jobs.errors import JobsError, Refused

MOST_AT_ONCE = 1000


@dataclass(frozen=True, slots=True)
class Question:
    """What a verb asks beside the reason: ``understood`` makes a value of the text, or raises ``ValueError``."""

    label: str
    help: str
    understood: Callable[[str], Any]


@dataclass(frozen=True, slots=True)
class Verb:
    """One thing that an operator may do to a row.

    ``perform`` takes the row's id, the user's name and the reason, and the answer to ``asks`` where there is one;
    ``possible`` tells whether a row allows it.
    """

    name: str
    label: str
    permission: str
    question: str
    effect: str
    done: str
    perform: Callable[..., object]
    possible: Callable[[Any], bool]
    needs_reason: bool = False
    dangerous: bool = False
    asks: Question | None = None


class ActingAdmin(ReadOnlyAdmin):
    """A read-only list whose rows have verbs."""

    verbs: ClassVar[Sequence[Verb]] = ()

    def permitted(self, request: HttpRequest) -> dict[str, Verb]:
        """The verbs that this user may use, by name."""
        return {verb.name: verb for verb in self.verbs if request.user.has_perm(verb.permission)}

    def buttons(self, request: HttpRequest, row: Any) -> list[Verb]:
        """The buttons of a row's page: what this user may do, and the row allows."""
        return [verb for verb in self.permitted(request).values() if verb.possible(row)]

    def get_actions(self, request: HttpRequest) -> dict[str, tuple[Callable[..., Any], str, str]]:  # type: ignore[override]
        """The permitted verbs as actions on a selection."""
        return {verb.name: (_asking(verb), verb.name, f"{verb.label}…") for verb in self.permitted(request).values()}

    def get_urls(self) -> list[URLPattern]:
        """The page that asks and acts, beside Django's own."""
        name = f"{self.opts.app_label}_{self.opts.model_name}_act"
        return [path("act/", self.admin_site.admin_view(self.act), name=name), *super().get_urls()]

    def act(self, request: HttpRequest) -> HttpResponse:
        """Ask about a verb on some rows (POST), then do it (POST with ``confirmed``)."""
        name, ids = _wanted(request)
        verb = self.permitted(request).get(name)
        if verb is None or not ids or not self.has_view_permission(request):
            raise PermissionDenied
        reason = request.POST.get("reason", "").strip()
        if "confirmed" not in request.POST or (verb.needs_reason and not reason):
            return self.ask(request, verb, ids, missing_reason="confirmed" in request.POST)
        try:
            answers = [verb.asks.understood(request.POST.get("answer", ""))] if verb.asks else []
        except ValueError as error:
            return self.ask(request, verb, ids, misunderstood=str(error))
        last = self.perform(request, verb, ids, reason, *answers)
        to_page = len(ids) == 1 and self.page_template
        return HttpResponseRedirect(self.row_address(last or ids[0]) if to_page else self.list_address())

    def pressable(self, verb: Verb, row: Any) -> SafeString:
        """A button in a row of the list."""
        html = '<button type="submit" class="button" formaction="{}act/" name="press" value="{} {}">{}…</button>'
        return format_html(html, self.list_address(), verb.name, row.pk, verb.label)

    def ask(
        self, request: HttpRequest, verb: Verb, ids: Sequence[str], *, missing_reason: bool = False,
        misunderstood: str = "",
    ) -> HttpResponse:  # fmt: skip
        """The page that asks for confirmation, and for the reason."""
        try:
            rows = list(self.get_queryset(request).filter(pk__in=ids[:20]))
        except (ValidationError, ValueError):
            raise PermissionDenied from None
        context = {
            "title": verb.question, "verb": verb, "ids": " ".join(ids), "rows": rows, "missing_reason": missing_reason,
            "misunderstood": misunderstood, "answer": request.POST.get("answer", ""),
            "reason": request.POST.get("reason", ""), "number": len(ids),
            "more": len(ids) - len(rows), "act_address": f"{self.list_address()}act/",
        }  # fmt: skip
        return self.rendered(request, "jobs/confirm.html", context)

    def perform(self, request: HttpRequest, verb: Verb, ids: Sequence[str], reason: str, *answers: Any) -> Any:
        """Do it to each row, say how it went, and return what the last one became."""
        refusals: Counter[str] = Counter()
        last: Any = None
        for row_id in ids:
            try:
                last = verb.perform(self.opts.pk.to_python(row_id), request.user.get_username(), reason, *answers)
            except (JobsError, ValidationError) as refusal:
                refusals[_sentence(refusal)] += 1
        self._tell(request, verb, len(ids) - refusals.total(), refusals)
        return last if hasattr(last, "_meta") and last._meta.model is self.model else None

    def _tell(self, request: HttpRequest, verb: Verb, number: int, refusals: Counter[str]) -> None:
        if number:
            self.message_user(request, f"{counted(number, self.opts)} {verb.done}.", messages.SUCCESS)
        for sentence, times in refusals.most_common(5):
            self.message_user(request, f"{sentence} ({times} times)" if times > 1 else sentence, messages.ERROR)


def counted(number: int, opts: Any) -> str:
    """A number of rows in words: "1 job", "12 jobs"."""
    return f"{number:,} {opts.verbose_name if number == 1 else opts.verbose_name_plural}"


def _wanted(request: HttpRequest) -> tuple[str, list[str]]:
    """The verb and the ids: in fields of their own, or in the one value of a button inside a list."""
    if "press" in request.POST:
        name, *ids = request.POST["press"].split()
        return name, ids[:1]
    return request.POST.get("verb", ""), request.POST.get("ids", "").split()[:MOST_AT_ONCE]


def _asking(verb: Verb) -> Callable[[ActingAdmin, HttpRequest, QuerySet[Any]], HttpResponse]:
    def action(admin: ActingAdmin, request: HttpRequest, rows: QuerySet[Any]) -> HttpResponse:
        ids = [str(pk) for pk in rows.values_list("pk", flat=True)[: MOST_AT_ONCE + 1]]
        if len(ids) > MOST_AT_ONCE:
            admin.message_user(
                request,
                f"More than {MOST_AT_ONCE:,} are selected: only the first {MOST_AT_ONCE:,} of the list are taken. "
                "Repeat it for the rest.",
                messages.WARNING,
            )
        return admin.ask(request, verb, ids[:MOST_AT_ONCE])

    return action


def _sentence(refusal: Exception) -> str:
    if isinstance(refusal, Refused | JobsError):
        return str(refusal)
    return "This id is not one of ours."
