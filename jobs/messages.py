"""Making messages: what Celery's ``send_task`` would publish for a job, for a fraction of its time.

Celery makes one message of each kind; others of the kind are copies of it with their own id, payload and place in a
canvas. Whatever could make a difference (signals, routers, stamps, an exchange) is left to Celery, message by message.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from celery import signals
from celery.app import base
from celery.app.amqp import AMQP
from celery.app.routes import MapRoute, Router
from celery.utils.saferepr import saferepr

from jobs import limits, payload

if TYPE_CHECKING:
    from jobs.models import Job

HEADER = "mainstay"
_TELLING = (signals.before_task_publish, signals.after_task_publish, signals.task_sent)
SendTask = Callable[..., Any]

# With one of these, a message is one of its kind.
_UNUSUAL = ("exchange", "routing_key", "stamped_headers", "argsrepr", "kwargsrepr")
# How many kinds are kept: tasks times queues times priorities, of a large project.
_KINDS = 4096
# What Celery makes messages by; it makes each again where the configuration that it heeds has changed.
_MADE_BY = ("router", "queues", "create_task_message", "send_task_message")

_BLANK: dict[str, Any] = {
    "task_id": "id", "args": (), "kwargs": {}, "root_id": "root", "parent_id": "parent", "group_id": None,
    "group_index": None, "time_limit": None, "soft_time_limit": None, "headers": {},
    "shadow": None,
}  # fmt: skip
_FULL: dict[str, Any] = {
    "task_id": "other", "args": (1, "two", [3.0, {"é": None}]), "kwargs": {"four": "'5'"}, "root_id": "another root",
    "parent_id": "another parent", "group_id": "group", "group_index": 6, "time_limit": 7.5, "soft_time_limit": 8,
    "headers": {"x-own": "9", HEADER: {"job": "other"}}, "shadow": "shadow",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Message:
    """What kombu's ``Producer.publish`` is given, but for the queues and exchanges that must be there before."""

    body: Any
    options: dict[str, Any]
    declares: tuple[Any, ...]


def asked(job: Job, priority: int, in_return: Mapping[str, Any]) -> dict[str, Any]:
    """What ``send_task`` is asked for, to send a job's message; ``in_return`` is what the broker shall answer."""
    content, job_id = payload.decode(job.payload), str(job.pk)
    carried = payload.from_json(job.delivery) if job.delivery else {}
    mark: dict[str, Any] = {"job": job_id, "correlation_id": job.correlation_id}
    if limits.gathers(job.__dict__.get("bound", "")):
        mark["chunk"] = True  # it stands for others too
    headers = {**(carried.pop("headers", None) or {}), HEADER: mark}
    if not carried.get("exchange"):
        carried |= {"queue": job.queue, **in_return}
    return {
        **carried, "name": job.task, "args": content.args, "kwargs": content.kwargs, "task_id": job_id,
        "headers": headers, "priority": priority, "root_id": _text(job.root_id),
        "parent_id": _text(job.parent_id), "group_id": _text(job.group_id), "group_index": job.group_index,
        "time_limit": job.time_limit, "soft_time_limit": job.soft_time_limit, "expires": None,
        "ignore_result": True, "add_to_parent": False, "retry": False,
    }  # fmt: skip


class Collector:
    """Stands where Celery sends to, and keeps what it would have sent."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.messages: list[Message] = []

    def publish(self, body: Any, *, declare: Any = None, **options: Any) -> None:
        """Keep a message."""
        self.messages.append(Message(body, options, tuple(declare or ())))


@dataclass(frozen=True, slots=True)
class Kind:
    """A message that Celery made, of which others are copies."""

    first: Message
    queue: Any
    task: Any
    repr_levels: Any
    repr_length: tuple[int, int]

    def copied(self, asked: Mapping[str, Any], reply_to: str) -> Message:
        """The message that is asked for, if it is of this kind."""
        args, kwargs = asked["args"] or (), asked["kwargs"] or {}
        args_length, kwargs_length = self.repr_length
        headers = {
            **self.first.options["headers"], "id": asked["task_id"], "shadow": asked.get("shadow"),
            "group": asked["group_id"], "group_index": asked["group_index"],
            "timelimit": [asked["time_limit"], asked["soft_time_limit"]],
            "root_id": asked["root_id"] or asked["task_id"], "parent_id": asked["parent_id"],
            "argsrepr": saferepr(args, args_length, self.repr_levels),
            "kwargsrepr": saferepr(kwargs, kwargs_length, self.repr_levels) if kwargs else "{}",
            "stamps": {}, **asked["headers"],
        }  # fmt: skip
        options = {
            **self.first.options, "headers": headers, "correlation_id": asked["task_id"], "reply_to": reply_to,
        }  # fmt: skip
        return Message((args, kwargs, self.first.body[2]), options, self.first.declares)


class Configured:
    """What Celery's configuration says to each call, kept until it changes: Celery takes long to look it up."""

    def __init__(self, app: Any) -> None:
        amqp = app.amqp
        # Before the others: to look up a setting may be what configures the app.
        self.sends_events = bool(app.conf.task_send_sent_event)
        self.queues = frozenset(amqp.queues) if app.conf.task_queues else frozenset[str]()
        self.by_name = _by_name_alone(amqp)
        self.routes: dict[str, str] = {}  # the queue of a task, where its name alone says which
        self.alone: bool | None = None  # asked when it is first needed
        self._made_from = self._state(app)

    def holds(self, app: Any) -> bool:
        """Whether it still says the same."""
        return self._state(app) == self._made_from

    def _state(self, app: Any) -> tuple[Any, ...]:
        amqp, changes = app.amqp, getattr(app.conf, "changes", None)
        router = vars(amqp).get("router")
        return amqp, router, amqp.queues, frozenset(amqp.queues), dict(changes) if changes is not None else None


def _by_name_alone(amqp: Any) -> bool:
    """Whether nothing but the name of a task says to which queue it goes."""
    try:
        router = amqp.router
        routes = router.routes
    except Exception:
        return False  # whoever asks for a route is told what is wrong
    return type(router) is Router and all(isinstance(route, MapRoute) for route in routes)


class Maker:
    """Makes the messages of one Celery app."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self._configured: Configured | None = None
        self._kinds: dict[Any, Kind | None] = {}
        self._made_from: tuple[Any, ...] = ()

    @property
    def configured(self) -> Configured:
        """What Celery's configuration says now."""
        kept = self._configured
        if kept is None or not kept.holds(self.app):
            kept = self._configured = Configured(self.app)
        return kept

    def configure(self) -> None:
        """Ask Celery's configuration again."""
        self._configured = None

    @property
    def watched(self) -> bool:
        """Whether somebody is told of each message, and may change it."""
        return any(signal.receivers for signal in _TELLING) or self.configured.sends_events

    def makes_alone(self, send_task: SendTask) -> bool:
        """Whether nothing of the project's or of other packages takes part: that would expect the caller's context."""
        configured = self.configured
        if configured.alone is None:
            configured.alone = self._is_celerys_own(send_task)
        return configured.alone

    def made(self, asked: dict[str, Any], send_task: SendTask, connection: Any, watched: bool) -> list[Message]:
        """What is to be published: one message, and where that is asked for, an event that tells of it."""
        message = None if watched else self.copied(asked, send_task, connection)
        return [message] if message is not None else _collected(asked, send_task, connection)

    def copied(self, asked: dict[str, Any], send_task: SendTask, connection: Any) -> Message | None:
        """The message as a copy; None where it must be made by Celery itself."""
        if any(asked.get(name) is not None for name in _UNUSUAL):
            return None
        if not asked["parent_id"] and self.app.current_worker_task is not None:
            return None  # Celery makes a child of it
        kind = self._kind(asked, send_task, connection)
        return None if kind is None else kind.copied(asked, self.app.thread_oid)

    def _kind(self, asked: dict[str, Any], send_task: SendTask, connection: Any) -> Kind | None:
        self._start_again_where_changed()
        queue, task = self.app.amqp.queues.get(asked["queue"]), self.app._tasks.get(asked["name"])
        name = (
            asked["name"], asked["queue"], asked["priority"], asked.get("compression"), asked.get("delivery_mode"),
            asked.get("timeout"), send_task, os.getpid(),
        )  # fmt: skip
        try:
            kind = self._kinds[name]
        except KeyError:
            pass
        except TypeError:
            return None  # an option that cannot be right
        else:
            if kind is None or (kind.queue is queue and kind.task is task):
                return kind
        if len(self._kinds) >= _KINDS:
            self._kinds.clear()
        kind = self._kinds[name] = self._learnt(asked, send_task, connection)
        return kind

    def _start_again_where_changed(self) -> None:
        """Forget the kinds that Celery made by another configuration, or by other routes or queues."""
        amqp, changes = self.app.amqp, getattr(self.app.conf, "changes", None)
        # Asked for, not looked up among what is there: Celery makes each when it is first needed.
        made_by = (amqp, *(getattr(amqp, part) for part in _MADE_BY))
        if self._made_from != (*made_by, changes):
            self._kinds.clear()
            self._made_from = (*made_by, dict(changes) if changes is not None else None)

    def _learnt(self, asked: dict[str, Any], send_task: SendTask, connection: Any) -> Kind | None:
        """The kind of a message, if copies of it are what Celery makes; it is tried with two very different ones."""
        if not self._is_celerys_own(send_task):
            return None
        amqp, reply_to = self.app.amqp, self.app.thread_oid
        first, *more = _collected({**asked, **_BLANK}, send_task, connection)
        if more or not isinstance(first.body, tuple) or len(first.body) != 3:
            return None
        kind = Kind(
            first, amqp.queues.get(asked["queue"]), self.app._tasks.get(asked["name"]),
            self.app.conf.task_repr_maxlevels,
            (amqp.argsrepr_maxsize, amqp.kwargsrepr_maxsize),
        )  # fmt: skip
        probes = [{**asked, **_BLANK}, {**asked, **_FULL}]
        alike = all([kind.copied(probe, reply_to)] == _collected(probe, send_task, connection) for probe in probes)
        return kind if alike else None

    def _is_celerys_own(self, send_task: SendTask) -> bool:
        """Whether nothing of the project's or of other packages takes part in the making of a message."""
        code = getattr(getattr(send_task, "__func__", None), "__code__", None)
        router: Any = self.app.amqp.router
        return (
            code is not None
            and code.co_filename == base.Celery.setup_security.__code__.co_filename
            and type(self.app.amqp) is AMQP
            and all(isinstance(route, MapRoute) for route in router.routes)
        )


def _collected(asked: dict[str, Any], send_task: SendTask, connection: Any) -> list[Message]:
    collector = Collector(connection)
    send_task(**asked, producer=collector)
    return collector.messages


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
