"""What the admin pages of Mainstay have in common: read-only rows, capped lists, verbs as buttons."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from django.contrib import admin, messages
from django.contrib.admin import ShowFacets
from django.contrib.admin.utils import quote, unquote
from django.contrib.admin.views.main import ChangeList
from django.core.exceptions import PermissionDenied, ValidationError
from django.db.models import Model
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.functional import cached_property
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.text import capfirst
from django.utils.translation import gettext

from jobs.admin.paginator import CappedPaginator
from jobs.admin.wording import address

if TYPE_CHECKING:
    ModelAdmin = admin.ModelAdmin[Any]
else:
    ModelAdmin = admin.ModelAdmin


CHECKBOX = '<input type="checkbox" name="_selected_action" value="{}" class="action-select" aria-label="{}">'
A_ROW = "-the-row-"


class Rows(ChangeList):
    """A list whose rows' addresses are made from one."""

    def url_for_result(self, result: Any) -> str:
        """The address of a row's page."""
        return self._address.replace(A_ROW, str(quote(result.pk)))

    @cached_property
    def _address(self) -> str:
        name = f"admin:{self.opts.app_label}_{self.opts.model_name}_change"
        return reverse(name, args=(A_ROW,), current_app=self.model_admin.admin_site.name)


class ReadOnlyAdmin(ModelAdmin):
    """Rows that nobody adds, edits or deletes by hand; lists that cost the same at any size."""

    paginator = CappedPaginator
    show_full_result_count = False
    show_facets = ShowFacets.NEVER
    list_max_show_all = 0
    list_per_page = 50
    sortable_by = ()
    actions = ()
    preserve_filters = False  # nothing is saved here that would lead back to the list
    change_list_template = "jobs/changelist.html"
    page_template = ""
    empty_template = ""
    empty_value_display = ""

    class Media:
        """The one stylesheet."""

        css: ClassVar = {"all": ["jobs/jobs.css"]}

    def has_add_permission(self, request: HttpRequest, *args: Any) -> bool:
        """Nobody: rows are written by the machine."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Nobody: what may be changed has a button."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Nobody: rows leave by retention."""
        return False

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        """The list whose rows are made quickly."""
        return Rows

    def action_checkbox(self, obj: Any) -> SafeString:
        """Django's checkbox, without a form and a template for each row."""
        label = gettext("Select this object for an action - {}").format(obj)
        return format_html(CHECKBOX, obj.pk, label)

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """The list, with the notices that belong above it."""
        context = {
            "title": capfirst(self.opts.verbose_name_plural), "subtitle": None, "list_address": self.list_address(),
            "empty_template": self.empty_template, "notices": self.notices(request), "tools": self.tools(request),
        }  # fmt: skip
        return super().changelist_view(request, {**context, **(extra_context or {})})

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        """One row's page; a row without a page of its own leads to the list."""
        row = self.row(request, object_id)
        if row is None:
            return self.missing(request, object_id)
        if not self.page_template:
            return HttpResponseRedirect(self.list_address())
        return self.rendered(request, self.page_template, {**self.page(request, row), **(extra_context or {})})

    def row(self, request: HttpRequest, object_id: str) -> Any:
        """The row of this id, or nothing; raises ``PermissionDenied`` to who may not see it."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        try:
            return self.get_queryset(request).filter(pk=unquote(object_id)).first()
        except (ValidationError, ValueError):
            return None

    def missing(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Back to the list, with a sentence."""
        self.message_user(request, f"There is no {self.opts.verbose_name} {unquote(object_id)}.", messages.WARNING)
        return HttpResponseRedirect(self.list_address())

    def page(self, request: HttpRequest, row: Any) -> dict[str, Any]:
        """What a row's page shows."""
        return {"object": row, "title": str(row)}

    def notices(self, request: HttpRequest) -> list[str]:
        """Sentences to put above the list."""
        return []

    def tools(self, request: HttpRequest) -> list[tuple[str, str]]:
        """Links to put at the head of the list: text and address."""
        return []

    def rendered(self, request: HttpRequest, template: str, context: dict[str, Any]) -> TemplateResponse:
        """A page of this admin."""
        shared = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "media": self.media,
            "list_address": self.list_address(),
        }
        return TemplateResponse(request, template, {**shared, **context})

    def list_address(self) -> str:
        """The address of the list."""
        return reverse(f"admin:{self.opts.app_label}_{self.opts.model_name}_changelist")

    def row_address(self, row: Model | Any) -> str:
        """The address of a row's page."""
        return address(f"admin:{self.opts.app_label}_{self.opts.model_name}_change", getattr(row, "pk", row))
