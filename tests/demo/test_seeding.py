"""Seeding: what it writes and enqueues, and that it remembers every job."""

import pytest

from jobs.models import Job
from project.demo import conf, seeding
from project.demo.models import ImportRun, Promise, Seeding, TaxRate
from project.demo.round import Round

pytestmark = pytest.mark.django_db

SMALL = {
    "seed": 7,
    "orders": 60,
    "charges": 6,
    "receipts": 3,
    "taxes": 5,
    "subscribers": 4,
    "products": 2,
    "pictures": 3,
    "leaflets": 4,
    "parcels": 3,
    "supplies": 2,
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name in ("ORDER_FILES", "PICTURES"):
        monkeypatch.setattr(conf, name, tmp_path / name.lower())
    return tmp_path


@pytest.fixture
def seeded(folder):
    a_round = seeding.next_round(SMALL)
    seeding.seed(a_round)
    return a_round


def test_the_first_round_is_number_one():
    assert seeding.next_round(SMALL) == Round(number=1, **SMALL)


def test_the_next_round_is_another_one(seeded):
    assert seeding.next_round(SMALL).number == 2


def test_a_seeding_remembers_its_round(seeded):
    assert Seeding.objects.get().round == seeded


def test_every_enqueued_job_is_promised(seeded):
    jobs, promises = Job.objects.values_list("pk", flat=True), Promise.objects.values_list("pk", flat=True)
    assert set(jobs) == set(promises)


def test_a_seeding_enqueues_everything_but_what_the_import_asks_for(seeded):
    imports, closings, sale, export = 2, 2, 1, 1
    pictures_and_sheets = SMALL["products"] * (SMALL["pictures"] + 1)
    order = SMALL["leaflets"] + 1 + SMALL["parcels"] + SMALL["supplies"]
    expected = imports + SMALL["taxes"] + SMALL["subscribers"] + pictures_and_sheets + closings + sale + export + order
    assert Job.objects.count() == expected


def test_one_tax_rate_is_missing(seeded):
    assert not TaxRate.objects.filter(country="NO").exists()


def test_the_order_file_holds_as_many_orders_as_its_run_says(seeded):
    run = ImportRun.objects.get(file="orders-01.csv")
    assert len(run.path.read_text().splitlines()) == run.rows + 1


def test_every_picture_of_the_round_lies_on_disk(seeded):
    named = {picture.file for sku, _ in seeded.skus() for picture in seeded.product_pictures(sku)}
    assert {path.name for path in conf.PICTURES.iterdir()} == named
