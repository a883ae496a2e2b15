"""How far back a list of jobs looks: where no index leads further, it looks at the newest only, and can say so."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime

from django.db.models import Q, QuerySet

from jobs.models import Job
from jobs.states import FINAL, UNFINISHED, State

HORIZON = 10_000
RARE = {State.FAILED.value, State.CANCELLED.value}
# Each of these alone has an index in the order of the list; the first that is given leads.
LEADERS = ("tenant", "task", "queue", "state")


@dataclass(frozen=True, slots=True)
class Course:
    """What leads a list: the filter that has an index, the column that gives the order, whether it has to stop."""

    leader: Q
    by: str
    bounded: bool

    @property
    def order(self) -> tuple[str, str]:
        """Newest first; of jobs in a final state, those that ended last."""
        return f"-{self.by}", "-id"

    def horizon(self, rows: QuerySet[Job]) -> datetime | None:
        """When the newest ``HORIZON`` of the rows begin; None where all of them may be looked at."""
        if not self.bounded:
            return None
        newest = rows.filter(self.leader).order_by(f"-{self.by}").values_list(self.by, flat=True)
        return next(iter(newest[HORIZON : HORIZON + 1]), None)

    def within(self, since: datetime | None) -> Q:
        """The jobs since that moment."""
        return Q(**{f"{self.by}__gte": since}) if since is not None else Q()


def course(given: Mapping[str, Q], state: str | None = None, others: Collection[str] = ()) -> Course:
    """Choose what leads a list with these filters, of which those among ``LEADERS`` have an index."""
    if state in UNFINISHED or state == "unfinished":
        return Course(Q(finished_at__isnull=True), "created_at", bounded=False)
    leader = "state" if state in RARE else next((name for name in LEADERS if name in given), None)
    by = "finished_at" if leader == "state" and state in FINAL else "created_at"
    rest = {*given, *others} - {leader}
    return Course(given[leader] if leader else Q(), by, bounded=bool(rest))


def of_state(state: str) -> Q:
    """The jobs of a state, said so that the database knows which index has them."""
    return Q(state=state, finished_at__isnull=state in UNFINISHED)
