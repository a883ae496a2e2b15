"""Counting no further than anybody pages."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from django.core import paginator

if TYPE_CHECKING:
    Paginator = paginator.Paginator[Any]
else:
    Paginator = paginator.Paginator


class CappedPaginator(Paginator):
    """A paginator that stops counting, and paging, after ``CAP`` rows."""

    CAP = 10_000
    in_order = False

    @cached_property
    def count(self) -> int:
        """How many rows there are, at most ``CAP``."""
        return min(self._counted, self.CAP)

    @property
    def shown(self) -> str:
        """The count for people: "10,000+" where counting stopped."""
        return f"{self.CAP:,}+" if self._counted > self.CAP else f"{self.count:,}"

    @cached_property
    def _counted(self) -> int:
        rows: Any = self.object_list
        return int((rows if self.in_order else rows.order_by())[: self.CAP + 1].count())


class OrderedPaginator(CappedPaginator):
    """One that counts along the index of the order, where rows are too wide to be looked at for it."""

    in_order = True
