"""Time passes at once: every time that was written down moves into the past."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from datetime import datetime, timedelta
from typing import Any

from django.apps import apps
from django.db import models, transaction
from django.db.models import F

from tests.machine import ledger


def advance(seconds: float, *memories: Any) -> None:
    """Let time pass for the database, and for what ``memories`` remember; nothing else changes."""
    ago = timedelta(seconds=seconds)
    with transaction.atomic():
        serial = ledger.last()
        for app in ("jobs", "dlq"):
            for model in apps.get_app_config(app).get_models():
                _move_back(model, ago)
        ledger.forget(serial)
    for memory in memories:
        _remember(memory, ago)


def _move_back(model: type[models.Model], ago: timedelta) -> None:
    times = [field.attname for field in model._meta.concrete_fields if isinstance(field, models.DateTimeField)]
    if times:
        model._base_manager.update(**{name: F(name) - ago for name in times})


def _remember(memory: Any, ago: timedelta) -> None:
    """Move the times back that an object keeps in its fields, or one level below."""
    assert is_dataclass(memory)
    for field in fields(memory):
        setattr(memory, field.name, _earlier(getattr(memory, field.name), ago))


def _earlier(value: Any, ago: timedelta) -> Any:
    if isinstance(value, datetime):
        return value - ago
    if isinstance(value, float):  # by the monotonic clock
        return value - ago.total_seconds()
    if isinstance(value, dict):
        return {key: _earlier(item, ago) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(_earlier(item, ago) for item in value)
    return value
