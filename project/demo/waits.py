"""What of the demo waits, and why: the last of a flood, one behind a limited API, one in a paused queue."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from django.db.models import QuerySet

from jobs.explain import Explanation, explain
from jobs.models import Job
from jobs.states import WAITING, State
from project.demo import evidence, parcels, tasks
from project.demo.round import SHOPS, Round
from project.demo.seeding import SUPPLIERS

BEFORE_ITS_START = {*WAITING, State.RESERVED}


@dataclass(frozen=True, slots=True)
class Wait:
    """Jobs of which the last one waits, and the word that its explanation must have."""

    about: str
    jobs: QuerySet[Job]
    word: str

    def explained(self) -> Explanation | None:
        """Why the last of them waits; None while none does, or for another reason."""
        last = self.jobs.filter(state__in=BEFORE_ITS_START).order_by("-created_at", "-pk").first()
        told = explain(last.pk) if last else None
        return told if told and any(part.word == self.word for part in told.parts) else None


def waits(a_round: Round) -> list[Wait]:
    """What a round shows of waiting."""
    flood, number = f"{a_round.leaflets:,} leaflets of {SHOPS[0]} at once", f"{a_round.number:02d}"
    limited = f"{a_round.parcels} parcels to look up, {parcels.ALLOWED} allowed"
    paused = f"{a_round.supplies} orders in the paused queue {SUPPLIERS}"
    leaflets, lookups, supplies = (
        Job.objects.filter(task=task.name) for task in (tasks.fold_leaflet, tasks.look_up_parcel, tasks.order_supplies)
    )
    return [
        Wait(flood, leaflets.filter(key__startswith=f"leaflet:{SHOPS[0]}:{number}-"), "line"),
        Wait(limited, lookups.filter(key__startswith=f"parcel:P{number}-"), "rate"),
        Wait(paused, supplies.filter(key__startswith=f"supply:{number}-"), "paused"),
    ]


@dataclass(slots=True)
class Look:
    """What has been seen of a round: why its jobs wait, and when the lone leaflet had its turn."""

    a_round: Round
    told: dict[str, Explanation] = field(default_factory=dict)
    turn: evidence.Turn | None = None

    def again(self) -> bool:
        """Look for what is still to be seen; whether that was the last."""
        for wait in waits(self.a_round):
            if wait.about not in self.told and (told := wait.explained()):
                self.told[wait.about] = told
        self.turn = self.turn or evidence.turn_of(self.a_round)
        return not list(self.unseen())

    def unseen(self) -> Iterator[str]:
        """What has not been seen yet, or is not as it should be."""
        for wait in waits(self.a_round):
            if wait.about not in self.told:
                yield f"{wait.about}: no job waits with the reason {wait.word!r}"
        if self.turn is None:
            yield f"the single leaflet of {SHOPS[1]} has not started"
        elif self.turn.before > evidence.SENT_BEFORE:
            yield str(self.turn)

    def lines(self) -> Iterator[str]:
        """All of it in words."""
        if self.turn is not None:
            yield f"fair: {self.turn}"
        for about, told in self.told.items():
            yield f"\n{about}; the last of them waits (manage.py jobs explain {told.job_id}):"
            yield from (f"    {part.sentence}" for part in told.parts)
        yield ""
