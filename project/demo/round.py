"""What one seeding of the demo asks for, as pure data: the orders, who is charged, what is pictured."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal

from project.demo.plan import draw

SHOPS = ("harbour-books", "north-coffee", "tidal-bikes")
FIRST_NAMES = (
    "ada",
    "bela",
    "carl",
    "dora",
    "emil",
    "fatima",
    "grace",
    "hugo",
    "ines",
    "jon",
    "kira",
    "lars",
)
LAST_NAMES = (
    "abbott",
    "berg",
    "castro",
    "dietrich",
    "eriksen",
    "fofana",
    "gruber",
    "hansen",
    "ito",
    "jensen",
)
COUNTRIES = ("DE", "DK", "FR", "NO", "SE")
CURRENCY = "EUR"
RATELESS_COUNTRY = "NO"
PRODUCTS = (
    "Kettle",
    "Lantern",
    "Rucksack",
    "Saddle",
    "Atlas",
    "Teapot",
    "Bell",
    "Notebook",
    "Grinder",
    "Pannier",
)


@dataclass(frozen=True, slots=True)
class OrderLine:
    """One line of an order file; ``due`` orders still have to be charged."""

    number: str
    shop: str
    email: str
    country: str
    currency: str
    amount: Decimal
    placed_on: date
    due: bool
    receipt: bool


@dataclass(frozen=True, slots=True)
class Picture:
    """A source picture of a product; a corrupt one is no picture at all."""

    sku: str
    file: str
    corrupt: bool


@dataclass(frozen=True, slots=True)
class Round:
    """How much work one seeding asks for. ``seed`` is the world's, ``number`` tells seedings apart."""

    seed: int
    number: int = 1
    orders: int = 12_000
    charges: int = 300
    receipts: int = 100
    taxes: int = 30
    subscribers: int = 25
    products: int = 8
    pictures: int = 5
    leaflets: int = 200
    parcels: int = 24
    supplies: int = 5

    def __post_init__(self) -> None:
        for part, whole in (("charges", "orders"), ("receipts", "charges"), ("taxes", "orders")):
            if not 0 <= getattr(self, part) <= getattr(self, whole):
                raise ValueError(f"{part} must be between 0 and {whole} ({getattr(self, whole)}).")
        if self.products > len(PRODUCTS):
            raise ValueError(f"There are only {len(PRODUCTS)} products to choose from.")

    @property
    def name(self) -> str:
        """The tag that the jobs of this round carry."""
        return f"round-{self.number}"

    def lines(self) -> Iterator[OrderLine]:
        """The order file, line by line."""
        due, receipts = self.due_places(), self.receipt_places()
        return (self.line(index, index in due, index in receipts) for index in range(self.orders))

    def due_places(self) -> range:
        """Where in the file the orders stand that still have to be charged."""
        return spread(self.orders, self.charges)

    def receipt_places(self) -> set[int]:
        """Where in the file the orders stand that get a receipt."""
        due = self.due_places()
        return {due[index] for index in spread(len(due), self.receipts)}

    def line(self, index: int, due: bool, receipt: bool) -> OrderLine:
        """One order, a pure function of the seed, the round and its place in the file."""
        return OrderLine(
            number=self.order_number(index),
            shop=one_of(SHOPS, self.seed, self.number, "shop", index),
            email=self.email(index),
            country=one_of(COUNTRIES, self.seed, self.number, "country", index),
            currency=CURRENCY,
            amount=Decimal(500 + int(draw(self.seed, self.number, "amount", index) * 40_000)).scaleb(-2),
            placed_on=date(2026, 1, 1) + timedelta(days=index * 300 // self.orders),
            due=due,
            receipt=receipt,
        )

    def order_number(self, index: int) -> str:
        """The number of the order at a place in the file, from 0.

        >>> Round(seed=7, number=2).order_number(41)
        '02-000042'
        """
        return f"{self.number:02d}-{index + 1:06d}"

    def email(self, index: int) -> str:
        """The customer of the order at a place in the file; no two orders share one."""
        first = one_of(FIRST_NAMES, self.seed, self.number, "first", index)
        last = one_of(LAST_NAMES, self.seed, self.number, "last", index)
        return f"{first}.{last}.{self.order_number(index)}@example.test"

    def charged(self) -> list[OrderLine]:
        """The orders that somebody tries to charge."""
        receipts = self.receipt_places()
        return [self.line(index, due=True, receipt=index in receipts) for index in self.due_places()]

    def with_receipt(self) -> list[OrderLine]:
        """The orders that get a receipt once they are paid."""
        return [line for line in self.charged() if line.receipt]

    def taxed(self) -> list[OrderLine]:
        """The orders whose tax is booked, drawn from the beginning of the file."""
        return [self.line(index, due=False, receipt=False) for index in range(self.taxes)]

    def subscriber_emails(self) -> list[str]:
        """The customers who want the newsletter."""
        return [self.email(index) for index in range(self.subscribers)]

    def leaflet_numbers(self) -> list[str]:
        """The leaflets of the first shop's mailing.

        >>> Round(seed=7, leaflets=2).leaflet_numbers()
        ['01-0001', '01-0002']
        """
        return [f"{self.number:02d}-{index + 1:04d}" for index in range(self.leaflets)]

    def lone_leaflet(self) -> str:
        """The only leaflet of the second shop."""
        return f"{self.number:02d}-lone"

    def parcel_numbers(self) -> list[str]:
        """The parcels of which the shops want to know where they are."""
        return [f"P{self.number:02d}-{index + 1:03d}" for index in range(self.parcels)]

    def skus(self) -> list[tuple[str, str]]:
        """The products of this round: stock number and name."""
        return [(f"{self.number:02d}-{name.upper()}", name) for name in PRODUCTS[: self.products]]

    def product_pictures(self, sku: str) -> list[Picture]:
        """The pictures of a product; the very last picture of the round is corrupt."""
        last = bool(self.products) and sku == self.skus()[-1][0]
        names = [f"{sku.lower()}-{index + 1}.jpg" for index in range(self.pictures)]
        return [Picture(sku, name, corrupt=last and name == names[-1]) for name in names]


def spread(total: int, wanted: int) -> range:
    """``wanted`` places spread evenly over ``total``.

    >>> list(spread(10, 3))
    [0, 3, 6]
    """
    if not wanted:
        return range(0)
    step = total // wanted
    return range(0, step * wanted, step)


def one_of(choices: tuple[str, ...], seed: int, *about: object) -> str:
    """One of the choices, drawn by the seed."""
    return choices[int(draw(seed, *about) * len(choices))]


def colour(seed: int, *about: object) -> tuple[int, int, int]:
    """A colour drawn by the seed."""
    red, green, blue = hashlib.sha256("|".join(str(part) for part in (seed, *about)).encode()).digest()[:3]
    return red, green, blue
