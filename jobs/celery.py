"""Joining Mainstay to a Celery app: ``install(app)`` is the one line.

The app is made before Django's apps are ready, so what knows the models is imported when it is first needed.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

from celery import signals
from celery.app.task import Task as CeleryTask
from celery.canvas import _chord, group  # type: ignore[attr-defined]
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import request_finished
from django.db import connections
from kombu import transport as _kombu

from jobs import conf, green, publisher, ready
from jobs.pace import Pace
from jobs.publisher import HEADER, UNTRACKED, Publisher

logger = logging.getLogger("jobs.worker")

TASK_CLASS = "jobs.tracked:Tracked"
RESULT_BACKEND = "jobs.results:JobBackend"
REQUEST_CLASS = "jobs.worker:Request"
CONTROL_CLASS = "jobs.results:Control"
CONSUMER_STEP = "jobs.worker:Children"
WORKER_STEPS = ("jobs.worker:Main", "jobs.shutdown:Shutdown")

REDIS = {"redis": "Transport", "rediss": "Transport", "sentinel": "SentinelTransport"}
kombu: Any = _kombu

DEFAULTS: dict[str, Any] = {
    "task_acks_late": True,
    "task_reject_on_worker_lost": False,
    "task_acks_on_failure": True,
    "task_acks_on_timeout": True,
    "worker_prefetch_multiplier": 1,
    "worker_soft_shutdown_timeout": 25.0,
    "worker_cancel_long_running_tasks_on_connection_loss": False,
    "broker_connection_retry_on_startup": True,
    "broker_connection_max_retries": None,
    # What a broker refuses for now (it is full, or read-only) must not end a worker.
    "broker_channel_error_retry": True,
    "broker_pool_acquire_timeout": 5,
    "accept_content": ["json"],
    "task_serializer": "json",
    "result_serializer": "json",
    "result_extended": True,
    # Beat forgets at most one run of a schedule when it dies, not three minutes of them.
    "beat_sync_every": 1,
    "CELERY_DB_REUSE_MAX": 10**9,
}


def install(app: Any) -> Any:
    """Make every call of the app's tasks a durable job; return the app.

    Call it once, in the module of the Celery app, after its configuration.
    Raises ``ImproperlyConfigured`` when another app of this process has Mainstay.
    """
    if getattr(app, "mainstay_installed", False):
        return app
    _refuse_a_second(app)
    app.mainstay_installed = True
    _put_behind_the_projects_own(app)
    if not app._custom_task_cls_used:
        app.task_cls = TASK_CLASS
        app._custom_task_cls_used = True
    app.mainstay_untracked_backend = app.backend_cls
    app.backend_cls = RESULT_BACKEND
    app.control_cls = CONTROL_CLASS
    send_task = app.send_task
    publisher.use(Publisher(app, send_task))
    _serve_redis()
    app.send_task = functools.partial(_send_task, app, send_task)
    app.on_after_finalize.connect(_adopt_tasks, weak=False)
    app.steps["consumer"].add(CONSUMER_STEP)
    app.steps["worker"].update(WORKER_STEPS)
    _make_canvas_atomic()
    signals.celeryd_after_setup.connect(_before_work, weak=False, dispatch_uid="mainstay")
    signals.worker_process_init.connect(_send_in_caller, weak=False, dispatch_uid="mainstay")
    signals.beat_init.connect(_start_conductor, weak=False, dispatch_uid="mainstay")
    signals.task_prerun.connect(_take_connections, weak=False, dispatch_uid="mainstay take")
    signals.task_prerun.connect(_mend_connections, weak=False, dispatch_uid="mainstay")
    signals.task_postrun.connect(_leave_connections, weak=False, dispatch_uid="mainstay leave")
    request_finished.connect(_leave_the_broker, weak=False, dispatch_uid="mainstay leave")
    return app


def _put_behind_the_projects_own(app: Any) -> None:
    """Take our defaults where the project says nothing; Celery's ``add_defaults`` would overrule its settings."""

    def put(source: Any, **_: Any) -> None:
        source.maps.insert(len(source.maps) - 1, DEFAULTS)

    if app.configured:
        put(app.conf)
    else:
        app.on_after_configure.connect(put, weak=False)


def _serve_redis() -> None:
    """Reach Redis by our transport, under the name that its URLs have: a name of its own is lost on failover URLs."""
    for alias, name in REDIS.items():
        if kombu.TRANSPORT_ALIASES.get(alias) == f"kombu.transport.redis:{name}":
            kombu.TRANSPORT_ALIASES[alias] = functools.partial(_transport, name)
            kombu._transport_cache.pop(alias, None)


def _transport(name: str) -> str:
    """Asked when the first connection is made: an app is made before Django's settings are."""
    try:
        ours = conf.current().FAST_BROKER
    except ImproperlyConfigured:
        ours = True  # whoever starts something says what is wrong, in a sentence
    return f"jobs.broker:{name}" if ours else f"kombu.transport.redis:{name}"


def _refuse_a_second(app: Any) -> None:
    """Jobs are sent through one app: a second one would quietly take the jobs of the first to its own broker."""
    installed = publisher.app_in_use()
    if installed is not None:
        raise ImproperlyConfigured(
            f"Mainstay is installed on the Celery app {installed.main!r} of this process already, and cannot be "
            f"installed on {app.main!r} too. Use one app, or give the other one a process of its own."
        )


def _send_task(app: Any, send_task: Any, name: str, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
    """Celery's ``send_task``, with a job in place of a message."""
    ready.ensure()
    from jobs import intake

    task = options.get("task_type") or app._tasks.get(name)
    tracked = options.pop("tracked", None)
    if not _is_tracked(name, task, tracked, options):
        options = {
            k: v
            for k, v in options.items()
            if k not in ("key", "tags", "metadata", "tenant", "correlation_id", "schedule", "debounce", "throttle")
        }
        if tracked is False:
            options["headers"] = {**(options.get("headers") or {}), HEADER: UNTRACKED}
        return send_task(name, args, kwargs, **options)
    given = {key: value for key, value in options.items() if value is not None}
    parent = app.current_worker_task
    if parent is not None and not parent.request.called_directly:
        given.setdefault("parent_id", parent.request.id)
        given.setdefault("root_id", parent.request.root_id or parent.request.id)
    job_id = intake.enqueue(name, task, args, kwargs, given)
    result = (options.get("result_cls") or app.AsyncResult)(str(job_id))
    if parent is not None and options.get("add_to_parent", True):
        parent.add_trail(result)
    return result


def _is_tracked(name: str, task: Any, tracked: bool | None, options: dict[str, Any]) -> bool:
    """Whether a call becomes a job. What others wait for always does, or a crash would lose what follows."""
    from jobs import outbox, successors

    if outbox.holding() or successors.dispatching():
        return True
    if any(options.get(way) for way in ("chain", "chord", "link", "link_error")):
        return True
    if tracked is not None:
        return tracked
    return not name.startswith("celery.") and getattr(task, "tracked", True)


def _adopt_tasks(sender: Any, **_: Any) -> None:
    """Give tasks that have a base class of their own what they need to run as attempts."""
    from jobs.tracked import Tracked

    for task in list(sender._tasks.values()):
        if not isinstance(task, Tracked):
            _adopt_task(task)
        task.Request = REQUEST_CLASS if task.Request == CeleryTask.Request else task.Request


def _adopt_task(task: Any) -> None:
    from jobs.tracked import Tracked

    own = type(task)
    shape = {
        "abstract": True, "__module__": own.__module__, "adopted_class": True,
        "tracked": getattr(own, "tracked", True) and not task.name.startswith("celery."),
    }  # fmt: skip
    task.__class__ = type(own.__name__, (Tracked, own), shape)
    task.__class__.acks_late = True


def _before_work(instance: Any, **_: Any) -> None:
    """The worker is about to start: tasks registered since the app was finalized are adopted too."""
    from jobs import broker, lifecycle, outage, pools, sender, transport, worker

    if not getattr(instance.app, "mainstay_installed", False):
        return
    try:
        conf.current()
    except ImproperlyConfigured as error:
        raise SystemExit(f"The worker does not start: {error}") from None
    if refusal := pools.refusal(instance):
        raise SystemExit(f"The worker does not start: {refusal}")
    if advice := pools.advice(instance, lifecycle.database()):
        logger.warning(advice)
    pools.widen(instance)
    sender.in_caller()
    _adopt_tasks(instance.app)
    outage.hurry_all(lifecycle.database())
    transport.survive()
    broker.concurrency = lambda: instance.max_concurrency or instance.concurrency or 0
    broker.pace = Pace() if pools.name(instance) in ("prefork", "thread", "solo") else None
    worker.report_in_background(instance)


def _send_in_caller(**_: Any) -> None:
    """In a child of the pool, also where children are no copies of their parent."""
    from jobs import sender

    sender.in_caller()


def _start_conductor(sender: Any, **_: Any) -> None:
    from jobs import conductor
    from jobs.sender import in_caller

    if not getattr(sender.app, "mainstay_installed", False):
        return
    in_caller()
    conductor.start_in_background()
    # Beat would wait for the broker before it fires; a job is recorded without one, and sent when it is back.
    sender.scheduler.producer = None


def _take_connections(sender: Any, **_: Any) -> None:
    if green.threads() and not getattr(sender.request, "is_eager", False):
        from jobs import kept

        kept.take()


def _leave_connections(sender: Any, **_: Any) -> None:
    if green.threads() and not getattr(sender.request, "is_eager", False):
        from jobs import kept

        kept.leave()


def _leave_the_broker(sender: Any, **_: Any) -> None:
    """A web server of gevent's has a greenlet for each request: the next one need not connect to the broker again."""
    if green.threads():
        publisher.in_use().rest()


def _mend_connections(sender: Any, **_: Any) -> None:
    """Close what is broken or too old, of all databases: Celery, which closes everything, is told to keep it."""
    if getattr(sender.request, "is_eager", False):
        return
    for connection in connections.all(initialized_only=True):
        if connection.in_atomic_block:
            continue
        if connection.settings_dict["CONN_MAX_AGE"] == 0:
            # Django's default closes at the end of a request. A worker has none, and to connect for each task costs
            # more than the task: here 0 sets no limit of age.
            connection.close_at = None
        connection.close_if_unusable_or_obsolete()


def _make_canvas_atomic() -> None:
    """Record a group or a chord with all its members or not at all: a crash between two would strand the rest."""
    for cls, name in ((group, "apply_async"), (_chord, "run")):
        method = getattr(cls, name)
        if not hasattr(method, "mainstay"):
            setattr(cls, name, _in_one_transaction(method))


def _in_one_transaction(method: Any) -> Any:
    @functools.wraps(method)
    def whole(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not getattr(self.app, "mainstay_installed", False) or self.app.conf.task_always_eager:
            return method(self, *args, **kwargs)
        from django.db import transaction

        from jobs import lifecycle

        with transaction.atomic(using=lifecycle.alias()):
            return method(self, *args, **kwargs)

    whole.mainstay = True  # type: ignore[attr-defined]
    return whole
