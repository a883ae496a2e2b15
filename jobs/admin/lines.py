"""What waits: the queues, and of each the lines, by priority and tenant, with how many, since when and for what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.contrib import admin
from django.contrib.admin.views.main import ChangeList
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils.html import format_html, format_html_join
from django.utils.http import urlencode
from django.utils.safestring import SafeString

from jobs import backlog, lanes, lifecycle, stats, tally
from jobs.admin.base import ReadOnlyAdmin, Rows
from jobs.admin.filters import ByPriority, ByQueue
from jobs.admin.health import warnings
from jobs.admin.names import queues
from jobs.admin.pauses import PERMISSION as PAUSES
from jobs.admin.why import limit_address, queue_address, shown
from jobs.admin.wording import address, short_task, when
from jobs.backlog import InLane, Number
from jobs.errors import OptionError
from jobs.explain import explain_queue
from jobs.limits import Kind, binds
from jobs.models import Pause, Share
from jobs.states import Priority, State

LANES_OF_A_PAGE = 100


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue in the list of them."""

    name: str
    waiting: Number
    oldest: datetime | None
    reserved: int
    running: int
    paused: Pause | None

    @property
    def address(self) -> str:
        """Its page."""
        return queue_address(self.name)


def all_queues() -> list[Queue]:
    """Every queue, with its numbers: counted once for all of them."""
    counts, found = tally.unfinished(), Counter[tuple[str, str]]()
    for state, _, queue, many in counts.counts:
        found[queue, state] += many
    paused = {pause.name: pause for pause in stats.paused() if pause.kind == Pause.Kind.QUEUE}
    return [
        Queue(
            name,
            Number(
                found[name, State.PENDING] + found[name, State.RETRYING],
                more=counts.at_least, about=counts.as_of is not None,
            ),
            backlog.oldest(name), found[name, State.RESERVED], found[name, State.RUNNING], paused.get(name),
        )
        for name in queues()
    ]  # fmt: skip


class Lines(Rows):
    """A page of lines; what waits in them is read for all of its rows at once."""

    def get_results(self, request: HttpRequest) -> None:
        """The rows, with their lanes."""
        super().get_results(request)
        self.result_list = list(self.result_list)
        found = backlog.lanes_of_shares([row.pk for row in self.result_list])
        now = lifecycle.database_now()
        paused = {pause.name for pause in stats.paused() if pause.kind == Pause.Kind.QUEUE}
        for row in self.result_list:
            row.lanes_read, row.read_at, row.paused = found[row.pk], now, row.queue in paused


@admin.register(Share)
class ShareAdmin(ReadOnlyAdmin):
    """The lines in which jobs wait for a priority, a tenant or a limit."""

    list_display = ("whose", "priority_name", "place", "many", "oldest", "why")
    list_filter = (ByQueue, ByPriority)
    ordering = ("queue", "priority", "-is_open", "turn", "id")
    search_fields = ("tenant",)
    search_help_text = "The beginning of a tenant's name."
    change_list_template = "jobs/lines.html"
    page_template = "jobs/line.html"
    empty_template = "jobs/no_lines.html"

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Who may see jobs may see where they wait."""
        return bool(request.user.has_perm("jobs.view_job"))

    def has_module_permission(self, request: HttpRequest) -> bool:
        """The same."""
        return self.has_view_permission(request)

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        """The list that reads lanes."""
        return Lines

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        """The lines of tenants whose names begin so."""
        term = search_term.strip()
        return (queryset.filter(tenant__startswith=term) if term else queryset), False

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """The queues, or one queue's explanation, above its lines."""
        context: dict[str, Any] = {}
        if self.has_view_permission(request):
            context = _of_queue(request) if request.GET.get("queue") else {"queues": all_queues()}
        return super().changelist_view(request, context | (extra_context or {}))

    def notices(self, request: HttpRequest) -> list[str]:
        """What does not run although jobs wait for it; of one queue, its explanation says so."""
        return [] if request.GET.get("queue") else warnings()

    def page(self, request: HttpRequest, row: Share) -> dict[str, Any]:
        """A line, with the lanes in it."""
        now = lifecycle.database_now()
        found = backlog.lanes_of_share(row.pk, LANES_OF_A_PAGE + 1)
        return {
            "title": str(name_of(row)), "line": row, "tenant": name_of(row), "priority": priority_name(row.priority),
            "lanes": [_lane(lane, now) for lane in found[:LANES_OF_A_PAGE]], "more": len(found) > LANES_OF_A_PAGE,
            "queue_address": queue_address(row.queue),
            "jobs_address": address(
                "admin:jobs_job_changelist",
                query=urlencode({"tenant": row.tenant, "queue": row.queue, "state": "unfinished"}),
            ),
        }  # fmt: skip

    # --- Columns ---

    @admin.display(description="tenant")
    def whose(self, line: Share) -> str:
        """Whose jobs they are."""
        return name_of(line)

    @admin.display(description="priority")
    def priority_name(self, line: Share) -> str:
        """How urgent they are."""
        return priority_name(line.priority)

    @admin.display(description="queue")
    def place(self, line: Share) -> SafeString:
        """Where they wait, leading to that queue's page."""
        return format_html('<a href="{}">{}</a>', queue_address(line.queue), line.queue)

    @admin.display(description="jobs")
    def many(self, line: Any) -> str:
        """How many wait."""
        return many(line.lanes_read)

    @admin.display(description="oldest")
    def oldest(self, line: Any) -> SafeString | str:
        """Since when the first of them is due."""
        return when(min((lane.head_at for lane in line.lanes_read), default=None))

    @admin.display(description="waits for")
    def why(self, line: Any) -> SafeString | str:
        """What its lanes wait for, those with most jobs first."""
        if line.paused:
            at = address("admin:jobs_pause_changelist")
            return format_html('the pause of <a href="{}">{}</a>', at, line.queue)
        counted: Counter[SafeString | str] = Counter()
        for lane in line.lanes_read:
            counted[reason(lane, line.read_at)] += lane.jobs.of
        shown_first = counted.most_common(3)
        html = format_html_join("", "<div>{}{}</div>", ((why, _number(n, counted)) for why, n in shown_first))
        rest = len(counted) - len(shown_first)
        return html + format_html('<div class="jobs-quiet">and {} more reasons</div>', rest) if rest > 0 else html


def _number(jobs: int, counted: Counter[Any]) -> SafeString | str:
    return format_html(' <span class="jobs-quiet">{}</span>', f"{jobs:,}") if len(counted) > 1 else ""


def name_of(line: Share) -> str:
    """The tenant, or that there is none."""
    return line.tenant or "(no tenant)"


def priority_name(priority: int) -> str:
    """The name of a priority."""
    return Priority(priority).name.lower() if priority in list(Priority) else str(priority)


def many(of: list[InLane]) -> str:
    """How many jobs wait in some lanes: "1,000+" where counting stopped, or where not all lanes were read."""
    jobs = sum((lane.jobs for lane in of), backlog.NONE)
    return f"{jobs.of:,}{'+' if jobs.more or len(of) >= backlog.LANES_SHOWN else ''}"


def reason(lane: InLane, now: datetime) -> SafeString | str:
    """What a lane waits for, leading to the page of the limit."""
    if lane.waits_on == lanes.PAUSED:
        at = address("admin:jobs_pause_changelist")
        return format_html('the pause of <a href="{}">{}</a>', at, short_task(lane.task))
    for kind, words in ((Kind.SLOTS, "a slot of"), (Kind.TOKENS, "a token of")):
        if lane.waits_on.startswith(f"{kind.value} "):
            key = lane.waits_on.removeprefix(f"{kind.value} ")
            return format_html('{} <a href="{}">{}</a>', words, limit_address(kind, key), key)
    if lane.waits_on.startswith(f"{Kind.CIRCUIT.value} "):
        at = address("admin:jobs_circuit_changelist")
        return format_html('the circuit <a href="{}">{}</a>', at, lane.waits_on.removeprefix(f"{Kind.CIRCUIT.value} "))
    if lane.waits_on:
        return lane.waits_on
    return "its time" if lane.head_at > now else "its turn"


def _lane(lane: InLane, now: datetime) -> dict[str, Any]:
    """A lane as the page of its line shows it."""
    limits = [bind for bind in binds(lane.bound) if bind.kind is not Kind.CIRCUIT]
    keys = [(bind.key, limit_address(bind.kind, bind.key)) for bind in limits]
    return {"task": lane.task, "keys": keys, "many": many([lane]), "oldest": lane.head_at, "why": reason(lane, now)}


def _of_queue(request: HttpRequest) -> dict[str, Any]:
    """What the page of one queue says."""
    name = request.GET["queue"]
    try:
        told = explain_queue(name)
    except OptionError as error:
        return {"queue": name, "head": str(error), "parts": []}
    return {
        "queue": name, "head": told.head, "parts": shown(told.parts), "ways": list(_ways(request, name)),
        "title": f"Waiting in {name}",
    }  # fmt: skip


def _ways(request: HttpRequest, queue: str) -> Iterator[tuple[str, str]]:
    """Where to go from a queue."""
    query = urlencode({"queue": queue, "state": "unfinished"})
    yield "Its unfinished jobs", address("admin:jobs_job_changelist", query=query)
    if request.user.has_perm(PAUSES):
        paused = any(pause.kind == Pause.Kind.QUEUE and pause.name == queue for pause in stats.paused())
        query = urlencode({"what": f"queue:{queue}"})
        yield (
            ("Resume it", address("admin:jobs_pause_changelist"))
            if paused
            else ("Pause it…", address("admin:jobs_pause_pause", query=query))
        )
