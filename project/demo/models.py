"""The sample shop's rows: orders, what the jobs make of them, and what the demo remembers asking for."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any
from uuid import UUID

from django.db import models, transaction
from django.db.models import F, Q

from project.demo import conf
from project.demo.round import OrderLine, Round


class Order(models.Model):
    """A customer's order, as imported from a shop system."""

    class State(models.TextChoices):
        PLACED = "placed", "placed"
        PAID = "paid", "paid"
        SHIPPED = "shipped", "shipped"
        SETTLED = "settled", "settled elsewhere"

    number = models.CharField(max_length=20, unique=True)
    shop = models.CharField(max_length=40)
    customer_email = models.EmailField()
    country = models.CharField(max_length=2)
    currency = models.CharField(max_length=3)
    amount = models.DecimalField(max_digits=10, decimal_places=2)
    placed_on = models.DateField()
    state = models.CharField(max_length=10, choices=State.choices, default=State.PLACED)

    class Meta:
        ordering = ("-id",)

    def __str__(self) -> str:
        return self.number

    @classmethod
    def from_line(cls, line: OrderLine) -> Order:
        """An unsaved order from a line of an order file."""
        return cls(
            number=line.number,
            shop=line.shop,
            customer_email=line.email,
            country=line.country,
            currency=line.currency,
            amount=line.amount,
            placed_on=line.placed_on,
            state=cls.State.PLACED if line.due else cls.State.SETTLED,
        )


class ImportRun(models.Model):
    """One order file on its way in; ``cursor`` counts each order that was brought in."""

    file = models.CharField(max_length=200, help_text="Name of the file in the folder of order files.")
    rows = models.PositiveIntegerField("rows in all")
    cursor = models.PositiveIntegerField("rows imported", default=0)
    done = models.BooleanField(default=False)

    class Meta:
        ordering = ("-id",)
        constraints = [
            models.CheckConstraint(condition=Q(cursor__lte=F("rows")), name="no_more_rows_imported_than_there_are")
        ]

    def __str__(self) -> str:
        return self.file

    @property
    def path(self) -> Path:
        """Where the order file lies."""
        return conf.ORDER_FILES / self.file

    def take(self, lines: list[OrderLine]) -> list[Order]:
        """Import lines and count them, both or neither."""
        with transaction.atomic():
            ImportRun.objects.filter(pk=self.pk).update(cursor=F("cursor") + len(lines))
            numbers = [line.number for line in lines]
            Order.objects.bulk_create(map(Order.from_line, lines), batch_size=500)
            return list(Order.objects.filter(number__in=numbers).order_by("id"))

    def finish(self) -> None:
        """Say that the whole file is in."""
        ImportRun.objects.filter(pk=self.pk).update(done=True)


class Payment(models.Model):
    """What the gateway confirmed for an order."""

    order = models.OneToOneField(Order, on_delete=models.PROTECT)
    reference = models.CharField("gateway reference", max_length=40, unique=True)
    paid_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("-id",)

    def __str__(self) -> str:
        return self.reference


class Receipt(models.Model):
    """A receipt that the mail server took."""

    order = models.OneToOneField(Order, on_delete=models.PROTECT)
    message_id = models.CharField(max_length=120, unique=True)
    sent_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("-id",)

    def __str__(self) -> str:
        return f"receipt for {self.order}"


class TaxRate(models.Model):
    """The sales tax of a country. One is missing at first: the demo's repairable mistake."""

    country = models.CharField(max_length=2, unique=True)
    percent = models.DecimalField(max_digits=4, decimal_places=1)

    class Meta:
        ordering = ("country",)

    def __str__(self) -> str:
        return f"{self.country} {self.percent} %"


class TaxEntry(models.Model):
    """The tax booked for an order."""

    order = models.OneToOneField(Order, on_delete=models.PROTECT)
    amount = models.DecimalField(max_digits=10, decimal_places=2)

    class Meta:
        ordering = ("-id",)
        verbose_name_plural = "tax entries"

    def __str__(self) -> str:
        return f"tax of {self.order}"


class Product(models.Model):
    """Something for sale, with pictures."""

    sku = models.CharField("stock number", max_length=40, unique=True)
    name = models.CharField(max_length=80)
    contact_sheet = models.CharField(max_length=200, blank=True)

    class Meta:
        ordering = ("sku",)

    def __str__(self) -> str:
        return self.sku


class Thumbnail(models.Model):
    """A small picture of a product."""

    product = models.ForeignKey(Product, on_delete=models.CASCADE)
    source = models.CharField(max_length=200, unique=True)
    file = models.CharField(max_length=200)

    class Meta:
        ordering = ("file",)

    def __str__(self) -> str:
        return self.file


class Subscriber(models.Model):
    """Somebody who wants the newsletter."""

    email = models.EmailField(unique=True)

    class Meta:
        ordering = ("email",)

    def __str__(self) -> str:
        return self.email


class Report(models.Model):
    """A look at the shop at one moment."""

    class Kind(models.TextChoices):
        NIGHTLY = "nightly", "nightly"
        CLOSING = "closing", "closing of the books"

    kind = models.CharField(max_length=10, choices=Kind.choices)
    made_at = models.DateTimeField(auto_now_add=True)
    orders = models.PositiveIntegerField()
    paid = models.PositiveIntegerField()
    revenue = models.DecimalField(max_digits=14, decimal_places=2, default=0)

    class Meta:
        ordering = ("-id",)

    def __str__(self) -> str:
        return f"{self.kind} report {self.pk}"


class Seeding(models.Model):
    """One run of ``demo_seed``: how much it asked for, so that the outcome can be compared with it."""

    number = models.PositiveIntegerField(unique=True)
    sizes = models.JSONField()
    seeded_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("number",)

    def __str__(self) -> str:
        return f"round {self.number}"

    @property
    def round(self) -> Round:
        """What this seeding asked for."""
        return Round(number=self.number, **self.sizes)


class Promise(models.Model):
    """A job that the demo enqueued, remembered apart from the jobs, so that a vanished one is missed."""

    job_id = models.UUIDField(primary_key=True)
    about = models.CharField(max_length=120)

    class Meta:
        ordering = ("about",)

    def __str__(self) -> str:
        return self.about


def remember(job_ids: Iterable[UUID | str], about: str) -> None:
    """Remember jobs in the transaction that enqueues them."""
    promises = [Promise(job_id=UUID(str(job_id)), about=about) for job_id in job_ids]
    Promise.objects.bulk_create(promises, ignore_conflicts=True)


def sizes_of(a_round: Round) -> dict[str, Any]:
    """A round's sizes as JSON, without its number."""
    return {name: getattr(a_round, name) for name in a_round.__slots__ if name != "number"}
