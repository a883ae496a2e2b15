"""Asking for a round of work: files first, then the jobs, remembered in the same transaction."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

from celery import chord
from django.db import transaction
from django.utils import timezone

from jobs import bulk, control
from project.demo import conf, order_file, pictures, tasks
from project.demo.models import ImportRun, Product, Seeding, TaxRate, remember, sizes_of
from project.demo.round import COUNTRIES, RATELESS_COUNTRY, SHOPS, Round

SALE_LASTS = timedelta(seconds=8)
BOOKS_CLOSE_IN = timedelta(seconds=20)
TAX_PERCENT = {"DE": "19.0", "DK": "25.0", "FR": "20.0", "NO": "25.0", "SE": "25.0"}
BY = "demo"
SUPPLIERS = "suppliers"


def next_round(sizes: dict[str, Any]) -> Round:
    """The round after the last one, with the sizes asked for."""
    last = Seeding.objects.order_by("-number").first()
    return Round(number=last.number + 1 if last else 1, **sizes)


def seed(a_round: Round) -> None:
    """Write the round's files and rows, and enqueue its jobs."""
    write_files(a_round)
    with transaction.atomic():
        Seeding.objects.create(number=a_round.number, sizes=sizes_of(a_round))
        set_tax_rates()
        ask_for_imports(a_round)
        ask_for_taxes(a_round)
        ask_for_subscriptions(a_round)
        ask_for_pictures(a_round)
        ask_for_closing(a_round)
        ask_for_export(a_round)
        ask_for_leaflets(a_round)
        ask_for_parcels(a_round)
        ask_for_supplies(a_round)
    hold_back_a_sale(a_round)


def write_files(a_round: Round) -> None:
    """Write the order file, a small one with a line that nobody can read, and the product pictures."""
    order_file.write(conf.ORDER_FILES / order_file_of(a_round.number), a_round.lines())
    order_file.write_broken(conf.ORDER_FILES / broken_file_of(a_round.number), a_round)
    for sku, _ in a_round.skus():
        for picture in a_round.product_pictures(sku):
            pictures.paint(a_round.seed, picture, conf.PICTURES)


def set_tax_rates() -> None:
    """Enter the tax rates, all but the one that the demo misses."""
    TaxRate.objects.filter(country=RATELESS_COUNTRY).delete()
    for country in COUNTRIES:
        if country != RATELESS_COUNTRY:
            TaxRate.objects.get_or_create(country=country, defaults={"percent": TAX_PERCENT[country]})


def ask_for_imports(a_round: Round) -> None:
    """Enqueue the import of both order files."""
    for name, rows in (
        (order_file_of(a_round.number), a_round.orders),
        (broken_file_of(a_round.number), order_file.BROKEN_ROWS),
    ):
        run = ImportRun.objects.create(file=name, rows=rows)
        job = tasks.ImportOrders.apply_async(
            kwargs={"run_id": run.pk, "tag": a_round.name},
            priority="critical",
            tags=[a_round.name, "import"],
            metadata={"file": name},
        )
        remember([job.id], f"import of {name}")


def ask_for_taxes(a_round: Round) -> None:
    """Enqueue the tax entries of the first orders; they wait until the import has brought their order."""
    for line in a_round.taxed():
        job = tasks.book_tax.apply_async(
            kwargs={"order_number": line.number}, tags=[a_round.name, line.country], tenant=line.shop
        )
        remember([job.id], f"tax of order {line.number}")


def ask_for_subscriptions(a_round: Round) -> None:
    """Enqueue somebody else's plain Celery task."""
    for email in a_round.subscriber_emails():
        remember([tasks.subscribe.delay(email).id], f"subscription of {email}")


def ask_for_pictures(a_round: Round) -> None:
    """Enqueue a chord per product: its thumbnails, then the contact sheet."""
    options = {"priority": "low", "tags": [a_round.name, "pictures"]}
    for sku, name in a_round.skus():
        Product.objects.create(sku=sku, name=name)
        sources = [picture.file for picture in a_round.product_pictures(sku)]
        header = [tasks.make_thumbnail.s(sku=sku, source=source).set(**options) for source in sources]
        sheet: Any = chord(header)(tasks.make_contact_sheet.s(sku=sku).set(**options))
        remember([sheet.id, *(member.id for member in sheet.parent)], f"pictures of {sku}")


def ask_for_closing(a_round: Round) -> None:
    """Enqueue a report for later, and one that is cancelled at once."""
    closing = tasks.close_books.apply_async(
        kwargs={"day": f"{a_round.name} evening"},
        countdown=BOOKS_CLOSE_IN.total_seconds(),
        tags=[a_round.name],
    )
    mistaken = tasks.close_books.apply_async(
        kwargs={"day": f"{a_round.name} next week"}, countdown=7 * 24 * 3600, tags=[a_round.name]
    )
    control.cancel(UUID(mistaken.id), reason="asked for the wrong day", by=BY)
    remember([closing.id, mistaken.id], f"closing of the books of {a_round.name}")


def ask_for_export(a_round: Round) -> None:
    """Enqueue the long export that is there to be watched, and cancelled."""
    job = tasks.ExportCatalogue.apply_async(kwargs={"pages": 400}, priority="low", tags=[a_round.name])
    remember([job.id], f"export of {a_round.name}")


def ask_for_leaflets(a_round: Round) -> None:
    """Enqueue the mailing of one shop, all at once, and a single leaflet of another behind it."""
    tags, (first, second, *_) = [a_round.name, "leaflets"], SHOPS
    mailing = [(first, number) for number in a_round.leaflet_numbers()]
    remember(bulk.bulk(tasks.fold_leaflet, mailing, tenant=first, tags=tags).ids, f"mailing of {first}")
    lone = tasks.fold_leaflet.apply_async((second, a_round.lone_leaflet()), tenant=second, tags=tags)
    remember([lone.id], f"leaflet of {second}")


def ask_for_parcels(a_round: Round) -> None:
    """Enqueue more questions than the parcel service answers in a second."""
    asked = bulk.bulk(tasks.look_up_parcel, a_round.parcel_numbers(), tags=[a_round.name, "parcels"])
    remember(asked.ids, f"parcels of {a_round.name}")


def ask_for_supplies(a_round: Round) -> None:
    """Pause the queue of the suppliers, and enqueue orders that wait in it."""
    control.pause(queue=SUPPLIERS, reason="the supplier counts his stock", by=BY)
    orders = [(f"{a_round.number:02d}-S{index + 1}", 10 * (index + 1)) for index in range(a_round.supplies)]
    remember(bulk.bulk(tasks.order_supplies, orders, tags=[a_round.name]).ids, f"supplies of {a_round.name}")


def hold_back_a_sale(a_round: Round) -> None:
    """Pause the announcements, and enqueue one that expires meanwhile."""
    control.pause(task=tasks.announce_sale.name, reason="the shop has called off its flash sale", by=BY)
    job = tasks.announce_sale.apply_async(
        kwargs={"shop": SHOPS[0]}, expires=timezone.now() + SALE_LASTS, tags=[a_round.name], tenant=SHOPS[0]
    )
    remember([job.id], f"sale of {a_round.name}")


def order_file_of(number: int) -> str:
    """The name of a round's order file."""
    return f"orders-{number:02d}.csv"


def broken_file_of(number: int) -> str:
    """The name of a round's unreadable order file."""
    return f"corrections-{number:02d}.csv"
