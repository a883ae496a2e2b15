"""What the script of a row has in its hands: work, processes, faults, waiting, and what it requires."""

from __future__ import annotations

import contextlib
import json
import math
import random
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from redis import Redis

from project import processes
from project.servers import Server, rabbitmq
from project.servers.rabbitmq import RabbitmqServer
from tests.chaos import checker, ledger
from tests.chaos.children import ROOT, Process
from tests.chaos.ledger import Line, Run
from tests.chaos.proxy import Proxy
from tests.chaos.world import LEASE, Database, Skipped, World

KINDS: dict[str, dict[str, Any]] = {
    "plain": {"task": "plain"},
    "idempotent": {"task": "idempotent"},
    "transactional": {"task": "transactional", "effect": "row"},
    "limited": {"task": "limited"},
    "guarded": {"task": "guarded"},
    "through gateway": {"task": "through_gateway"},
    "breakable": {"task": "breakable"},
    "gathered": {"task": "gathered"},
    "debounced": {"task": "debounced"},
    "checkpointed": {"task": "checkpointed", "effect": "row"},
    "failing": {"task": "plain", "how": "broken", "expects": "failed", "effect": "none"},
    "retried": {"task": "plain", "how": "transient", "until": 3},
}
CANVASES = {"chain": 3, "chord": 4, "link": 2, "errlink": 2}
EVERYTHING = (*("plain", "idempotent", "transactional", "failing", "retried"), *CANVASES)
QUIET = 5.0  # seconds after which plain Celery, with an empty broker, has nothing more to do


class OutOfTime(Exception):
    """The row waited for something that did not come."""


class Stage:
    """The world of a row and everything that happens in it."""

    def __init__(self, world: World, say: Callable[[str], None]) -> None:
        self.world = world
        self.say = say
        self.random = random.Random(f"{world.options.seed}:{world.row.number}")
        self.deadline = time.monotonic() + world.row.limit
        self.processes: list[Process] = []
        self.workers: list[Process] = []
        self.conductors: list[Process] = []
        self.beats: list[Process] = []
        self.measures: dict[str, Any] = {}
        self.shortened: list[str] = []
        self.problems: list[str] = []
        self.struck: int | None = None
        self._recovery: float | None = None
        self._number = 0
        self._reader = ledger.Reader(world.ledger)
        self._proxies: list[Proxy] = []
        self._servers: list[Server] = []
        self._producer_via: Sequence[Proxy] = ()
        self._loads: list[Load] = []
        self._producer: Process | None = None

    # --- What there is

    @property
    def broker(self) -> Server:
        """The broker's server: ``stop start kill freeze thaw restart``. Call ``fault()`` when you break it."""
        return self.world.broker

    @property
    def redis(self) -> Redis:
        """A client of the broker, for ``flushall``, ``delete``, ``config_set``, ``client_kill_filter``."""
        return Redis.from_url(self.broker.url, socket_timeout=5, socket_connect_timeout=5)

    @property
    def lists(self) -> list[str]:
        """The lists of Redis in which the messages of the default queue wait, one for each priority."""
        return ["default", *(f"default\x06\x16{step}" for step in (3, 6, 9))]

    @property
    def database(self) -> Database:
        """The row's database; its ``server`` can be broken where the row has ``own_database=True``."""
        return self.world.database

    @property
    def quick(self) -> bool:
        """Whether the row is to be short."""
        return self.world.options.quick

    @property
    def celery(self) -> bool:
        """Whether this is plain Celery, for the comparison."""
        return self.world.options.against == "celery"

    @property
    def lease(self) -> float:
        """The lease in force, in seconds; for plain Celery its visibility timeout."""
        return self.world.options.visibility if self.celery else float(self.world.jobs.get("LEASE", LEASE))

    @property
    def worker(self) -> Process:
        """The worker that was started last."""
        return self.workers[-1]

    @property
    def conductor(self) -> Process:
        """The conductor that was started last."""
        return self.conductors[-1]

    @property
    def beat(self) -> Process:
        """The beat that was started last."""
        return self.beats[-1]

    def scaled(self, usual: int, quick: int) -> int:
        """How much of something: less when the row is to be short, which is then told at the end of the run."""
        if self.quick:
            self.leave_out(f"{quick} instead of {usual}")
        return quick if self.quick else usual

    def leave_out(self, words: str) -> None:
        """Say what a short run of the row leaves out."""
        if words not in self.shortened:
            self.shortened.append(words)

    # --- Processes

    def start(self, **worker: Any) -> Process:
        """Start a conductor and a worker, at the same time; return the worker."""
        self.start_conductor(ready=False)
        started = self.start_worker(**worker)
        if self.conductors:
            self.conductor.expect("started")
        return started

    def start_worker(
        self,
        *,
        concurrency: int = 2,
        pool: str = "prefork",
        queues: str = "default",
        args: Sequence[str] = (),
        ready: bool = True,
        **how: Any,
    ) -> Process:
        """Start a worker; wait until it is ready unless told otherwise. ``how`` is as in :meth:`spawn`."""
        app = "tests.chaos.plain" if self.celery else "project"
        name = f"w{len(self.workers) + 1}"
        command = ["-m", "celery", "-A", app, "worker", "-P", pool, "-c", str(concurrency)]
        command += ["-Q", queues, "-n", f"{name}@%h", "-l", "INFO", *args]
        self.workers.append(self.spawn(f"worker-{name}", command, **how))
        return self.worker.expect(" ready.") if ready else self.worker

    def start_conductor(self, *, ready: bool = True, **how: Any) -> None:
        """Start a conductor; plain Celery has none."""
        if not self.celery:
            name = f"conductor-{len(self.conductors) + 1}"
            self.conductors.append(self.spawn(name, ["manage.py", "conductor"], **how))
            if ready:
                self.conductor.expect("started")

    def start_beat(self, *, args: Sequence[str] = (), ready: bool = True, **how: Any) -> Process:
        """Start a beat, which holds a conductor too."""
        app = "tests.chaos.plain" if self.celery else "project"
        command = ["-m", "celery", "-A", app, "beat", "-l", "INFO", *args]
        self.beats.append(self.spawn(f"beat-{len(self.beats) + 1}", command, **how))
        return self.beat.expect("beat: Starting") if ready else self.beat

    def spawn(
        self,
        name: str,
        arguments: Sequence[str],
        *,
        die: str = "",
        environ: dict[str, str] | None = None,
        via: Sequence[Proxy] = (),
        wrap: Sequence[str] = (),
    ) -> Process:
        """Start Python with ``arguments`` in the row's environment.

        ``die`` is a seam (``"3:before"``), ``via`` are proxies to go through, ``environ`` more of the environment.
        """
        more = {"CHAOS_DIE": die, **self._through(via), **(environ or {})}
        log = self.world.directory / f"{len(self.processes):02}-{name}.log"
        process = Process(name, arguments, log, {**self.world.environ(), **more}, self.fault, wrap)
        self.processes.append(process)
        return process

    def add_server(self, server: Server) -> Server:
        """Start another server, which ends with the row."""
        self._servers.append(server)
        return server.start()

    def manage(self, *arguments: str, timeout: float = 60) -> str:
        """Run a command of ``manage.py`` to its end; return what it printed."""
        done = subprocess.run(
            [sys.executable, "manage.py", *arguments], env=self.world.environ(), cwd=ROOT, capture_output=True,
            text=True, timeout=timeout, check=False,
        )  # fmt: skip
        return done.stdout + done.stderr

    # --- Work

    def enqueue(self, count: int = 1, kind: str = "plain", *, wait: bool = True, **how: Any) -> list[int]:
        """Ask the producer for jobs, one call after the other; return their numbers.

        ``how`` is ``seconds``, ``gate`` (run until this file exists), ``how`` and ``until`` (a misbehaviour),
        ``pause`` (of a transactional body, after its write), ``key``, ``expects``, ``options`` (of ``apply_async``),
        ``in_transaction`` and ``die`` (the producer dies after the commit).
        """
        specs = [self._spec(kind, **dict(how)) for _ in range(count)]
        if wait:
            self.order(do="enqueue", specs=specs)
        else:
            # Started by this thread: what a thread has started dies with it.
            assert self.producer.running
            threading.Thread(target=self._try_order, kwargs={"do": "enqueue", "specs": specs}, daemon=True).start()
        return [member["number"] for spec in specs for member in spec["members"]]

    def bulk(self, count: int, kind: str = "plain", *, size: int = 1000, **how: Any) -> list[int]:
        """Ask for many single jobs, ``size`` of them in one transaction; return their numbers."""
        specs = [self._spec(kind, **dict(how)) for _ in range(count)]
        self.order(do="bulk", specs=specs, size=size, timeout=max(300, count / 50))
        return [spec["members"][0]["number"] for spec in specs]

    def mixed(self, count: int, **how: Any) -> list[int]:
        """Ask for ``count`` calls and canvases, some of every kind, in an order that the seed decides."""
        specs = self._mixed(count, **how)
        self.order(do="enqueue", specs=specs)
        return [member["number"] for spec in specs for member in spec["members"]]

    def steady(self, count: int, rate: float, *, kinds: Sequence[str] = ("plain",), **how: Any) -> Load:
        """Enqueue ``count`` calls beside the row, ``rate`` per second; ``settle`` waits for the last of them."""
        specs = [self._spec(self.random.choice(list(kinds)), **dict(how)) for _ in range(count)]
        return self._load(specs, rate)

    def steady_mixed(self, count: int, rate: float, **how: Any) -> Load:
        """As ``steady``, with some of every kind."""
        return self._load(self._mixed(count, **how), rate)

    def cancel(self, numbers: Sequence[int]) -> None:
        """Cancel jobs as an operator does, by the producer; they may then end cancelled."""
        self.order(do="cancel", numbers=list(numbers), ids=[self.job_id(number) for number in numbers])

    def expect(self, numbers: Sequence[int], state: str) -> None:
        """Say in which state these jobs must end after all: ``completed``, ``failed``, ``cancelled`` or ``any``."""
        for number in numbers:
            ledger.write_intake(self.world.intake, event="expect", number=number, expects=state)

    def gate(self, name: str = "gate") -> Gate:
        """A file for which bodies can wait: ``enqueue(2, gate=gate.path)``, later ``gate.open()``."""
        return Gate(self.world.directory / name)

    @property
    def producer(self) -> Process:
        """The process that enqueues, started anew when it is dead."""
        if self._producer is None or not self._producer.running:
            command = ["-m", "tests.chaos.producer"]
            self._producer = self.spawn("producer", command, via=self._producer_via).expect("listens on")
        return self._producer

    def producer_through(self, *via: Proxy) -> None:
        """From now on the producer goes through these proxies: it is started anew."""
        self._producer_via = via
        if self._producer is not None:
            self._producer.end()

    def order(self, *, timeout: float = 300, **order: Any) -> Any:
        """Give the producer an order; return its answer, None when it dies of it."""
        producer = self.producer
        port = int(producer.printed.partition("listens on ")[2].split()[0])
        with socket.create_connection(("127.0.0.1", port), timeout) as connection:
            connection.sendall(json.dumps(order).encode() + b"\n")
            with contextlib.suppress(ConnectionError), connection.makefile() as answers:
                answer = json.loads(answers.readline() or "{}")
                if "error" in answer:
                    raise OutOfTime(f"the producer could not {order['do']}: {answer['error']}")
                if "done" in answer:
                    return answer["done"]
        processes.wait_until(lambda: not producer.running, 10)
        if not any(spec.get("die") for spec in order.get("specs", ())):
            raise OutOfTime(f"the producer died before it could {order['do']}")
        return None

    def _try_order(self, **order: Any) -> None:
        with contextlib.suppress(OSError, OutOfTime):
            self.order(**order)

    def _load(self, specs: list[Any], rate: float) -> Load:
        load = Load(self, specs, rate)
        self._loads.append(load)
        return load

    def _mixed(self, count: int, **how: Any) -> list[Any]:
        kinds = [EVERYTHING[n % len(EVERYTHING)] for n in range(count)]
        self.random.shuffle(kinds)
        return [self._spec(kind, **dict(how)) for kind in kinds]

    def _spec(self, kind: str, *, in_transaction: bool = False, die: bool = False, **how: Any) -> dict[str, Any]:
        canvas = kind if kind in CANVASES else ""
        kinds = {"": [kind], "errlink": ["failing", "plain"]}.get(canvas, ["plain"] * CANVASES.get(canvas, 1))
        options = how.pop("options", {}) if not canvas else {}
        members = [self._member(one, **dict(how)) for one in kinds]
        numbers = [member["number"] for member in members]
        match canvas:
            case "chain" | "link":
                for member, before in zip(members[1:], numbers, strict=False):
                    member["after"] = [before]
            case "chord":
                members[-1]["after"] = numbers[:-1]
            case "errlink":
                members[1] |= {"after": numbers[:1], "when": "failed"}
        found = {"canvas": canvas, "members": members, "in_transaction": in_transaction, "die": die}
        return {**found, "options": options}

    def _member(self, kind: str, *, expects: str = "", effect: str = "", **how: Any) -> dict[str, Any]:
        self._number += 1
        says = {"expects": "completed", "effect": "end", **KINDS[kind], **how}
        if kind == "idempotent":
            says.setdefault("key", str(self._number))
        if kind != "transactional":
            says.pop("pause", None)
        member = {
            "number": self._number, "kind": kind, "task": says.pop("task"), "expects": expects or says.pop("expects"),
            "effect": effect or says.pop("effect"), "after": [], "when": "completed",
        }  # fmt: skip
        return {**member, "kwargs": {k: str(v) if isinstance(v, Path) else v for k, v in says.items() if k in _KWARGS}}

    # --- Faults

    def fault(self) -> None:
        """Now something breaks: ``recovery_s`` counts from the last call. Processes that are killed call it."""
        self.struck = ledger.now()

    def proxy_broker(self) -> Proxy:
        """A proxy before the broker, for ``via=`` of processes."""
        url = urlsplit(self.broker.url)
        assert url.hostname
        assert url.port
        return self._proxy((url.hostname, url.port), "broker")

    def proxy_database(self) -> Proxy:
        """A proxy before PostgreSQL, for ``via=`` of processes."""
        folder = urlsplit(self.database.url).netloc.partition("@")[2].replace("%2F", "/")
        return self._proxy(f"{folder}/.s.PGSQL.5432", "database")

    def _proxy(self, upstream: Any, what: str) -> Proxy:
        proxy = Proxy(upstream)
        proxy.what = what
        self._proxies.append(proxy)
        return proxy

    def _through(self, via: Sequence[Proxy]) -> dict[str, str]:
        found = {}
        for proxy in via:
            here = f"127.0.0.1:{proxy.port}"
            if proxy.what == "broker":
                url = urlsplit(self.broker.url)
                account, at, _ = url.netloc.rpartition("@")
                found["BROKER_URL"] = url._replace(netloc=f"{account}{at}{here}").geturl()
            else:
                found["DATABASE_URL"] = f"postgres://postgres@{here}/{self.database.url.rpartition('/')[2]}"
        return found

    def arm(self, who: str) -> None:
        """Let the processes that were started with ``die=`` count: ``child``, ``main`` or ``any``, and a thread."""
        partial = self.world.armed.with_suffix(".new")
        partial.write_text(who)
        partial.rename(self.world.armed)

    def seams(self, who: str, start: Callable[[str], Process], first: int = 1, last: int = 80) -> Iterator[Seam]:
        """Every seam of a process in turn, until it no longer dies there: before and after statement 1, 2, 3, …

        ``start`` gets the seam and starts the process with ``die=``. In the loop: give work, then call
        ``seam.died()``, which waits until the process (or its child) has died there or ``idle`` says that it will not::

            for seam in stage.seams("main MainThread", lambda die: conductor_dying(die)):
                stage.enqueue(1)
                seam.died(stage.settled)
                …
        """
        for number in range(first, last + 1):
            deaths = 0
            for when in ("before", "after"):
                seam = Seam(self, f"{number}:{when}", start(f"{number}:{when}"))
                self.arm(who)
                yield seam
                deaths += seam.reached
                self.world.armed.unlink(missing_ok=True)
            self.say(f"seam {number}: {'died' if deaths else 'not reached'}")
            if not deaths:
                return

    # --- Looking and waiting

    @property
    def lines(self) -> list[Line]:
        """The ledger as it is now."""
        return self._reader.lines()

    @property
    def runs(self) -> list[Run]:
        """The executions of bodies that the ledger shows."""
        return ledger.runs(self.lines)

    def states(self, numbers: Sequence[int] | None = None) -> Counter[str]:
        """How many jobs are in each state, by their rows."""
        if numbers is None:
            return Counter(dict(self.database.rows("SELECT state, count(*) FROM jobs_job GROUP BY state")))
        asked = ledger.read_intake(self.world.intake).asked
        rows = self.database.rows("SELECT id, state, payload FROM jobs_job ORDER BY created_at DESC")
        by_id = {str(job).replace("-", ""): state for job, state, _ in rows}
        by_number = {checker.number_in(payload): state for _, state, payload in rows}
        ids = {number: asked[number].job.replace("-", "") for number in numbers if number in asked}
        return Counter(by_number.get(n) or by_id.get(ids.get(n, ""), "absent") for n in numbers)

    def state(self, number: int) -> str:
        """The state of one job; ``absent`` without a row."""
        found = self._row(number, "state")
        return str(found[0]) if found else "absent"

    def job_id(self, number: int) -> str:
        """The id of a job, by its number."""
        known = ledger.read_intake(self.world.intake).asked[number].job
        found = None if known else self._row(number, "id")
        return known or str(found[0] if found else "")

    def _row(self, number: int, column: str) -> Any:
        pattern = f'%"number":{number}' + "{}%"
        sql = f"SELECT {column} FROM jobs_job WHERE payload LIKE {{0}} OR payload LIKE {{0}} ORDER BY created_at"
        mark = "?" if self.database.vendor == "sqlite" else "%s"
        rows = self.database.rows(sql.format(mark), pattern.format(","), pattern.format("}"))
        return rows[0] if rows else None

    def pid_of(self, number: int) -> int:
        """The process in which a job began last."""
        return [line.pid for line in self.lines if line.number == number and line.what == "begin"][-1]

    def begun(self, numbers: Sequence[int]) -> int:
        """How often the bodies of these jobs have begun, in all."""
        chosen = set(numbers)
        return sum(line.what == "begin" and line.number in chosen for line in self.lines)

    def took(self, numbers: Sequence[int]) -> list[float]:
        """How many seconds the calls took that asked for these jobs."""
        asked = ledger.read_intake(self.world.intake).asked
        return [asked[number].took for number in numbers]

    def wait(self, condition: Callable[[], Any], what: str, timeout: float | None = None) -> None:
        """Wait until ``condition`` holds; an error in it (a database that is away) is a no. Raises ``OutOfTime``."""
        started = time.monotonic()
        limit = min(self.deadline - started, 1e9 if timeout is None else timeout)
        if not processes.wait_until(lambda: _holds(condition), max(limit, 0.1)):
            raise OutOfTime(f"after {time.monotonic() - started:.0f} s still not: {what}")

    def idle_since(self, seconds: float) -> bool:
        """Whether the ledger has been silent for as long."""
        lines = self.lines
        return not lines or ledger.now() - lines[-1].at > seconds * 1e9

    def wait_running(self, count: int = 1, timeout: float = 60) -> None:
        """Wait until ``count`` bodies run, by the ledger."""
        self.wait(lambda: sum(run.ended is None for run in self.runs) >= count, f"{count} bodies run", timeout)

    def wait_begun(self, numbers: Sequence[int], times: int = 1, timeout: float | None = None) -> None:
        """Wait until the bodies of these jobs have begun ``times`` times each, on the whole.

        Of plain Celery, which loses some, only until nothing more is to come.
        """
        wanted = times * len(numbers)
        over = self.settled if self.celery else bool
        self.wait(lambda: self.begun(numbers) >= wanted or over(), f"{len(numbers)} jobs begun", timeout)

    def wait_state(self, numbers: Sequence[int], *states: str, timeout: float | None = None) -> None:
        """Wait until all these jobs are in one of the states."""
        self.wait(lambda: set(self.states(numbers)) <= set(states), f"{len(numbers)} jobs {'/'.join(states)}", timeout)

    def sleep(self, seconds: float) -> None:
        """Let a fault last. To wait for something, wait for it instead."""
        time.sleep(max(0.0, min(seconds, self.deadline - time.monotonic())))

    def settled(self) -> bool:
        """Whether all that was asked for is final now."""
        if any(not load.done for load in self._loads):
            return False
        if self.celery:
            return self._celery_settled()
        unfinished = "SELECT count(*) FROM jobs_job WHERE state NOT IN ('completed', 'failed', 'cancelled')"
        return bool(self.database.rows(unfinished)[0][0] == 0)

    def settle(self, timeout: float | None = None) -> None:
        """Wait until every job is final; what is not by then is found by the checker as unfinished."""
        with contextlib.suppress(OutOfTime):
            self.wait(self.settled, "all jobs are final", timeout)

    def _celery_settled(self) -> bool:
        intake, lines = ledger.read_intake(self.world.intake), self.lines
        over = {line.number for line in lines if line.what == "end"}
        failures = self.celery_failures()
        owed = [a for a in intake.asked.values() if a.accepted and a.number not in over and a.job not in failures]
        if not owed:
            return True
        quiet = not lines or ledger.now() - lines[-1].at > QUIET * 1e9
        return quiet and not self.celery_waiting()

    def celery_failures(self) -> set[str]:
        """The tasks of plain Celery whose result is a failure, by id."""
        results = self.world.results or self.broker
        with Redis.from_url(f"{results.url.rpartition('/')[0]}/1", socket_timeout=5) as client:
            keys: Any = list(client.scan_iter("celery-task-meta-*", count=1000))
            metas: Any = client.mget(keys) if keys else []
        found = [json.loads(meta) for meta in metas if meta]
        return {str(m["task_id"]).replace("-", "") for m in found if m["status"] in ("FAILURE", "REVOKED")}

    def celery_waiting(self) -> set[str]:
        """The tasks of plain Celery that are still in the broker: queued, or delivered and not acknowledged."""
        if self.world.options.broker == "rabbitmq":
            return self._left_in_rabbitmq()
        with self.redis as client:
            lists = [client.lrange(name, 0, -1) for name in self.lists]
            held: Any = client.hvals("unacked")
        queued: list[Any] = [text for found in lists for text in cast(list[Any], found)]
        messages = [json.loads(text) for text in queued] + [json.loads(text)[0] for text in held]
        return {str(message["headers"]["id"]).replace("-", "") for message in messages}

    def _left_in_rabbitmq(self) -> set[str]:
        """The same for RabbitMQ, which shows a message only to whoever takes it: names need dead workers."""
        if any(worker.running for worker in self.workers):
            listed = cast(RabbitmqServer, self.broker).control("list_queues", "messages")
            return {"somebody"} if any(word.isdigit() and int(word) for word in listed.split()) else set()
        with rabbitmq.connected(self.broker.url) as connection:
            channel, found = connection.channel(), set[str]()
            while message := channel.basic_get("default"):
                found.add(str(message.headers.get("id", "")).replace("-", ""))
        return found

    # --- What the row requires

    @property
    def recovery_s(self) -> float:
        """Seconds from the last fault until every job that it interrupted ran again, or else until any job ran.

        Infinite when none has run since.
        """
        found = recovery(self.runs, self.struck) if self._recovery is None else self._recovery
        return math.inf if found is None else found

    @recovery_s.setter
    def recovery_s(self, seconds: float) -> None:
        self._recovery = seconds

    def require(self, condition: Any, sentence: str) -> None:
        """What else must hold; the sentence says it as it should be. For plain Celery it is only noted."""
        if not condition:
            self.problems.append(f"not so: {sentence}")

    def measure(self, **figures: Any) -> None:
        """Figures of the row's own, for its line and the JSON."""
        self.measures |= figures

    def skip(self, why: str) -> None:
        """End the row as not done, and say why."""
        raise Skipped(why)

    # --- The end

    def close(self) -> None:
        """End every process of the row, by its pid."""
        for load in self._loads:
            load.stop(wait=False)
        for process in reversed(self.processes):
            process.end()
        for proxy in self._proxies:
            proxy.close()
        for server in self._servers:
            server.close()


class Load:
    """Work that is enqueued beside the row."""

    def __init__(self, stage: Stage, specs: list[Any], rate: float) -> None:
        self.numbers = [member["number"] for spec in specs for member in spec["members"]]
        self._flag = stage.world.directory / f"stop-{self.numbers[0]}"
        order = {"do": "enqueue", "specs": specs, "pause": 1 / rate, "stop": str(self._flag)}
        assert stage.producer.running
        self._thread = threading.Thread(target=stage._try_order, kwargs=order, daemon=True)
        self._thread.start()

    @property
    def done(self) -> bool:
        """Whether the last call has returned."""
        return not self._thread.is_alive()

    def stop(self, *, wait: bool = True) -> None:
        """Ask for no more; wait until the call that is under way has returned."""
        self._flag.touch()
        if wait:
            self._thread.join(60)


class Gate:
    """A file for which bodies wait."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def open(self) -> None:
        """Let the bodies end."""
        self.path.touch()


class Seam:
    """One place at which a process is to die."""

    def __init__(self, stage: Stage, where: str, process: Process) -> None:
        self.stage = stage
        self.where = where
        self.process = process
        self.reached = False

    def died(self, idle: Callable[[], Any], timeout: float = 30) -> bool:
        """Wait until somebody died at the seam, or ``idle`` says that nobody will any more; whether one did."""
        armed = self.stage.world.armed
        processes.wait_until(lambda: not armed.exists() or _holds(idle), timeout)
        self.reached = not armed.exists()
        if self.reached:
            self.stage.fault()
        return self.reached


_KWARGS = {"seconds", "gate", "how", "until", "pause", "key", "user", "mended"}


def recovery(runs: list[Run], struck: int | None) -> float | None:
    """Seconds from ``struck`` until each body that it interrupted began again, or else until any body began."""
    if struck is None:
        return None
    began: dict[int, list[int]] = {}
    for run in runs:
        began.setdefault(run.number, []).append(run.began)
    cut = [run for run in runs if run.began < struck and (run.ended is None or run.ended > struck)]
    again = [min((b for b in began[run.number] if b > struck), default=None) for run in cut]
    found = [moment for moment in again if moment is not None]
    if found:
        return (max(found) - struck) / 1e9
    later = [run.began for run in runs if run.began > struck]
    return (min(later) - struck) / 1e9 if later else None


def _holds(condition: Callable[[], Any]) -> bool:
    try:
        return bool(condition())
    except (AssertionError, NameError, TypeError):
        raise
    except Exception:
        return False
