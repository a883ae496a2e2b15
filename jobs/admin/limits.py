"""Limits and weights: what the code declares beside what holds now, by whose word, how full; set and withdrawn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.views.main import ChangeList
from django.core.exceptions import PermissionDenied, ValidationError
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.utils.html import format_html
from django.utils.http import urlencode
from django.utils.safestring import SafeString

from jobs import control, gauges, obeyed, standing
from jobs.admin.base import Rows
from jobs.admin.buttons import ActingAdmin, Verb
from jobs.admin.why import limit_address
from jobs.admin.wording import address, label, short_task, when
from jobs.errors import JobsError
from jobs.gauges import Gauge, Rule
from jobs.limits import Numbers
from jobs.models import Allotment

PERMISSION = "jobs.set_limit"
KEYS_SHOWN = 50
JOBS_SHOWN = 50

SLOTS, TOKENS, WEIGHT = (kind.value for kind in Allotment.Kind)
WHAT = obeyed.WHAT | {WEIGHT: "turns of a tenant"}
SET = {SLOTS: "Limit jobs at a time", TOKENS: "Limit a rate", WEIGHT: "Weigh a tenant"}


def withdraw(allotment_id: int, by: str, reason: str) -> object:
    """Take back what was set, by the id of its row; what is gone was withdrawn already."""
    row = Allotment.objects.filter(pk=allotment_id).first()
    return row and control.withdraw(row.kind, row.name, by=by, reason=reason)


WITHDRAW = Verb(
    name="withdraw", label="Withdraw", permission=PERMISSION, question="Withdraw?",
    effect="What the code declares holds again, from the next release on. A tenant has a weight of 1 again.",
    done="withdrawn", perform=withdraw, possible=bool,
)  # fmt: skip


# --- Setting ----------------------------------------------------------------------------------------


class Setting(forms.Form):
    """What everything that is set has in common: a name, and why."""

    kind = ""
    fields_of_value: ClassVar[tuple[str, ...]] = ()

    name = forms.CharField(
        label="Key", max_length=255, widget=forms.TextInput(attrs={"class": "vTextField", "list": "names"}),
        help_text="As a task declares it, for all keys of that form; or one key, such as customer:7. Or for all jobs: "
        "queue mail, task shop.tasks.charge, tenant acme.",
    )  # fmt: skip
    reason = forms.CharField(
        max_length=255, widget=forms.TextInput(attrs={"class": "vTextField"}), help_text="For those who wonder later.",
    )  # fmt: skip

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.order_fields(["name", *self.fields_of_value, "reason"])

    def clean_name(self) -> str:
        """The name, once it is known that somebody uses it: a mistyped one would limit nothing."""
        name = str(self.cleaned_data["name"])
        if self.kind != WEIGHT and (mistake := obeyed.mistake(self.kind, name)):
            raise ValidationError(mistake)
        return name

    def said(self) -> dict[str, Any]:
        """What ``control.allot`` is to be told."""
        values = {name: self.cleaned_data[name] for name in self.fields_of_value}
        return {name: value for name, value in values.items() if value not in (None, "")}


class SlotsForm(Setting):
    """How many at a time."""

    kind = SLOTS
    fields_of_value = ("slots",)
    slots = forms.IntegerField(
        label="Jobs at a time", min_value=1, max_value=1_000_000,
        error_messages={"min_value": "1 or more. To let none run, pause the queue or the task."},
    )  # fmt: skip


class TokensForm(Setting):
    """How many in a span of time."""

    kind = TOKENS
    fields_of_value = ("rate", "burst")
    rate = forms.CharField(label="Rate", max_length=50, help_text="20/s, 100/m, 5/h or 1/d: how many in which span.")
    burst = forms.IntegerField(
        label="Burst", min_value=1, max_value=1_000_000, required=False,
        help_text="How many may start at once after a quiet time; as many as in one span, if you leave it empty.",
    )  # fmt: skip


class WeightForm(Setting):
    """How many turns for one of another."""

    kind = WEIGHT
    fields_of_value = ("weight",)
    weight = forms.FloatField(label="Weight", help_text="How many turns it has for one of a tenant with a weight of 1.")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["name"].label = "Tenant"
        self.fields["name"].help_text = "As the calls name it: apply_async(…, tenant=…)."


FORMS: dict[str, type[Setting]] = {SLOTS: SlotsForm, TOKENS: TokensForm, WEIGHT: WeightForm}


# --- What is declared -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Declared:
    """A declared limit as the list shows it."""

    rule: Rule
    said: Allotment | None
    fullest: Gauge | None
    keys: int

    @property
    def in_code(self) -> str:
        """What the code says."""
        return in_words(self.rule.kind.value, self.rule.said)

    @property
    def now(self) -> str:
        """What was said in its place."""
        return in_words(self.rule.kind.value, self.said.said) if self.said else ""

    @property
    def address(self) -> str:
        """Its page."""
        return limit_address(self.rule.kind, self.rule.name)

    @property
    def tasks(self) -> str:
        """The tasks that declare it, in short."""
        names = [short_task(name) for name in self.rule.tasks]
        return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")

    @property
    def change(self) -> str:
        """Where it is changed."""
        return set_address(self.rule.kind, self.rule.name)


def declared_limits() -> list[Declared]:
    """Every limit that tasks declare, with what holds in its place and its fullest key."""
    rules, rows = gauges.rules(), []
    names = {name for rule in rules for name in (rule.name, *rule.templates)}
    said = {(row.kind, row.name): row for row in Allotment.objects.filter(name__in=names)}
    of: dict[tuple[str, str], list[Gauge]] = {}
    for gauge in gauges.in_use():
        for name in {gauge.bind.rule, gauge.key}:
            of.setdefault((gauge.bind.kind.value, name), []).append(gauge)
    for rule in rules:
        kind, found = rule.kind.value, of.get((rule.kind.value, rule.name), [])
        holds = next((said[kind, name] for name in (rule.name, *rule.templates) if (kind, name) in said), None)
        rows.append(Declared(rule, holds, next(iter(found), None), len(found)))
    return rows


def set_address(kind: str, name: str = "") -> str:
    """The page that sets a limit or a weight."""
    at = address(f"admin:jobs_allotment_set_{kind}")
    return f"{at}?{urlencode({'name': name})}" if at and name else at


class Said(Rows):
    """A page of what operators said; how full the keys are is read for all of its rows at once."""

    def get_results(self, request: HttpRequest) -> None:
        """The rows, each with its gauge; of a template there are many keys, and of a weight none."""
        super().get_results(request)
        self.result_list = list(self.result_list)
        found = gauges.of_names((r.kind, r.name) for r in self.result_list if r.kind != WEIGHT and "{" not in r.name)
        for row in self.result_list:
            row.gauge = found.get((row.kind, row.name))


@admin.register(Allotment)
class AllotmentAdmin(ActingAdmin):
    """The declared limits, and what operators said in their place."""

    list_display = ("named", "now", "use", "whose", "end")
    list_display_links = None
    ordering = ("kind", "name")
    search_fields = ("name",)
    search_help_text = "The beginning of a key or of a tenant's name."
    verbs = (WITHDRAW,)
    change_list_template = "jobs/limits.html"
    empty_template = "jobs/no_allotments.html"

    def get_urls(self) -> list[URLPattern]:
        """The pages that set, and the page of a limit."""
        view = self.admin_site.admin_view
        setting = [
            path(f"set/{kind}/", view(self.set), {"kind": kind}, name=f"jobs_allotment_set_{kind}") for kind in FORMS
        ]
        return [*setting, path("limit/", view(self.limit), name="jobs_allotment_limit"), *super().get_urls()]

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        """The list that reads how full the keys are."""
        return Said

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        """Those whose names begin so."""
        term = search_term.strip()
        return (queryset.filter(name__startswith=term) if term else queryset), False

    def get_list_display(self, request: HttpRequest) -> Any:
        """The columns; the button only for those who may press it."""
        columns = super().get_list_display(request)
        return columns if may_set(request) else [name for name in columns if name != "end"]

    def tools(self, request: HttpRequest) -> list[tuple[str, str]]:
        """The ways to set something."""
        return [(text, set_address(kind)) for kind, text in SET.items()] if may_set(request) else []

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """What is declared, above what was said."""
        rows = declared_limits() if self.has_view_permission(request) else []
        return super().changelist_view(request, {"declared": rows, "may_set": may_set(request)} | (extra_context or {}))

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """What was said of a key is shown on the key's page."""
        row = self.row(request, object_id)
        if row is None or row.kind == WEIGHT:
            return HttpResponseRedirect(self.list_address())
        return HttpResponseRedirect(limit_address(row.kind, row.name))

    # --- Pages of its own ---

    def limit(self, request: HttpRequest) -> HttpResponse:
        """One limit: what is declared, what holds, how full it is, by which jobs."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        kind, name = request.GET.get("kind", ""), request.GET.get("name", "")
        if kind not in (SLOTS, TOKENS) or not name:
            raise Http404("Name a kind (slots, tokens) and a key.")
        return self.rendered(request, "jobs/limit.html", self._limit(request, kind, name))

    def _limit(self, request: HttpRequest, kind: str, name: str) -> dict[str, Any]:
        rule, said = gauges.rule(kind, name), gauges.said(kind, name)
        many_keys = "{" in name or (rule is not None and rule.by_function)
        keys = [g for g in gauges.in_use() if (g.bind.kind, g.bind.rule) == (kind, name)] if many_keys else []
        gauge = None if many_keys else gauges.of_key(kind, name)
        above = [each for each in gauges.rules_of(kind, name) if each.name != name and not each.by_function][:1]
        return {
            "title": name, "name": name, "what": WHAT[kind], "rule": rule, "said": said, "above": above, "gauge": gauge,
            "keys": keys[:KEYS_SHOWN], "more_keys": max(0, len(keys) - KEYS_SHOWN), "many_keys": many_keys,
            "tasks": tasks_of(rule), "is_rate": kind == TOKENS, "row_id": said.pk if said else "",
            "jobs": gauges.holders(name, JOBS_SHOWN) if kind == SLOTS and not many_keys else [],
            "buttons": [WITHDRAW] if said and may_set(request) else [],
            "change": set_address(kind, name) if may_set(request) else "",
        }  # fmt: skip

    def set(self, request: HttpRequest, kind: str) -> HttpResponse:
        """Ask for the numbers and the reason, then set them."""
        if not may_set(request):
            raise PermissionDenied
        name = request.POST.get("name", request.GET.get("name", ""))
        form = FORMS[kind](request.POST or None, initial=self._initial(kind, name))
        if request.method == "POST" and form.is_valid() and self._was_set(request, form):
            at = self.list_address() if kind == WEIGHT else limit_address(kind, form.cleaned_data["name"])
            return HttpResponseRedirect(at if self.has_view_permission(request) else address("admin:index"))
        return self._asked(request, kind, name, form)

    def _asked(self, request: HttpRequest, kind: str, name: str, form: Setting) -> TemplateResponse:
        names = [rule.name for rule in gauges.rules() if rule.kind == kind]
        context = {
            "title": SET[kind], "form": form, "names": names, "rule": gauges.rule(kind, name) if name else None,
            "said": gauges.said(kind, name) if name else None, "weight": kind == WEIGHT,
            "takes_back": kind == SLOTS,
        }  # fmt: skip
        return self.rendered(request, "jobs/set_limit.html", context)

    def _initial(self, kind: str, name: str) -> dict[str, Any]:
        """What holds now."""
        said = gauges.said(kind, name) if name else None
        rule = gauges.rule(kind, name) if name else None
        if said is not None:
            text = gauges.as_said(kind, Numbers(said.amount, said.burst))
        else:
            text = rule.said if rule is not None else ""
        number, _, burst = text.partition(", burst ")
        return {"name": name, "slots": number, "rate": number, "weight": number, "burst": burst}

    def _was_set(self, request: HttpRequest, form: Setting) -> bool:
        name, by = form.cleaned_data["name"], request.user.get_username()
        try:
            row = control.allot(name, **form.said(), by=by, reason=form.cleaned_data["reason"])
        except JobsError as refusal:
            form.add_error(form.fields_of_value[0], str(refusal))
            return False
        told = f"From the next release on, {name} has {in_words(row.kind, row.said)}."
        self.message_user(request, told, messages.SUCCESS)
        return True

    # --- Columns ---

    @admin.display(description="key or tenant")
    def named(self, row: Allotment) -> SafeString | str:
        """Its name, leading to its page."""
        if row.kind == WEIGHT:
            query = urlencode({"tenant": row.name})
            return format_html('<a href="{}">{}</a>', address("admin:jobs_job_changelist", query=query), row.name)
        return format_html('<a href="{}">{}</a>', limit_address(row.kind, row.name), row.name)

    @admin.display(description="holds now")
    def now(self, row: Allotment) -> SafeString:
        """What was said, over what the code says."""
        html = '{}<div class="jobs-quiet">in the code: {}</div>'
        return format_html(html, in_words(row.kind, row.said), declared_value(row))

    @admin.display(description="in use")
    def use(self, row: Any) -> SafeString | str:
        """How full it is; of a template there may be many keys."""
        return meter(row.gauge)

    @admin.display(description="set by")
    def whose(self, row: Allotment) -> SafeString | str:
        """Who said it, when, and why."""
        html = '{}, {}<div class="jobs-quiet jobs-clip" title="{}">{}</div>'
        return format_html(html, row.by, when(row.created_at, units=1), row.reason, row.reason)

    @admin.display(description="")
    def end(self, row: Allotment) -> SafeString:
        """The button that takes it back; it is changed on its key's page."""
        return self.pressable(WITHDRAW, row)


def may_set(request: HttpRequest) -> bool:
    """Whether this user may set limits and weights."""
    return bool(request.user.has_perm(PERMISSION))


def in_words(kind: str, said: str) -> str:
    """Numbers with what they count."""
    return f"{said} at a time" if kind == SLOTS else f"weight {said}" if kind == WEIGHT else said


def declared_value(row: Allotment) -> SafeString | str:
    """What the code says of what an operator said."""
    if row.kind == WEIGHT:
        return "weight 1"
    rules = gauges.rules_of(row.kind, row.name)
    if standing.scope_of(row.name) is not None:
        return "nothing, for all of it"
    if not rules:
        return label("nothing declares it", "failed", "No task declares a limit with this key: nothing obeys it.")
    by_function = rules[0].by_function and rules[0].name != row.name
    return "by a function" if by_function else in_words(row.kind, rules[0].said)


def tasks_of(rule: Rule | None) -> Iterator[str]:
    """The tasks that declare a limit."""
    return iter(rule.tasks if rule is not None else ())


def meter(gauge: Gauge | None) -> SafeString | str:
    """How full a key is, as a bar and in numbers."""
    if gauge is None:
        return ""
    tone = "jobs-full" if gauge.full else ""
    html = '<progress class="jobs-progress {}" max="100" value="{}">{} %</progress> {}'
    percent = min(100, round(100 * gauge.share))
    return format_html(html, tone, percent, percent, gauge.said)
