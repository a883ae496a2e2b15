"""What the world outside the jobs table shows: ledger, kept mail, files on disk, the shop's own rows."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
from django.db.models import Q

from jobs.models import Act, Job
from jobs.states import State
from project.demo import conf, expected, parcels, tasks
from project.demo.mailbox import kept, message_name
from project.demo.models import ImportRun, Order, Payment, Product, Promise, Receipt, Subscriber, TaxEntry, Thumbnail
from project.demo.round import SHOPS, Round
from project.demo.seeding import SUPPLIERS, order_file_of

ORDER_NUMBER = re.compile(r"\d\d-\d{6}")


@dataclass(slots=True)
class Findings:
    """What was lost without a trace, and what else is not as intended; a sentence each."""

    lost: list[str] = field(default_factory=list)
    amiss: list[str] = field(default_factory=list)

    def compare(self, what: str, intended: Iterable[str], found: Iterable[str]) -> None:
        """Note what is missing and what is too much; the first word of a name says what it is about."""
        wanted, there = set(intended), set(found)
        for name in sorted(wanted - there):
            (self.amiss if accounted_for(name.split()[0]) else self.lost).append(f"{what}: missing {name}")
        self.amiss += [f"{what}: not intended {name}" for name in sorted(there - wanted)]


def accounted_for(identity: str) -> bool:
    """Whether a job that has not completed explains why nothing came of an order, a picture or an address."""
    about = Q(metadata__order=identity) | Q(payload__contains=identity.rsplit("/", 1)[-1])
    if ORDER_NUMBER.fullmatch(identity):
        about |= Q(metadata__file=order_file_of(int(identity[:2])))
    return Job.objects.filter(about).exclude(state=State.COMPLETED).exists()


def gather(rounds: list[Round], ledger: dict[str, Any]) -> Findings:
    """Compare all effects of the rounds with the plan."""
    findings = Findings()
    findings.lost += vanished_jobs()
    look_at_orders(findings, rounds)
    look_at_imports(findings, rounds)
    look_at_charges(findings, rounds, ledger["charges"])
    look_at_mail(findings, rounds)
    look_at_pictures(findings, rounds)
    look_at_books(findings, rounds)
    look_at_leaflets(findings, rounds)
    look_at_parcels(findings, rounds, ledger.get("looked_up", []))
    look_at_supplies(findings)
    return findings


def ledger_of_gateway() -> dict[str, Any]:
    """The gateway's own record of what it charged."""
    answer = httpx.get(f"{conf.GATEWAY_URL}/ledger", timeout=10, trust_env=False)
    ledger: dict[str, Any] = answer.raise_for_status().json()
    return ledger


def vanished_jobs() -> list[str]:
    """Jobs that were enqueued and have no row."""
    rows = set(Job.objects.values_list("pk", flat=True))
    return [
        f"job {promise.job_id} of {promise.about} has no row"
        for promise in Promise.objects.all()
        if promise.pk not in rows
    ]


def look_at_orders(findings: Findings, rounds: list[Round]) -> None:
    """Every line of every readable order file is an order, and nothing else is."""
    intended = (a_round.order_number(index) for a_round in rounds for index in range(a_round.orders))
    findings.compare("orders", intended, Order.objects.values_list("number", flat=True))
    shipped = Order.objects.filter(state=Order.State.SHIPPED).values_list("number", flat=True)
    findings.compare("shipped orders", (line.number for r in rounds for line in expected.told(r)), shipped)


def look_at_imports(findings: Findings, rounds: list[Round]) -> None:
    """Every row of a file was brought in once, although the power was cut half-way."""
    for a_round in rounds:
        resumed = resumption(a_round)
        if resumed is not None and resumed.rows != a_round.orders:
            findings.amiss.append(f"imports: intended {a_round.orders} rows, found: {resumed}")
        if conf.POWER_CUT and (resumed is None or not resumed.cuts):
            findings.amiss.append(f"imports: the power was not cut during that of {a_round.name}")


@dataclass(frozen=True, slots=True)
class Resumption:
    """How an import came to its end."""

    file: str
    cuts: int
    attempts: int
    rows: int

    def __str__(self) -> str:
        times = f"{self.cuts} power cut{'' if self.cuts == 1 else 's'}, {self.attempts} attempts"
        return f"import of {self.file}: {times}, {self.rows:,} rows, each brought in once"


def resumption(a_round: Round) -> Resumption | None:
    """How the import of a round came to its end; ``rows`` counts a row that was brought in twice twice."""
    name = order_file_of(a_round.number)
    job = Job.objects.filter(metadata__file=name, state=State.COMPLETED).first()
    run = ImportRun.objects.filter(file=name, done=True).first()
    return Resumption(name, job.losses, job.attempt, run.cursor) if job and run else None


def look_at_charges(findings: Findings, rounds: list[Round], charges: list[dict[str, str]]) -> None:
    """Every payable order was charged exactly once, with its own amount, and the shop knows of it."""
    lines = [line for a_round in rounds for line in expected.paid(a_round)]
    findings.compare("charged orders", (line.number for line in lines), (charge["order"] for charge in charges))
    findings.amiss += charged_twice(charges)
    amounts = {f"{line.number} {line.amount}" for line in lines}
    findings.compare("charged amounts", amounts, (f"{c['order']} {c['amount']}" for c in charges))
    payments = Payment.objects.values_list("order__number", "reference")
    findings.compare("payments", (f"{c['order']} {c['reference']}" for c in charges), map(" ".join, payments))


def charged_twice(charges: list[dict[str, str]]) -> Iterator[str]:
    """Orders for which money moved more than once."""
    keys = defaultdict(list)
    for charge in charges:
        keys[charge["order"]].append(charge["key"])
    return (f"order {order} was charged {len(k)} times: {', '.join(k)}" for order, k in keys.items() if len(k) > 1)


def look_at_mail(findings: Findings, rounds: list[Round]) -> None:
    """Every receipt that can arrive is in the mailbox once, and the shop has its Message-ID."""
    intended = [line.number for a_round in rounds for line in expected.told(a_round)]
    sent = {
        name_of(message_id): order for order, message_id in Receipt.objects.values_list("order__number", "message_id")
    }
    findings.compare("receipts", intended, sent.values())
    findings.compare("messages", intended, (sent.get(path.stem, path.name) for path in kept(conf.MAILBOX)))


def name_of(message_id: str) -> str:
    """The name under which the mailbox keeps the message with this Message-ID."""
    return message_name(f"Message-ID: {message_id}\r\n\r\n".encode())


def look_at_pictures(findings: Findings, rounds: list[Round]) -> None:
    """Every readable picture has a thumbnail on disk; every product of readable ones has a sheet."""
    sets = {sku: r.product_pictures(sku) for r in rounds for sku, _ in r.skus()}
    thumbnails = [f"small/{picture.file}" for pictures in sets.values() for picture in pictures if not picture.corrupt]
    findings.compare("thumbnails", thumbnails, Thumbnail.objects.values_list("file", flat=True))
    findings.compare("thumbnails on disk", thumbnails, files_in("small"))
    sheets = [f"sheets/{sku}.jpg" for sku, pictures in sets.items() if not any(p.corrupt for p in pictures)]
    listed = Product.objects.exclude(contact_sheet="").values_list("contact_sheet", flat=True)
    findings.compare("contact sheets", sheets, listed)
    findings.compare("contact sheets on disk", sheets, files_in("sheets"))


def files_in(folder: str) -> list[str]:
    """The pictures in a folder of the pictures' folder."""
    return [f"{folder}/{path.name}" for path in (conf.PICTURES / folder).glob("*.jpg")]


def look_at_books(findings: Findings, rounds: list[Round]) -> None:
    """Every order to be taxed has its entry, and every subscriber is on the list."""
    entries = TaxEntry.objects.values_list("order__number", flat=True)
    findings.compare("tax entries", (line.number for r in rounds for line in r.taxed()), entries)
    subscribers = Subscriber.objects.values_list("email", flat=True)
    findings.compare("subscribers", (email for r in rounds for email in r.subscriber_emails()), subscribers)


def look_at_leaflets(findings: Findings, rounds: list[Round]) -> None:
    """Every leaflet is folded, and the single one of the second shop did not wait for the mailing of the first."""
    first, second, *_ = SHOPS
    intended = [f"{first}-{number}.txt" for r in rounds for number in r.leaflet_numbers()]
    intended += [f"{second}-{r.lone_leaflet()}.txt" for r in rounds]
    findings.compare("leaflets", intended, (path.name for path in conf.LEAFLETS.glob("*.txt")))
    turns = (turn_of(a_round) for a_round in rounds)
    findings.amiss += [f"leaflets: {turn}" for turn in turns if turn and turn.before > SENT_BEFORE]


SENT_BEFORE = 40  # of a flood, that the workers and the broker may have had when another's job came


@dataclass(frozen=True, slots=True)
class Turn:
    """When the single leaflet of one shop was folded, beside the mailing of another."""

    number: str
    before: int
    after: int
    waited: float

    def __str__(self) -> str:
        first, second, *_ = SHOPS
        return (
            f"the single leaflet of {second} started {self.waited:.1f} s after it was asked for: after {self.before} "
            f"of {first}, before {self.after:,} of them"
        )


def turn_of(a_round: Round) -> Turn | None:
    """When the single leaflet of a round started; None while it has not."""
    jobs = Job.objects.filter(task=tasks.fold_leaflet.name, key__contains=f":{a_round.number:02d}-")
    lone = jobs.filter(tenant=SHOPS[1], started_at__isnull=False).first()
    if lone is None or lone.started_at is None:
        return None
    before = jobs.filter(tenant=SHOPS[0], started_at__lt=lone.started_at).count()
    waited = (lone.started_at - lone.created_at).total_seconds()
    return Turn(a_round.lone_leaflet(), before, jobs.filter(tenant=SHOPS[0]).count() - before, waited)


def look_at_parcels(findings: Findings, rounds: list[Round], looked_up: list[tuple[str, float]]) -> None:
    """The parcel service was asked about each parcel, and never more often than it allows."""
    findings.compare("parcels", (number for r in rounds for number in r.parcel_numbers()), (p for p, _ in looked_up))
    most = parcels.busiest_second(moment for _, moment in looked_up)
    if most > parcels.BURST + parcels.PER_SECOND + parcels.BLUR:
        findings.amiss.append(
            f"parcels: the service was asked {most} times in one second, {parcels.ALLOWED} is allowed"
        )


def look_at_supplies(findings: Findings) -> None:
    """Nothing was ordered while the supplier counted."""
    resumed = Act.objects.filter(verb="resume", target=f"queue {SUPPLIERS}").order_by("at").first()
    early = Job.objects.filter(task=tasks.order_supplies.name, started_at__isnull=False)
    if resumed is not None:
        early = early.filter(started_at__lt=resumed.at)
    findings.amiss += [f"supplies: job {job.pk} started while its queue was paused" for job in early]
