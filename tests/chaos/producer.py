"""The process that enqueues: it takes orders on a loopback port and writes to the intake what it asked for and got."""

from __future__ import annotations

import contextlib
import json
import os
import socketserver
import sys
import time
from functools import partial
from types import ModuleType
from typing import Any

import django
from django.db import close_old_connections

from tests.chaos import ledger

Spec = dict[str, Any]


def main() -> None:
    """Serve until killed."""
    django.setup()
    with Server(("127.0.0.1", 0), Orders) as server:
        sys.stdout.write(f"producer listens on {server.server_address[1]} .\n")
        sys.stdout.flush()
        server.serve_forever()


class Server(socketserver.ThreadingTCPServer):
    """A thread per order."""

    daemon_threads = True


class Orders(socketserver.StreamRequestHandler):
    """One order per connection, as a line of JSON; the answer is one too."""

    def handle(self) -> None:
        """Do what is asked."""
        order = json.loads(self.rfile.readline())
        try:
            answer = {"done": getattr(sys.modules[__name__], order.pop("do"))(**order)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        finally:
            from django.db import connections

            connections.close_all()
        self.wfile.write(json.dumps(answer).encode() + b"\n")


def tasks() -> ModuleType:
    """The tasks of this process: the platform's, or those of plain Celery."""
    if os.environ.get("CHAOS_AGAINST") == "celery":
        from tests.chaos import plain

        return plain
    import project.celery
    from tests.chaos import tasks as ours

    project.celery.app.set_current()
    return ours


# --- Orders -------------------------------------------------------------------------------------------------


def enqueue(specs: list[Spec], pause: float = 0.0, stop: str = "") -> int:
    """Ask for every spec in turn, ``pause`` seconds apart, until the file ``stop`` exists; return how many."""
    for number, spec in enumerate(specs):
        if stop and os.path.exists(stop):  # noqa: PTH110
            return number
        close_old_connections()  # as a web server does before each request
        ask(spec)
        time.sleep(pause)
    return len(specs)


def bulk(specs: list[Spec], size: int = 1000) -> int:
    """Ask for many calls, ``size`` of them in one transaction; what has not committed counts as refused."""
    from django.db import transaction

    for start in range(0, len(specs), size):
        batch = specs[start : start + size]
        for spec in batch:
            _write(event="ask", in_transaction=False, at=ledger.now(), **_note(spec["members"][0]))
        began = time.monotonic()
        with transaction.atomic():
            ids = [str(_signature(spec).apply_async(**spec["options"]).id) for spec in batch]
        for spec, job in zip(batch, ids, strict=True):
            took = (time.monotonic() - began) / len(batch)
            _write(event="accepted", number=spec["members"][0]["number"], job=job, took=took)
    return len(specs)


def ask(spec: Spec) -> None:
    """Enqueue one call or canvas, and write down what was asked and what came of it."""
    members, started = spec["members"], time.monotonic()
    for member in members:
        _write(event="ask", in_transaction=spec["in_transaction"], at=ledger.now(), **_note(member))
    try:
        result = _call(spec)
    except Exception as error:
        said, took = f"{type(error).__name__}: {error}"[:300], time.monotonic() - started
        for member in members:
            _write(event="refused", number=member["number"], error=said, took=took)
        return
    took = time.monotonic() - started
    for member in members:
        job = str(result.id) if result is not None and len(members) == 1 else ""
        _write(event="accepted", number=member["number"], job=job, took=took)


def cancel(numbers: list[int], ids: list[str]) -> int:
    """Cancel jobs, as an operator would; return how many could be asked."""
    if os.environ.get("CHAOS_AGAINST") == "celery":
        from tests.chaos.plain import app

        app.control.revoke(ids, terminate=True)
        return len(ids)
    from uuid import UUID

    from jobs import control

    for number, job in zip(numbers, ids, strict=True):
        _write(event="cancel", number=number)
        control.cancel(UUID(job), reason="not wanted", by="chaos")
    return len(ids)


def claim(ids: list[str]) -> int:
    """Claim jobs as a worker does that then vanishes: they run, by their rows, and nobody renews their leases."""
    from uuid import UUID

    from celery.exceptions import Ignore

    from jobs import attempt

    claimed = 0
    for job in ids:
        with contextlib.suppress(Ignore):
            attempt.claim(UUID(job), "gone@nowhere")
            claimed += 1
    return claimed


def operate(verb: str, ids: list[str] | None = None, queue: str = "") -> int:
    """Pause or resume a queue, or make jobs due now, as an operator would; return how many could be."""
    from uuid import UUID

    from jobs import control
    from jobs.errors import Refused

    if verb == "pause":
        control.pause(queue=queue, reason="chaos", by="chaos")
    elif verb == "resume":
        return int(control.resume(queue=queue, by="chaos"))
    else:
        done = 0
        for job in ids or []:
            with contextlib.suppress(Refused):
                control.retry(UUID(job), by="chaos")
                done += 1
        return done
    return 1


def _note(member: Spec) -> Spec:
    return {k: member[k] for k in ("number", "kind", "expects", "after", "when", "effect")}


def _write(**entry: Any) -> None:
    ledger.write_intake(os.environ["CHAOS_INTAKE"], **entry)


# --- Calls ----------------------------------------------------------------------------------------------------


def _call(spec: Spec) -> Any:
    signature, options = _signature(spec), spec.get("options", {})
    if not spec["in_transaction"]:
        return signature.apply_async(**options)
    from django.db import connection, transaction

    result = None
    with transaction.atomic():
        for member in spec["members"]:
            with connection.cursor() as cursor:
                cursor.execute("INSERT INTO chaos_order (number) VALUES (%s)", [member["number"]])
        if spec.get("die"):
            transaction.on_commit(partial(os._exit, 1))
        if os.environ.get("CHAOS_AGAINST") == "celery":
            transaction.on_commit(partial(signature.apply_async, **options))
        else:
            result = signature.apply_async(**options)
    return result


def _signature(spec: Spec) -> Any:
    from celery import chain, chord

    members = [_member(member) for member in spec["members"]]
    match spec["canvas"]:
        case "":
            return members[0]
        case "chain":
            return chain(*members)
        case "chord":
            return chord(members[:-1], members[-1])
        case "link":
            members[0].link(members[1])
            return members[0]
        case "errlink":
            members[0].link_error(members[1].set(immutable=True))
            return members[0]
    raise ValueError(f"There is no canvas {spec['canvas']!r}.")


def _member(member: Spec) -> Any:
    task, kwargs = getattr(tasks(), member["task"]), {"number": member["number"], **member["kwargs"]}
    signature = task.s(kwargs) if getattr(task, "chunked", False) else task.s(**kwargs)
    return signature.set(**member["options"]) if member.get("options") else signature


if __name__ == "__main__":
    main()
