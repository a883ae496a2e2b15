"""How each task's jobs should end, derived from the plan: pure arithmetic, no database."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import astuple, dataclass

from project.demo.plan import is_charged, is_delivered
from project.demo.round import RATELESS_COUNTRY, OrderLine, Round

TASKS = "project.demo.tasks."
NIGHTLY = TASKS + "nightly_report"


@dataclass(frozen=True, slots=True)
class Ends:
    """How many jobs of a task end in which state."""

    completed: int = 0
    failed: int = 0
    cancelled: int = 0

    def __add__(self, other: Ends) -> Ends:
        return Ends(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))

    def __str__(self) -> str:
        return f"{self.completed} completed, {self.failed} failed, {self.cancelled} cancelled"


def paid(a_round: Round) -> list[OrderLine]:
    """The orders that end up charged."""
    return [line for line in a_round.charged() if is_charged(a_round.seed, line.number)]


def told(a_round: Round) -> list[OrderLine]:
    """The orders whose receipt arrives."""
    return [line for line in paid(a_round) if line.receipt and is_delivered(a_round.seed, line.email)]


def untaxable(a_round: Round) -> list[OrderLine]:
    """The orders whose tax cannot be booked before the missing rate is entered."""
    return [line for line in a_round.taxed() if line.country == RATELESS_COUNTRY]


def ends(a_round: Round) -> dict[str, Ends]:
    """How the jobs of a round end, by task; the scheduled reports are beyond foresight."""
    charged, with_receipt = paid(a_round), [line for line in paid(a_round) if line.receipt]
    arrived, pictures = len(told(a_round)), a_round.products * a_round.pictures
    spoilt = 1 if pictures else 0
    expected = {
        "ImportOrders": Ends(completed=1, failed=1),
        "ChargeOrder": Ends(completed=len(charged), failed=a_round.charges - len(charged)),
        "send_receipt": Ends(completed=arrived, failed=len(with_receipt) - arrived),
        "mark_shipped": Ends(completed=arrived),
        # Each letter is replayed as a job of its own, and the failed one stays on record.
        "book_tax": Ends(completed=a_round.taxes, failed=len(untaxable(a_round))),
        "make_thumbnail": Ends(completed=pictures - spoilt, failed=spoilt),
        "make_contact_sheet": Ends(completed=a_round.products - spoilt, failed=spoilt),
        "close_books": Ends(completed=1, cancelled=1),
        "announce_sale": Ends(cancelled=1),
        "ExportCatalogue": Ends(cancelled=1),
        "fold_leaflet": Ends(completed=a_round.leaflets + 1),
        "look_up_parcel": Ends(completed=a_round.parcels),
        "order_supplies": Ends(completed=a_round.supplies),
    }
    named = {TASKS + name: end for name, end in expected.items()}
    return named | {"project.demo.newsletter.subscribe": Ends(completed=a_round.subscribers)}


def total(rounds: Iterable[Round]) -> dict[str, Ends]:
    """How the jobs of several rounds end, by task."""
    summed: dict[str, Ends] = {}
    for a_round in rounds:
        for task, end in ends(a_round).items():
            summed[task] = summed.get(task, Ends()) + end
    return summed


def differences(expected: Mapping[str, Ends], found: Mapping[str, Ends]) -> Iterator[str]:
    """What is not as intended, a sentence per task.

    >>> list(differences({"shop.charge": Ends(2, 1)}, {"shop.charge": Ends(3, 0)}))
    ['shop.charge: intended 2 completed, 1 failed, 0 cancelled; found 3 completed, 0 failed, 0 cancelled']
    """
    for task in sorted((expected.keys() | found.keys()) - {NIGHTLY}):
        intended, ended = expected.get(task, Ends()), found.get(task, Ends())
        if intended != ended:
            yield f"{task}: intended {intended}; found {ended}"


def nightly_differences(found: Mapping[str, Ends]) -> Iterator[str]:
    """What is wrong with the scheduled reports: there must be some, all completed."""
    nightly = found.get(NIGHTLY, Ends())
    if nightly.failed or nightly.cancelled or not nightly.completed:
        yield f"{NIGHTLY}: intended at least 1 completed and nothing else; found {nightly}"
