"""The tables of the sample shop."""

import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True

    dependencies = []

    operations = [
        migrations.CreateModel(
            name="Order",
            fields=[
                (
                    "id",
                    models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID"),
                ),
                ("number", models.CharField(max_length=20, unique=True)),
                ("shop", models.CharField(max_length=40)),
                ("customer_email", models.EmailField(max_length=254)),
                ("country", models.CharField(max_length=2)),
                ("currency", models.CharField(max_length=3)),
                ("amount", models.DecimalField(decimal_places=2, max_digits=10)),
                ("placed_on", models.DateField()),
                (
                    "state",
                    models.CharField(
                        choices=[
                            ("placed", "placed"),
                            ("paid", "paid"),
                            ("shipped", "shipped"),
                            ("settled", "settled elsewhere"),
                        ],
                        default="placed",
                        max_length=10,
                    ),
                ),
            ],
            options={
                "ordering": ("-id",),
            },
        ),
        migrations.CreateModel(
            name="Product",
            fields=[
                (
                    "id",
                    models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID"),
                ),
                ("sku", models.CharField(max_length=40, unique=True, verbose_name="stock number")),
                ("name", models.CharField(max_length=80)),
                ("contact_sheet", models.CharField(blank=True, max_length=200)),
            ],
            options={
                "ordering": ("sku",),
            },
        ),
        migrations.CreateModel(
            name="Promise",
            fields=[
                ("job_id", models.UUIDField(primary_key=True, serialize=False)),
                ("about", models.CharField(max_length=120)),
            ],
            options={
                "ordering": ("about",),
            },
        ),
        migrations.CreateModel(
            name="Report",
            fields=[
                (
                    "id",
                    models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID"),
                ),
                (
                    "kind",
                    models.CharField(
                        choices=[("nightly", "nightly"), ("closing", "closing of the books")], max_length=10
                    ),
                ),
                ("made_at", models.DateTimeField(auto_now_add=True)),
                ("orders", models.PositiveIntegerField()),
                ("paid", models.PositiveIntegerField()),
                ("revenue", models.DecimalField(decimal_places=2, default=0, max_digits=14)),
            ],
            options={
                "ordering": ("-id",),
            },
        ),
        migrations.CreateModel(
            name="Seeding",
            fields=[
                (
                    "id",
                    models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID"),
                ),
                ("number", models.PositiveIntegerField(unique=True)),
                ("sizes", models.JSONField()),
                ("seeded_at", models.DateTimeField(auto_now_add=True)),
            ],
            options={
                "ordering": ("number",),
            },
        ),
        migrations.CreateModel(
            name="Subscriber",
            fields=[
                (
                    "id",
                    models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID"),
                ),
                ("email", models.EmailField(max_length=254, unique=True)),
            ],
            options={
                "ordering": ("email",),
            },
        ),
        migrations.CreateModel(
            name="TaxRate",
            fields=[
                (
                    "id",
                    models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID"),
                ),
                ("country", models.CharField(max_length=2, unique=True)),
                ("percent", models.DecimalField(decimal_places=1, max_digits=4)),
            ],
            options={
                "ordering": ("country",),
            },
        ),
        migrations.CreateModel(
            name="ImportRun",
            fields=[
                (
                    "id",
                    models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID"),
                ),
                (
                    "file",
                    models.CharField(help_text="Name of the file in the folder of order files.", max_length=200),
                ),
                ("rows", models.PositiveIntegerField(verbose_name="rows in all")),
                ("cursor", models.PositiveIntegerField(default=0, verbose_name="rows imported")),
                ("done", models.BooleanField(default=False)),
            ],
            options={
                "ordering": ("-id",),
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(("cursor__lte", models.F("rows"))),
                        name="no_more_rows_imported_than_there_are",
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="Payment",
            fields=[
                (
                    "id",
                    models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID"),
                ),
                ("reference", models.CharField(max_length=40, unique=True, verbose_name="gateway reference")),
                ("paid_at", models.DateTimeField(auto_now_add=True)),
                ("order", models.OneToOneField(on_delete=django.db.models.deletion.PROTECT, to="demo.order")),
            ],
            options={
                "ordering": ("-id",),
            },
        ),
        migrations.CreateModel(
            name="Receipt",
            fields=[
                (
                    "id",
                    models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID"),
                ),
                ("message_id", models.CharField(max_length=120, unique=True)),
                ("sent_at", models.DateTimeField(auto_now_add=True)),
                ("order", models.OneToOneField(on_delete=django.db.models.deletion.PROTECT, to="demo.order")),
            ],
            options={
                "ordering": ("-id",),
            },
        ),
        migrations.CreateModel(
            name="TaxEntry",
            fields=[
                (
                    "id",
                    models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID"),
                ),
                ("amount", models.DecimalField(decimal_places=2, max_digits=10)),
                ("order", models.OneToOneField(on_delete=django.db.models.deletion.PROTECT, to="demo.order")),
            ],
            options={
                "verbose_name_plural": "tax entries",
                "ordering": ("-id",),
            },
        ),
        migrations.CreateModel(
            name="Thumbnail",
            fields=[
                (
                    "id",
                    models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID"),
                ),
                ("source", models.CharField(max_length=200, unique=True)),
                ("file", models.CharField(max_length=200)),
                (
                    "product",
                    models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, to="demo.product"),
                ),
            ],
            options={
                "ordering": ("file",),
            },
        ),
    ]
