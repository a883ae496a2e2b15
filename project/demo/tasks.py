"""The sample shop's work: what each task does, what makes two calls one job, how often it is tried again."""

from __future__ import annotations

import time
from decimal import Decimal
from pathlib import Path
from typing import Any

from celery import chain
from django.db import transaction
from django.db.models import Count, Q, Sum
from PIL import UnidentifiedImageError

from jobs.errors import Snooze
from jobs.retry import RetryPolicy
from jobs.task import FOREVER, NO_KEY, IdempotentTask, Rate, Task, TransactionalTask, task
from project.demo import conf, order_file, parcels, payments, pictures, post, power
from project.demo.models import (
    ImportRun,
    Order,
    Payment,
    Product,
    Receipt,
    Report,
    TaxEntry,
    TaxRate,
    Thumbnail,
    remember,
)
from project.demo.newsletter import subscribe
from project.demo.round import OrderLine

__all__ = ["subscribe"]

BATCH = 500
FOLDING = 0.05  # seconds that one leaflet takes
SHORT = RetryPolicy(max_attempts=5, base=0.5, cap=4.0)


class ImportOrders(IdempotentTask):
    """Bring an order file into the shop, batch by batch.

    Not transactional as a whole: one transaction over the file would hide its progress, hold SQLite's only
    writer, and begin again after a crash. Each batch commits its rows, its charges and the cursor together;
    in the demo, the power is cut in the middle of one.
    """

    queue = "default"
    key = "import:{run_id}"
    retry_policy = SHORT
    time_limit = 120
    soft_time_limit = 100

    def run(self, run_id: int, tag: str) -> dict[str, int]:
        run = ImportRun.objects.get(pk=run_id)
        done = self.cursor("orders", 0)
        for lines in order_file.batches(run.path, after=done, size=BATCH):
            done += len(lines)
            with self.advance("orders", done):
                ask_for_payments(lines, run.take(lines), tag)
                power.cut_once(attempt=self.request.retries + 1, done=done, rows=run.rows)
            self.progress(done, run.rows, unit="orders", message=f"up to order {lines[-1].number}")
        run.finish()
        return {"imported": done}


class ChargeOrder(IdempotentTask):
    """Charge an order through the payment gateway, once for ever."""

    queue = "payments"
    key = "charge:{order_id}"
    key_scope = FOREVER
    retry_policy = SHORT
    time_limit = 30
    soft_time_limit = 25

    def run(self, order_id: int) -> dict[str, str]:
        order = Order.objects.get(pk=order_id)
        reference = payments.charge(
            order=order.number,
            amount=order.amount,
            currency=order.currency,
            token=self.idempotency_token,
        )
        with transaction.atomic():
            Payment.objects.get_or_create(order=order, defaults={"reference": reference})
            Order.objects.filter(pk=order_id, state=Order.State.PLACED).update(state=Order.State.PAID)
        return {"order": order.number, "reference": reference}


@task(
    queue="mail",
    key="receipt:{order_id}",
    base=IdempotentTask,
    bind=True,
    retry_policy=SHORT,
    time_limit=30,
    soft_time_limit=25,
)
def send_receipt(self: IdempotentTask, order_id: int) -> str:
    """Mail the receipt of a paid order; the token makes a second copy recognisable."""
    order = Order.objects.get(pk=order_id)
    message = post.receipt(
        order=order.number,
        recipient=order.customer_email,
        amount=order.amount,
        currency=order.currency,
        token=self.idempotency_token,
    )
    Receipt.objects.get_or_create(order=order, defaults={"message_id": post.deliver(message)})
    return order.customer_email


@task(
    queue="default",
    key="ship:{order_id}",
    base=TransactionalTask,
    retry_policy=SHORT,
    time_limit=30,
    soft_time_limit=25,
)
def mark_shipped(order_id: int) -> str:
    """Say that a paid order is on its way; the row and "completed" commit together."""
    order = Order.objects.select_for_update().get(pk=order_id)
    order.state = Order.State.SHIPPED
    order.save(update_fields=["state"])
    return order.number


@task(
    queue="default",
    key="tax:{order_number}",
    base=TransactionalTask,
    retry_policy=SHORT,
    time_limit=30,
    soft_time_limit=25,
)
def book_tax(order_number: str) -> str:
    """Book the sales tax of an order. A country without a rate goes to a person: retrying would not help."""
    order = Order.objects.filter(number=order_number).first()
    if order is None:
        raise Snooze(1, "the order is still being imported")
    rate = TaxRate.objects.get(country=order.country)
    amount = (order.amount * rate.percent / 100).quantize(Decimal("0.01"))
    TaxEntry.objects.create(order=order, amount=amount)
    return f"{amount} {order.currency}"


@task(
    queue="media",
    key="thumbnail:{source}",
    base=IdempotentTask,
    retry_policy=RetryPolicy(max_attempts=3, base=0.5, cap=4.0, permanent=(UnidentifiedImageError,)),
    time_limit=60,
    soft_time_limit=50,
)
def make_thumbnail(sku: str, source: str) -> str:
    """Make the small picture of a product's picture; return its file name."""
    small = pictures.shrink(conf.PICTURES / source, conf.PICTURES / "small" / source)
    Thumbnail.objects.get_or_create(
        source=source, defaults={"product": Product.objects.get(sku=sku), "file": f"small/{small.name}"}
    )
    return f"small/{small.name}"


@task(
    queue="media",
    key="sheet:{sku}",
    base=IdempotentTask,
    retry_policy=SHORT,
    time_limit=60,
    soft_time_limit=50,
)
def make_contact_sheet(thumbnails: list[str], sku: str) -> str:
    """Lay a product's thumbnails out on one sheet, once all of them are made."""
    target = Path("sheets") / f"{sku}.jpg"
    pictures.lay_out([conf.PICTURES / name for name in thumbnails], conf.PICTURES / target)
    Product.objects.filter(sku=sku).update(contact_sheet=str(target))
    return str(target)


@task(queue="reports", key=NO_KEY, base=TransactionalTask, retry_policy=SHORT, time_limit=30, soft_time_limit=25)
def nightly_report() -> dict[str, Any]:
    """Count orders and revenue; every few seconds in the demo, from the beat schedule."""
    return write_report(Report.Kind.NIGHTLY)


@task(
    queue="reports",
    key="books:{day}",
    base=TransactionalTask,
    retry_policy=SHORT,
    time_limit=30,
    soft_time_limit=25,
)
def close_books(day: str) -> dict[str, Any]:
    """Write the closing report of a day."""
    return {"day": day} | write_report(Report.Kind.CLOSING)


@task(queue="mail", retry_policy=SHORT, time_limit=30, soft_time_limit=25)
def announce_sale(shop: str) -> str:
    """Announce a flash sale; worth nothing once the sale is over, and held back until then in the demo."""
    return f"{shop} has announced its sale"


@task(
    queue="mail",
    key="leaflet:{shop}:{number}",
    base=IdempotentTask,
    retry_policy=SHORT,
    time_limit=30,
    soft_time_limit=25,
)
def fold_leaflet(shop: str, number: str) -> str:
    """Fold one leaflet of a shop's mailing. One shop sends hundreds; another's single one does not wait for them."""
    time.sleep(FOLDING)
    conf.LEAFLETS.mkdir(parents=True, exist_ok=True)
    (conf.LEAFLETS / f"{shop}-{number}.txt").write_text(f"{shop} wishes you a good spring.\n", encoding="utf-8")
    return number


@task(
    queue="reports",
    key="parcel:{parcel}",
    base=IdempotentTask,
    limits=[Rate("parcel service", parcels.ALLOWED, burst=parcels.BURST)],
    retry_policy=SHORT,
    time_limit=30,
    soft_time_limit=25,
)
def look_up_parcel(parcel: str) -> str:
    """Ask where a parcel is. The service may be asked twice in a second, by all workers together."""
    return parcels.state_of(parcel)


@task(queue="suppliers", key="supply:{sku}", base=IdempotentTask, retry_policy=SHORT, time_limit=30, soft_time_limit=25)
def order_supplies(sku: str, pieces: int) -> str:
    """Order from the supplier, who counts his stock in the demo: the queue is paused until he has done."""
    return f"{pieces} of {sku} are ordered"


class ExportCatalogue(Task):
    """Send the catalogue to a slow warehouse, page by page, for minutes: the job to watch and to cancel."""

    queue = "reports"
    retry_policy = SHORT
    time_limit = 280
    soft_time_limit = 270

    def run(self, pages: int, pause: float = 0.5) -> int:
        for page in range(1, pages + 1):
            self.check_cancelled()
            write_page(page)
            self.progress(page, pages, unit="pages", message=f"page {page} sent")
            time.sleep(pause)
        return pages


def ask_for_payments(lines: list[OrderLine], orders: list[Order], tag: str) -> None:
    """Enqueue what the due orders of a batch need, in the transaction that imports them."""
    due = {line.number: line for line in lines if line.due}
    for order in orders:
        if order.number in due:
            ask_for_payment(order, with_receipt=due[order.number].receipt, tag=tag)


def ask_for_payment(order: Order, *, with_receipt: bool, tag: str) -> None:
    """Enqueue the charge of an order, and its receipt and shipping where they are wanted."""
    options = {"tenant": order.shop, "tags": [tag], "metadata": {"order": order.number}}
    charge = ChargeOrder.si(order_id=order.pk).set(priority="high", **options)
    if with_receipt:
        receipt, shipping = send_receipt.si(order_id=order.pk), mark_shipped.si(order_id=order.pk)
        asked = chain(charge, receipt.set(**options), shipping.set(**options)).apply_async()
    else:
        asked = charge.apply_async()
    remember([first_of(asked)], f"charge of order {order.number}")


def first_of(asked: Any) -> str:
    """The id of the first job of a chain, given the result of the last."""
    while asked.parent is not None:
        asked = asked.parent
    return str(asked.id)


def write_report(kind: Report.Kind) -> dict[str, Any]:
    """Count the shop's orders into a report row."""
    is_paid = Q(state__in=(Order.State.PAID, Order.State.SHIPPED))
    counted = Order.objects.aggregate(
        orders=Count("pk"), paid=Count("pk", filter=is_paid), revenue=Sum("amount", filter=is_paid)
    )
    counted["revenue"] = (counted["revenue"] or Decimal(0)).quantize(Decimal("0.01"))
    report = Report.objects.create(kind=kind, **counted)
    return {"report": report.pk, "orders": report.orders, "paid": report.paid, "revenue": str(report.revenue)}


def write_page(page: int) -> None:
    """Write one page of the catalogue where the warehouse picks it up."""
    conf.EXPORTS.mkdir(parents=True, exist_ok=True)
    products = Product.objects.values_list("sku", "name")
    text = "\n".join(f"{page};{sku};{name}" for sku, name in products)
    (conf.EXPORTS / f"page-{page:03d}.txt").write_text(text, encoding="utf-8")
