"""From a fire to a job, through the front door; what the door refuses becomes a failed job with its dead letter."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID

from django.db import InterfaceError, OperationalError, transaction

from jobs import declared, intake, lifecycle, payload
from jobs.errors import JobsError, OptionError, PayloadError
from jobs.models import Tick

logger = logging.getLogger("jobs.schedule")

OPTIONS = ("queue", "exchange", "routing_key", "priority")


@dataclass(frozen=True, slots=True)
class Called:
    """What a fire led to: the job, or the reason why there is none."""

    job_id: UUID | None
    reason: str = ""


def of(task: Any, fire: datetime, now: datetime) -> Called:
    """Enqueue the job of a fire in the current transaction.

    Raises only what says that the database itself is away: then the fire is to be tried again.
    """
    try:
        arguments, options = content(task), options_of(task, fire, now)
        if not tracked(task.task):
            transaction.on_commit(partial(_send, task, arguments, options, fire), using=lifecycle.alias(), robust=True)
            return Called(None, "sent as a message: its task is not tracked")
        with transaction.atomic(using=lifecycle.alias()):
            return Called(UUID(str(_call(task.task, arguments, options).id)))
    except (OperationalError, InterfaceError):
        raise
    except Exception as error:
        return _buried(task, error)


def content(task: Any) -> tuple[list[Any], dict[str, Any]]:
    """The arguments that a periodic task calls its task with. Raises ``PayloadError``."""
    args = _json("args", task.args, "[]")
    kwargs = _json("kwargs", task.kwargs, "{}")
    if not isinstance(args, list):
        raise PayloadError(f"args must be a JSON list such as [1, 2], not {args!r}.")
    if not isinstance(kwargs, dict):
        raise PayloadError(f'kwargs must be a JSON object such as {{"order_id": 1}}, not {kwargs!r}.')
    return args, kwargs


def options_of(task: Any, fire: datetime, now: datetime) -> dict[str, Any]:
    """The options of the call. Raises ``PayloadError`` or ``OptionError``."""
    headers = _json("headers", task.headers, "{}")
    if not isinstance(headers, dict):
        raise OptionError(f"headers must be a JSON object, not {headers!r}.")
    options: dict[str, Any] = {name: getattr(task, name) for name in OPTIONS if getattr(task, name) not in (None, "")}
    ours = {"periodic_task_name": task.name, "celery_beat_task": True, "fire_at": fire.isoformat()}
    options["headers"] = {**headers, **ours}
    expires = _expiry(task, fire, now)
    return options if expires is None else {**options, "expires": expires}


def _expiry(task: Any, fire: datetime, now: datetime) -> datetime | timedelta | None:
    """When the job expires: so long after it was due, or with the schedule itself."""
    if task.expire_seconds is None:
        ends: datetime | None = task.expires
        return ends
    lasts = timedelta(seconds=task.expire_seconds)
    left = fire + lasts - now
    return left if left > timedelta(0) else lasts


def _json(name: str, text: str | None, default: str) -> Any:
    try:
        return payload.from_json(text or default)
    except ValueError as error:
        raise PayloadError(f"{name} is not JSON: {error}. It is {text!r}.") from None


def tracked(name: str) -> bool:
    """Whether the calls of a task become jobs."""
    if declared.app().conf.task_always_eager or name.startswith("celery."):
        return False
    return bool(getattr(declared.task(name), "tracked", True))


def _call(name: str, arguments: tuple[list[Any], dict[str, Any]], options: dict[str, Any]) -> Any:
    task = declared.task(name)
    if task is None:
        return declared.app().send_task(name, *arguments, **options)
    return task.apply_async(*arguments, **options)


def _send(task: Any, arguments: tuple[list[Any], dict[str, Any]], options: dict[str, Any], fire: datetime) -> None:
    """Send what is not tracked, at most once: nobody would know whether it arrived."""
    try:
        _call(task.task, arguments, options)
    except Exception as error:
        logger.exception("The schedule %s could not send %s, which is not tracked.", task.name, task.task)
        said = f"could not be sent, and is not tracked: {error}"[:255]
        Tick.objects.using(lifecycle.alias()).filter(schedule=task.name, fire_at=fire).update(reason=said)


def _buried(task: Any, error: Exception) -> Called:
    """Keep a fire that could not be enqueued as a failed job, where a person sees it."""
    said = error if isinstance(error, JobsError) else PayloadError(f"{type(error).__name__}: {error}")
    reason = f"The schedule {task.name} could not enqueue {task.task}: {said}"
    logger.error(reason)
    try:
        args, kwargs = content(task)
    except JobsError:
        args, kwargs = [], {}
    try:
        with transaction.atomic(using=lifecycle.alias()):
            return Called(intake.bury(task.task, args, kwargs, {"schedule": task.name}, said), str(said))
    except (OperationalError, InterfaceError):
        raise
    except Exception:
        logger.exception("The failure of the schedule %s could not be kept as a dead letter.", task.name)
        return Called(None, reason)
