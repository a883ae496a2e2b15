"""Who is measured: how each is set up, what it keeps of a job, and how a stranger counts what it has kept.

A system's settings are given to its processes from here and printed from here, so that the report cannot say otherwise.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from tests.chaos.children import ROOT

PYTHON = "{python}"
EVERY_PEER = "Django with CONN_MAX_AGE=60 and CONN_HEALTH_CHECKS; no log line per job"
CONTENT = "django.contrib.contenttypes"


class Unknown(Exception):
    """A name that nothing here has; the message says which names there are."""


@dataclass(frozen=True, slots=True)
class System:
    """One of those that are compared.

    ``pools`` has the commands of its workers for each way to run them. ``kept`` is SQL, ``kept_in_redis`` a sorted set,
    that counts the jobs whose outcome is recorded. ``pace`` is a guess at its jobs per second, for the first round.
    ``brief`` says whether a quick run drains it too. ``twin`` is a system that enqueues by the same calls.
    """

    name: str
    title: str
    calls: str
    keeps: str
    pools: Mapping[str, str]
    pace: int
    package: str = ""
    ours: bool = False
    database: str = "postgres"
    settings: Mapping[str, Any] = field(default_factory=dict)
    copies: int = 1
    kept: str = ""
    kept_in_redis: str = ""
    bulk: str = ""
    aides: Sequence[str] = ()
    said: str = ""
    root: str = str(ROOT)
    brief: bool = True
    twin: str = ""

    @property
    def described(self) -> str:
        """Its settings in words: the commands of its workers, and what its settings file says."""
        commands = " · ".join(f"{pool}: `{shown(command)}`" for pool, command in self.pools.items())
        times = f"{self.copies} × " if self.copies > 1 else ""
        given = ", ".join(f"{name}={json.dumps(value)}" for name, value in self.settings.items() if name[0] != "I")
        return "; ".join(part for part in (f"{times}{commands}", f"`{given}`" if given else "", self.said) if part)


def shown(command: str) -> str:
    """A command line as it is printed.

    >>> shown("{python} -m rq.cli worker --url {broker}")
    'python -m rq.cli worker --url redis://…'
    """
    return command.format(python="python", broker="redis://…")


def celery_worker(app: str, *more: str) -> dict[str, str]:
    """Celery's worker in its three pools, the same for everybody who has one."""
    sizes = {"prefork": 2, "threads": 8, "solo": 1}
    extra = "".join(f" {word}" for word in more)
    return {
        pool: f"{PYTHON} -m celery -A {app} worker --pool {pool} --concurrency {size}{extra}"
        for pool, size in sizes.items()
    }


def only(pool: str, commands: Mapping[str, str]) -> dict[str, str]:
    """One pool of several."""
    return {pool: commands[pool]}


OURS = System(
    "mainstay",
    "Mainstay",
    "tests.bench.ours",
    "a row with payload, times and result; attempts; dead letters",
    celery_worker("project", "--queues default"),
    500,
    ours=True,
    kept="SELECT count(*) FROM jobs_job WHERE state = 'completed'",
    aides=(f"{PYTHON} manage.py conductor",),
    said="`project/settings.py`: JOBS={}, time limits of 300 and 270 s; beside it `manage.py conductor`",
)
OTHER = replace(
    OURS, name="other", title="Mainstay, the other checkout", root="", said=f"{OURS.said}; the code is that of BEFORE="
)
ACKS_LATE = {"INSTALLED_APPS": [CONTENT], "CELERY_TASK_ACKS_LATE": True}
ALL = (
    OURS,
    System(
        "mainstay-sqlite", "Mainstay on SQLite", OURS.calls, OURS.keeps, OURS.pools, 300,
        ours=True, brief=False, database="sqlite", kept=OURS.kept, aides=OURS.aides, said=OURS.said,
    ),
    System(
        "celery", "stock Celery, untracked", "celery_peer", "nothing", celery_worker("celery_peer"), 400, "celery",
        settings=ACKS_LATE, said="its documented defaults and acks_late; no results",
    ),
    System(
        "celery-results", "Celery + django-celery-results", "celery_peer", "a row; no attempts",
        only("prefork", celery_worker("celery_peer")), 60, "django-celery-results",
        settings={
            "INSTALLED_APPS": [CONTENT, "django_celery_results"], "CELERY_TASK_ACKS_LATE": True,
            "CELERY_RESULT_BACKEND": "django-db", "CELERY_TASK_TRACK_STARTED": True,
        },
        kept="SELECT count(*) FROM django_celery_results_taskresult WHERE status = 'SUCCESS'",
    ),
    System(
        "rq", "RQ, forking workers", "rq_peer", "a Redis hash, for 500 s",
        {"prefork": "{python} -m rq.cli worker-pool default --num-workers 2 --url {broker} --quiet"}, 60, "rq",
        brief=False,
        kept_in_redis="rq:finished:default", bulk="enqueue_many", said="its default worker",
    ),
    System(
        "rq-simple", "RQ, SimpleWorker", "rq_peer", "a Redis hash, for 500 s",
        {"prefork": "{python} -m rq.cli worker-pool default --num-workers 2 --url {broker} --quiet "
                    "--worker-class rq.worker.SimpleWorker"}, 300, "rq", twin="rq",
        kept_in_redis="rq:finished:default", bulk="enqueue_many", said="runs bodies in the worker itself, without its "
        "protection from them",
    ),
    System(
        "procrastinate", "Procrastinate", "procrastinate_peer", "a row and its events",
        {"prefork": f"{PYTHON} -m django procrastinate worker --concurrency 10"}, 200, "procrastinate", copies=2,
        settings={
            "INSTALLED_APPS": [CONTENT, "procrastinate.contrib.django"],
            "PROCRASTINATE_IMPORT_PATHS": ["procrastinate_peer"],
        },
        kept="SELECT count(*) FROM procrastinate_jobs WHERE status = 'succeeded'", bulk="batch_defer",
    ),
    System(
        "django-q2", "django-q2, ORM broker", "q2_peer", "a row",
        {"prefork": f"{PYTHON} -m django qcluster"}, 300, "django-q2",
        settings={
            "INSTALLED_APPS": [CONTENT, "django_q"],
            "Q_CLUSTER": {"orm": "default", "workers": 2, "timeout": 60, "retry": 120, "save_limit": 0,
                          "log_level": "WARNING"},
        },
        kept="SELECT count(*) FROM django_q_task WHERE success", said="save_limit 0 keeps every row, as the others do",
    ),
    System(
        "django-tasks-db", "django-tasks-db", "tasks_db_peer", "a row",
        {"prefork": f"{PYTHON} -m django db_worker --verbosity 0"}, 200, "django-tasks-db", copies=2,
        settings={
            "INSTALLED_APPS": [CONTENT, "django_tasks_db"],
            "TASKS": {"default": {"BACKEND": "django_tasks_db.DatabaseBackend", "QUEUES": ["default"]}},
        },
        kept="SELECT count(*) FROM django_tasks_database_dbtaskresult WHERE status = 'SUCCESSFUL'",
    ),
    System(
        "dramatiq", "Dramatiq", "dramatiq_peer", "nothing",
        {"prefork": f"{PYTHON} -m dramatiq dramatiq_peer --processes 2 --threads 8"}, 2000, "dramatiq", brief=False,
        said="its defaults: a process for each of two processors, with eight threads",
    ),
    System(
        "huey", "Huey", "huey_peer", "nothing, and no acknowledgement",
        {"prefork": f"{PYTHON} -m huey.bin.huey_consumer huey_peer.queue --workers 2 --worker-type process --quiet"},
        2500, "huey", brief=False,
    ),
)  # fmt: skip
SYSTEMS: Mapping[str, System] = MappingProxyType({system.name: system for system in (*ALL, OTHER)})
PEERS = tuple(system.name for system in ALL if not system.ours)


def chosen(words: str) -> list[System]:
    """The systems that ``PEERS=`` names, and Mainstay; all of them where it names none. Raises ``Unknown``."""
    names = [word.strip() for word in words.split(",") if word.strip()]
    for name in names:
        if name not in SYSTEMS:
            close = difflib.get_close_matches(name, SYSTEMS, 1)
            there = f"Did you mean {close[0]}?" if close else f"There are: {', '.join(PEERS)}."
            raise Unknown(f"PEERS={name} is not a peer. {there}")
    return [system for system in ALL if not names or system is OURS or system.name in names]
