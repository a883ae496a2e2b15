"""The admin's way of saying things, as template filters."""

from __future__ import annotations

from django import template

from jobs.admin import wording

register = template.Library()

for _name in ("badge", "exactly", "lasting", "short_id", "when"):
    register.filter(_name, getattr(wording, _name))


@register.filter
def job_address(job: object) -> str:
    """The address of a job's page."""
    return wording.job_address(getattr(job, "pk", job))  # type: ignore[arg-type]
