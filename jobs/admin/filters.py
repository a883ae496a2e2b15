"""Filters of the lists: fed from declarations and indexes, never from a DISTINCT over the table."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Any, ClassVar

from django.contrib.admin import SimpleListFilter
from django.contrib.admin.options import IncorrectLookupParameters
from django.core.exceptions import ValidationError
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.utils import timezone

from jobs.admin.names import queues
from jobs.admin.wording import short_task
from jobs.horizon import of_state
from jobs.leap import occurring
from jobs.models import PRIORITIES
from jobs.states import State

Choices = Iterable[tuple[str, str]]


class ByState(SimpleListFilter):
    """One state, or all that are not final."""

    title = "state"
    parameter_name = "state"
    UNFINISHED = "unfinished"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Choices:
        """The states, and what is unfinished."""
        return [(self.UNFINISHED, "all unfinished"), *((s.value, s.value) for s in State)]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """The jobs of the state."""
        if self.value() == self.UNFINISHED:
            return queryset.filter(finished_at__isnull=True)
        return queryset.filter(of_state(self.value() or "")) if self.value() else queryset


class ByPriority(SimpleListFilter):
    """One of the four priorities."""

    title = "priority"
    parameter_name = "priority"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Choices:
        """The four."""
        return [(str(value), name) for value, name in PRIORITIES]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """The jobs of the priority."""
        known = {str(value): value for value, _ in PRIORITIES}
        return queryset.filter(priority=known[value]) if (value := self.value()) in known else queryset


class ByQueue(SimpleListFilter):
    """One queue."""

    title = "queue"
    parameter_name = "queue"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Choices:
        """The queues there are."""
        return [(name, name) for name in queues()]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """The rows of the queue."""
        return queryset.filter(queue=self.value()) if self.value() else queryset


class ByTask(SimpleListFilter):
    """One task."""

    title = "task"
    parameter_name = "task"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Choices:
        """The tasks that occur in the list, by the last part of their names."""
        return sorted(((name, short_task(name)) for name in occurring(model_admin.model, "task")), key=lambda c: c[1])

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """The rows of the task."""
        return queryset.filter(task=self.value()) if self.value() else queryset


class ByAge(SimpleListFilter):
    """Not older than an hour, a day, a week."""

    title = "age"
    parameter_name = "within"
    column = "created_at"
    RANGES: ClassVar = {"1h": timedelta(hours=1), "24h": timedelta(hours=24), "7d": timedelta(days=7)}

    def lookups(self, request: HttpRequest, model_admin: Any) -> Choices:
        """The three ranges."""
        return [("1h", "last hour"), ("24h", "last 24 hours"), ("7d", "last 7 days")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """The rows of the range."""
        age = self.RANGES.get(self.value() or "")
        return queryset.filter(**{f"{self.column}__gte": timezone.now() - age}) if age else queryset


class Linked(SimpleListFilter):
    """A filter that only links set: it shows itself while it acts."""

    column = ""

    def lookups(self, request: HttpRequest, model_admin: Any) -> Choices:
        """The value in force, if there is one."""
        value = self.value()
        return [(value, value if len(value) <= 20 else f"…{value[-16:]}")] if value else []

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """The rows with this value."""
        try:
            return queryset.filter(**{self.column: self.value()})
        except (ValidationError, ValueError) as error:
            raise IncorrectLookupParameters from error


class ByCorrelation(Linked):
    """The jobs of one flow: the finished by their index, and all of the unfinished."""

    title = parameter_name = column = "correlation"

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """The rows with this id."""
        return queryset.filter(correlated(self.value() or "")) if self.value() else queryset


def correlated(correlation_id: str) -> Q:
    """The jobs with this correlation id, in the two places where they are."""
    same = Q(correlation_id=correlation_id)
    return (same & Q(finished_at__isnull=False)) | (same & Q(finished_at__isnull=True))


def linked(name: str, column: str = "", title: str = "") -> type[Linked]:
    """A ``Linked`` filter for the query parameter ``name``."""
    fields = {"parameter_name": name, "title": title or name, "column": column or name}
    return type(f"LinkedBy{name.title()}", (Linked,), fields)
