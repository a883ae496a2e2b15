"""The numbers that Mainstay is designed for, as data: what must be, and where it wants to be known for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tests.bench import figures
from tests.bench.figures import Spread


@dataclass(frozen=True, slots=True)
class Must:
    """A ratio of ours to a peer's, or a figure of ours ``against`` nobody, in its ``unit``.

    ``more`` says whether it must not be less, or not be more.
    """

    what: str
    measure: str
    case: str
    figure: str
    against: str
    must: float
    aim: float
    more: bool = True
    ours: str = "mainstay"
    beside: tuple[str, str] | None = None
    unit: str = "×"

    @property
    def theirs(self) -> tuple[str, str]:
        """The measure and the case of the peer, where they are not ours."""
        return self.beside or (self.measure, self.case)

    @property
    def wanted(self) -> str:
        """The must and the aim in words."""
        sign = "≥" if self.more else "≤"
        return f"{sign} {self.must:g}{self.unit} (aim {sign} {self.aim:g}{self.unit})"

    def met(self, ratio: float) -> bool:
        """Whether a ratio is what it must be."""
        return ratio >= self.must if self.more else ratio <= self.must

    def reached(self, ratio: float) -> bool:
        """Whether a ratio is what it aims to be."""
        return ratio >= self.aim if self.more else ratio <= self.aim


AHEAD = ("celery-results", "rq", "rq-simple", "procrastinate", "django-q2", "django-tasks-db")
MUSTS = (
    *(
        Must(f"drain on PostgreSQL, {pool}, against stock Celery untracked", "drain", pool, "jobs_s", "celery", 1, 2)
        for pool in ("prefork", "threads", "solo")
    ),
    *(Must(f"drain on PostgreSQL against {name}", "drain", "prefork", "jobs_s", name, 1, 3) for name in AHEAD),
    Must("delay() against stock delay(), p50 in the caller", "enqueue", "outside", "p50_us", "celery", 1.5, 1, False),
    Must("bulk against a loop of stock delay(), jobs/s until committed", "bulk", "", "jobs_s", "celery", 10, 25),
    Must("idle broker to start of body, p50, against stock Celery", "pickup", "", "broker_p50_ms", "celery", 1.2, 1,
         False),
    Must("the conductor's releases against stock delay(), jobs/s", "release", "", "jobs_s", "celery", 5, 5,
         beside=("enqueue", "outside")),
    Must("a lone tenant's job behind the flood of another, until its body begins", "flood", "", "waited_s", "", 2, 0.5,
         False, unit=" s"),
)  # fmt: skip
ELSEWHERE = (
    "admin and dashboard at 10 million rows against 10 thousand (≤ 2×, aim 1.2×): `python -m tests.scale`",
    "jobs lost over the fault matrix (0): `make chaos`",
)

Found = Mapping[tuple[str, str, str], Mapping[int, Mapping[str, float]]]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of one must; without a ratio it was not measured."""

    must: Must
    ratio: Spread | None

    @property
    def status(self) -> str:
        """In a word or two."""
        if self.ratio is None:
            return "not measured"
        if not self.must.met(self.ratio.middle):
            return "NOT MET"
        return "met, aim too" if self.must.reached(self.ratio.middle) else "met"


def judged(found: Found) -> list[Verdict]:
    """Each must with what was found; ``found`` has rounds by (measure, case, system)."""
    return [Verdict(must, _ratio(must, found)) for must in MUSTS]


def _ratio(must: Must, found: Found) -> Spread | None:
    ours = _values(found, (must.measure, must.case, must.ours), must.figure)
    if not must.against:
        return Spread.of(list(ours.values())) if ours else None
    theirs = _values(found, (*must.theirs, must.against), must.figure)
    both = figures.ratios(ours, theirs)
    return Spread.of(both) if both else None


def _values(found: Found, place: tuple[str, str, str], figure: str) -> dict[int, float]:
    return {number: values[figure] for number, values in found.get(place, {}).items() if figure in values}
