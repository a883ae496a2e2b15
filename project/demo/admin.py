"""The sample shop in the admin: for reading, so that the effects of each job can be seen."""

from typing import TYPE_CHECKING, Any

from django.contrib import admin
from django.http import HttpRequest

from project.demo.models import (
    ImportRun,
    Order,
    Payment,
    Product,
    Receipt,
    Report,
    Subscriber,
    TaxEntry,
    TaxRate,
    Thumbnail,
)

if TYPE_CHECKING:
    Page = admin.ModelAdmin[Any]
else:
    Page = admin.ModelAdmin


class ReadOnly(Page):
    """Rows that jobs write and people read."""

    show_full_result_count = False
    list_per_page = 50

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: object = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: object = None) -> bool:
        return False


@admin.register(Order)
class OrderAdmin(ReadOnly):
    list_display = ("number", "shop", "customer_email", "country", "amount", "currency", "state")
    list_filter = ("state", "shop", "country")
    search_fields = ("number", "customer_email")


@admin.register(ImportRun)
class ImportRunAdmin(ReadOnly):
    list_display = ("file", "rows", "cursor", "done")


@admin.register(Payment)
class PaymentAdmin(ReadOnly):
    list_display = ("order", "reference", "paid_at")
    list_select_related = ("order",)
    search_fields = ("order__number", "reference")


@admin.register(Receipt)
class ReceiptAdmin(ReadOnly):
    list_display = ("order", "message_id", "sent_at")
    list_select_related = ("order",)
    search_fields = ("order__number",)


@admin.register(TaxRate)
class TaxRateAdmin(Page):
    """Editable: adding the missing rate is the visitor's repair."""

    list_display = ("country", "percent")


@admin.register(TaxEntry)
class TaxEntryAdmin(ReadOnly):
    list_display = ("order", "amount")
    list_select_related = ("order",)


@admin.register(Product)
class ProductAdmin(ReadOnly):
    list_display = ("sku", "name", "contact_sheet")


@admin.register(Thumbnail)
class ThumbnailAdmin(ReadOnly):
    list_display = ("file", "product", "source")
    list_select_related = ("product",)


@admin.register(Subscriber)
class SubscriberAdmin(ReadOnly):
    list_display = ("email",)


@admin.register(Report)
class ReportAdmin(ReadOnly):
    list_display = ("kind", "made_at", "orders", "paid", "revenue")
    list_filter = ("kind",)
