"""The admin's way of saying things, as template filters."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any

from django import template

from jobs.admin import limits, why, wording
from jobs.gauges import Gauge, Rule, as_said

register = template.Library()

for _name in ("badge", "exactly", "lasting", "short_id", "short_task", "when"):
    register.filter(_name, getattr(wording, _name))
register.filter("meter", limits.meter)


@register.filter
def job_address(job: object) -> str:
    """The address of a job's page."""
    return wording.job_address(getattr(job, "pk", job))  # type: ignore[arg-type]


@register.filter
def limit_address(of: Gauge | Rule) -> str:
    """The address of the page of a key, or of a declared limit."""
    if isinstance(of, Gauge):
        return why.limit_address(of.bind.kind, of.bind.key)
    return why.limit_address(of.kind, of.name)


@register.filter
def allows(gauge: Gauge) -> str:
    """What a key allows."""
    return as_said(gauge.bind.kind.value, gauge.numbers)


@register.filter
def subtract(number: int, shown: Sized | Any) -> int:
    """How many are not shown."""
    return number - len(shown)
