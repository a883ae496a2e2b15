"""How far back a list of jobs looks: where no index leads further, it looks at the newest only, and can say so."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db import connections
from django.db.models import Q, QuerySet
from django.db.models.sql.datastructures import BaseTable

from jobs.models import Job
from jobs.states import FINAL, UNFINISHED, State

HORIZON = 10_000
RARE = {State.FAILED.value, State.CANCELLED.value}
# Each of these alone has an index in the order of the list; the first that is given leads.
LEADERS = ("tenant", "task", "tag", "queue", "state")
TAGGED = ~Q(tags=[])  # what leads to a tag: the jobs that have any


class Part(BaseTable):
    """The rows of a query, in the place of the whole table."""

    def __init__(self, rows: QuerySet[Any], alias: str, ending: str = "") -> None:
        super().__init__(rows.model._meta.db_table, alias)
        self.rows, self.alias, self.ending = rows, alias, ending

    def as_sql(self, compiler: Any, connection: Any) -> tuple[str, Any]:
        """The query, under the name of the table."""
        sql, parameters = self.rows.query.get_compiler(connection=connection).as_sql()
        return f"({sql}{self.ending}) {compiler.quote_name_unless_alias(self.alias)}", parameters

    def relabeled_clone(self, change_map: dict[str | None, str]) -> Part:
        """The same under another name."""
        return Part(self.rows, change_map.get(self.table_alias, self.alias), self.ending)


def among(rows: QuerySet[Any], found: QuerySet[Any] | None = None, ending: str = "") -> QuerySet[Any]:
    """Look for what was to be found, else for anything, among these rows alone; ``ending`` is SQL of ours."""
    looked = rows.model._base_manager.using(rows.db).all() if found is None else found.all()
    alias = looked.query.get_initial_alias()
    looked.query.alias_map[alias] = Part(rows, alias, ending)
    return looked


@dataclass(frozen=True, slots=True)
class Course:
    """What leads a list: the filter that has an index, the column that gives the order, whether it has to stop.

    ``column`` is the index's first, where the filter asks for one value of it.
    """

    leader: Q
    by: str
    bounded: bool
    column: str = ""
    value: str = ""

    @property
    def order(self) -> tuple[str, ...]:
        """Newest first; of jobs in a final state, those that ended last."""
        order = f"-{self.by}", "-id"
        return (f"-{self.column}", *order) if self.bounded and self.column else order

    def horizon(self, rows: QuerySet[Job]) -> datetime | None:
        """When the newest ``HORIZON`` of the rows begin; None where all of them may be looked at."""
        if not self.bounded:
            return None
        newest = rows.filter(self.leader).order_by(f"-{self.by}").values_list(self.by, flat=True)
        return next(iter(newest[HORIZON : HORIZON + 1]), None)

    def within(self, since: datetime | None) -> Q:
        """The jobs since that moment."""
        return Q(**{f"{self.by}__gte": since}) if since is not None else Q()

    def nearest(self, found: QuerySet[Job], everything: QuerySet[Job], since: datetime | None) -> QuerySet[Job]:
        """Those of the found jobs that are not beyond the horizon of everything, which is at ``since``."""
        if since is None or not self.column or connections[found.db].vendor != "postgresql":
            return found.filter(self.within(since))
        # PostgreSQL thinks that many rows side by side cost less than few that lie apart: left to choose, it walks
        # along all newest jobs to find those of a queue. So they are taken along the queue's index first, by a range
        # of one value: with "=" the order would no longer name the column, and be that of another index.
        one = Q(**{f"{self.column}__gte": self.value, f"{self.column}__lte": self.value})
        one &= Q(finished_at__isnull=False) if self.column == "state" else Q()
        newest = everything.defer(None).filter(one).order_by(*self.order[:-1])
        return among(newest, found, f" FETCH FIRST {HORIZON + 1} ROWS WITH TIES")


def course(given: Mapping[str, Q], state: str | None = None, others: Collection[str] = ()) -> Course:
    """Choose what leads a list with these filters, of which those among ``LEADERS`` have an index."""
    if state in UNFINISHED or state == "unfinished":
        return Course(Q(finished_at__isnull=True), "created_at", bounded=False)
    leader = "state" if state in RARE else next((name for name in LEADERS if name in given), None)
    by = "finished_at" if leader == "state" and state in FINAL else "created_at"
    rest = {*given, *others} - {leader}
    if leader is None:
        return Course(Q(), by, bounded=bool(rest))
    asked: dict[str, Any] = dict(child for child in given[leader].children if isinstance(child, tuple))
    column = leader if isinstance(asked.get(leader), str) else ""
    return Course(given[leader], by, bool(rest) or leader == "tag", column, asked[leader] if column else "")


def of_state(state: str) -> Q:
    """The jobs of a state, said so that the database knows which index has them."""
    return Q(state=state, finished_at__isnull=state in UNFINISHED)
